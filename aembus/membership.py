"""A membership: what one join gives a process, for as long as that supervisor lives.

A bus object has one membership at a time; with reconnect=True it gets another one from the next
supervisor.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from aembus.answers import Answers, plain_text
from aembus.calls import Calls
from aembus.control import ControlClient
from aembus.errors import AembusError, BusBroken
from aembus.events import EventStruct
from aembus.sender import Sender
from aembus.shm import lanes, layout, names, registry
from aembus.shm.doorbell import PipeBell
from aembus.shm.inbox import Inbox, inbox_role
from aembus.shm.lanes import Record
from aembus.shm.registry import RegistryReader

if TYPE_CHECKING:
    from aembus.awaiting import Awaiting

log = logging.getLogger("aembus")

PASSING_AGAIN_S: Final = 0.01


class Membership:
    """A slot and an inbox on one supervisor's bus, and the parts that work there.

    Args:
        bus: the bus's name.
        wanted: what to ask for when joining: kind, name, keep_s.
        on_order: called in the watcher thread with what the supervisor pushes: "stop", to a
            worker "suspend", "resume" and "retire", to a service host what it is to do.
        on_broken: called there, with the membership, when the supervisor is gone.

    broken: the supervisor is gone; `on_broken` was called, or is about to be.
    replaced: another process is the member now; nothing of its inbox is this one's any more.

    Raises: BusNotFound, PermissionRefused, VersionMismatch, OutOfSharedMemory, SlotsExhausted,
    NameInUse; nothing is left then.
    """

    def __init__(
        self,
        bus: str,
        wanted: dict[str, Any],
        on_order: Callable[[dict[str, Any]], None],
        on_broken: Callable[[Membership], None],
    ) -> None:
        lanes.check()
        self._bus = bus
        self._on_order = on_order
        self.broken = False
        self.replaced = False
        self.on_push: Callable[[dict[str, Any]], None] = lambda frame: None  # what is for no other
        self._pipe_bell: PipeBell | None = None
        self._awaiting: Awaiting | None = None
        self._sender: Sender | None = None
        self.control = self._connect(functools.partial(on_broken, self))
        try:
            self._join(wanted)
        except BaseException:
            # Else the slot would be taken for as long as this process lives.  Refused if it has not
            # joined; a place is kept.
            with contextlib.suppress(AembusError):
                self.control.request("leave", keep=bool(wanted["name"]))
            self.control.close()
            raise

    # --- what a test does in another way (`aembus.testing`) ---------------------------------------

    clock: Callable[[], float] = staticmethod(time.monotonic)

    def _connect(self, on_broken: Callable[[], None]) -> ControlClient:
        return ControlClient(self._bus, self._handle_push, on_broken)

    def _open_inbox(self, name: str) -> Inbox:
        return Inbox.open(self._bus, self._nonce, self._inbox_id, layout.BELL_SEMAPHORE, name)

    # ----------------------------------------------------------------------------------------------

    def _join(self, wanted: dict[str, Any]) -> None:
        me = self.control.request("join", **wanted)
        bus, nonce, inbox_id = self._bus, me["nonce"], me["inbox_id"]
        self._nonce: str = nonce
        self._inbox_id: int = inbox_id
        self.name: str = me["name"]
        self.slot: int = me["slot"]
        self.incarnation: int = me["incarnation"]
        self.reader = RegistryReader.open(names.shared_name(bus, nonce, registry.ROLE))
        try:
            name = names.shared_name(bus, nonce, inbox_role(inbox_id))
            self.inbox_path = names.DIRECTORY / name.lstrip("/")
            self.inbox = self._open_inbox(name)
        except BaseException:
            self.reader.close()
            raise
        try:
            self.sender = self._sender = Sender(
                bus, nonce, self.slot, self.incarnation, self.reader, self.inbox.wait, self.clock
            )
            self.event_struct = EventStruct(
                self.slot,
                self.inbox,
                self._undeliverable,
                self.sender.ring,
                self.sender.refresh,
                Answers(self.sender, waits=True),
                self.clock,
            )
            self.calls = Calls(
                self.sender, self.inbox, self.incarnation, self.event_struct.call_waiters
            )
            # Until this process has timers of its own, expiries are those of a predecessor's.
            for kind in (layout.KIND_TIMER, layout.KIND_EXIT):
                self.event_struct.on_kind(kind, lambda record: None)
        except BaseException:
            self.inbox.close()
            self.reader.close()
            raise

    def _handle_push(self, frame: dict[str, Any]) -> None:
        push = frame["push"]
        if push == "generation":
            self._pass_generation(frame["generation"])
        else:
            self._on_order(frame)
            self.on_push(frame)

    def _pass_generation(self, generation: int) -> None:
        sender = self._sender

        # Not in this thread: the activation that is under way may have been interrupted by a signal
        # handler that waits for an answer of the supervisor's, and answers come by this thread.
        def wait_and_tell() -> None:
            assert sender is not None
            sender.pass_generation()
            self.control.tell("acknowledge", generation=generation)

        while sender is not None and not sender.try_pass_generation():
            thread = threading.Thread(target=wait_and_tell, name="aembus-passing", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no more threads now; whoever leaves waits for this one's word
                time.sleep(PASSING_AGAIN_S)
            else:
                return
        self.control.tell("acknowledge", generation=generation)

    def _undeliverable(
        self, record: Record, reason: str, *, try_group: bool, detail: str = ""
    ) -> bool:
        answer = self.control.request(
            "undeliverable",
            lane_class=self.inbox.lane_class(record.lane),
            header=list(record.header),
            payload=record.payload,
            reason=plain_text(reason),
            detail=plain_text(detail),
            try_group=try_group,
        )
        return bool(answer["forwarded"])

    def take_pipe_bell(self) -> PipeBell:
        """Return a doorbell with a descriptor; the inbox sleeps on it from now on.  Idempotent."""
        if self._pipe_bell is None:
            self.control.request("pipe_bell")
            self._pipe_bell = PipeBell(self._bus, self._nonce, self._inbox_id)
            self.inbox.take_bell(self._pipe_bell)
        return self._pipe_bell

    def awaiting(self) -> Awaiting:
        """Return what can be awaited in the running event loop.

        The first time it asks the supervisor for a doorbell with a descriptor.
        Raises: AembusError if another event loop awaits something of this bus, BusBroken,
        BusClosed: the doorbell's descriptor may be somebody else's by then.
        """
        import asyncio

        from aembus.awaiting import Awaiting
        from aembus.listening import LoopListener

        self.sender.refresh()  # raises if nothing can be sent
        awaiting, loop = self._awaiting, asyncio.get_running_loop()
        if awaiting is None or awaiting.listener.loop is not loop:
            if awaiting is not None and awaiting.listener.is_used:
                raise AembusError(
                    "another event loop serves this bus or awaits something of it; use one loop "
                    f"for one bus object, bus={self._bus!r}"
                )
            if awaiting is not None:
                awaiting.listener.close()  # its loop may have been closed in the middle of it
            listener = LoopListener(self.sender, self.inbox, self.calls, self.take_pipe_bell())
            awaiting = self._awaiting = Awaiting(self.sender, self.calls, listener)
        return awaiting

    def counter(self, name: str) -> int:
        """Return the index of the member's counter of this name.  Raises ControlError."""
        index: int = self.control.request("counter", name=name)["index"]
        return index

    def refuse(self) -> None:
        """Make every activation raise BusBroken: the supervisor is gone."""
        if self._sender is not None:
            self._sender.refuse(BusBroken(f"the supervisor is gone, bus={self._bus!r}"))

    def leave(self, keep: bool) -> None:
        """Tell the supervisor; with `keep` a member with a name leaves its place as it is."""
        if self.broken or self.replaced:
            return
        try:
            self.control.leave(keep)
        except AembusError as error:
            log.warning("left without a word: %s", str(error))  # an error keeps its frames alive

    def close(self) -> None:
        """Let go of everything in this process; the supervisor has been told, or is gone.

        Threads that wait here are told, and the last of them lets go of what they waited on.
        """
        self.sender.close()
        if self._awaiting is not None:
            self._awaiting.listener.close()
        self.control.close()
        self.inbox.close()
        self.reader.close()
