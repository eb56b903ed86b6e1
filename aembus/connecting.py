"""`connect`: how a process that is no worker joins a bus."""

from __future__ import annotations

from aembus.bus import KEEP_S, Bus
from aembus.delivery import DELIVERY_RUN, Delivery


def connect(
    bus: str,
    *,
    name: str = "",
    keep: float = KEEP_S,
    reconnect: bool = False,
    delivery: Delivery = DELIVERY_RUN,
) -> Bus:
    """Join the running bus of this name and return it; use it as a context manager.

    Args:
        bus: the bus's name.
        name: makes this process a member that is found again, whoever starts it: the next process
            that connects with this name has the same inbox and event ids, what is queued waits
            for it and goes on arriving, and the job that was in hand at a crash comes again.  Its
            registrations are published together when it begins to run.
        keep: how many seconds the place of a member with a name is kept after its process has
            died (or closed with keep=True); then it departs, and what is queued goes to its groups
            or to the dead letters.  0: not at all.  Its groups' new jobs go to its siblings after
            5 seconds.
        reconnect: when the supervisor dies, join the next supervisor of the bus, register all
            events there again, and go on.  Until then activations raise BusBroken.  What was
            queued went with the old supervisor.
        delivery: "run": jobs are delivered by `run`, `poll`, `run_in_thread` or `serve`.
            "interrupt": they are delivered into the main thread, whatever it does: its program is
            interrupted between two bytecodes, or in a call that blocks, which goes on after.
            Handlers run one at a time, never inside one another, and `Bus.masked` holds them off.
            It begins at once, for a member with a name when `publish_registrations` is called.
            What is no Exception (SystemExit) passes from a handler into the program.  Uses SIGURG;
            one bus object of a process can have it.

    Blocks until the supervisor has answered.
    Raises: BusNotFound, PermissionRefused, VersionMismatch, OutOfSharedMemory, SlotsExhausted,
    NameInUse if a living process has the name, AembusError if this process cannot be interrupted.
    """
    return Bus(bus, name=name, keep=keep, reconnect=reconnect, delivery=delivery)
