"""The process of a service host: ``python -m aembus.hosting.process``.

A member of kind "host" that the supervisor spawns and replaces like a worker.  It loads the
services that it is told to, and takes members' calls in its own inbox.  What the supervisor wants
of it (`_ANSWERS`) comes over the control connection, in the watcher thread, and is done in the
event loop; each answer carries the versions that are loaded then.

Ends when it is told to stop, after flushing, and when the supervisor is gone.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aembus.control import ControlClient, error_to_frame
from aembus.errors import AembusError, ControlError, ServiceLoadError, text_of
from aembus.hosting import event_loop
from aembus.hosting.hosted import STATE_DRAINING, Hosted
from aembus.hosting.hosting import Hosting
from aembus.hosting.outgoing import Parked
from aembus.hosting.versions import Change, Known
from aembus.membership import Membership
from aembus.services.base import SLOT_SHIFT
from aembus.supervised import EXIT_BROKEN, EXIT_NOT_STARTED, begin, end_after_grace

log = logging.getLogger("aembus")

INCARNATION_SHIFT: Final = 24  # of a process's sources: no other one's, before or beside it


class HostProcess:
    """One process of a service host.

    Args:
        configuration: bus, name, arguments (specs of services, in this order), count (how many
            hosts these services have).
    """

    def __init__(self, configuration: dict[str, Any]) -> None:
        self._bus: str = configuration["bus"]
        self._name: str = configuration["name"]
        self._specs: list[str] = configuration["arguments"]
        self._count: int = configuration["count"]
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._broken = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._hosting: Hosting | None = None

    async def run(self) -> int:
        """Host until told to stop, or the supervisor is gone; return the exit code.

        Raises: AembusError if a service cannot be loaded, or the bus not be joined.
        """
        wanted = {"kind": "host", "name": self._name, "keep_s": 0.0}
        self._membership = membership = Membership(
            self._bus, wanted, self._from_watcher, self._on_broken
        )
        try:
            bell = membership.take_pipe_bell()
            last = await self._request("kept")  # process, if there was one
            hosting = self._hosting = Hosting(
                membership.inbox,
                membership.sender,
                membership.slot,
                self._keep_lost,
                self._keep,
                last["kept"],
                (membership.slot << SLOT_SHIFT) + (membership.incarnation << INCARNATION_SHIFT) + 1,
            )
            try:
                # Loaded first: what waits in the inbox may be for any of them.
                if last["known"] is None:
                    for spec in self._specs:
                        self._check_count(await hosting.versions.load(spec))
                for document in last["known"] or ():
                    await hosting.versions.restore(Known(*document))
                await self._request("hosted", **self._state())
                hosting.start(bell.descriptor)
                await self._ended.wait()
                hosting.run_last_turns()
            finally:
                await hosting.stop()
        finally:
            await asyncio.to_thread(self._leave)
        return EXIT_BROKEN if self._broken else 0

    def _check_count(self, hosted: Hosted) -> None:
        hosts_max = type(hosted.service).hosts_max
        if self._count > hosts_max:
            raise ServiceLoadError(
                "so many hosts of this service would not find what is theirs; have fewer (hosts), "
                f"service={hosted.name!r}, hosts={self._count}, max={hosts_max}"
            )

    def _keep(self, name: str, data: Any) -> None:
        self._membership.control.tell("keep", service=name, data=data)

    def _leave(self) -> None:
        self._membership.leave(keep=False)
        self._membership.close()

    async def _request(self, op: str, **fields: Any) -> dict[str, Any]:
        return await asyncio.to_thread(self._membership.control.request, op, **fields)

    @property
    def _hosted(self) -> Hosting:
        assert self._hosting is not None
        return self._hosting

    # --- in the watcher thread ------------------------------------------------------------------

    def _from_watcher(self, frame: dict[str, Any]) -> None:
        self._loop.call_soon_threadsafe(self._take_order, frame)

    def _on_broken(self, membership: Membership) -> None:
        end_after_grace()  # a service may block the loop
        membership.broken = self._broken = True
        membership.refuse()
        self._loop.call_soon_threadsafe(self._ended.set)

    # --- in the event loop ----------------------------------------------------------------------

    def _take_order(self, frame: dict[str, Any]) -> None:
        push = frame["push"]
        if push == "stop":
            self._ended.set()
        elif self._hosting is None:
            pass  # what it is about is in the registry, and no service is there yet
        elif push == "registry":
            self._hosting.on_registry_changed()
        elif push == "clock_step":
            self._hosting.on_clock_step()
        elif push == "gone":
            self._hosting.on_member_gone(frame["slot"], frame["incarnation"])
        elif push == "given_up":
            self._hosting.on_request_lost(frame["point"], frame["payload"], True)
        elif push == "ask":
            task = self._loop.create_task(self._answer(frame))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, frame: dict[str, Any]) -> None:
        answer: dict[str, Any] = {"number": frame["number"]}
        try:
            method = _ANSWERS.get(frame["what"])
            if method is None:
                raise ControlError(f"a service host cannot do that, what={frame['what']!r}")
            answer["result"] = await method(self, frame["fields"])
        except Exception as error:
            if not isinstance(error, AembusError):
                log.exception("order %r failed", frame["what"])
            answer["error"] = error_to_frame(error)
        self._membership.control.tell("answer", **answer, **self._state())

    def _state(self) -> dict[str, Any]:
        versions = self._hosted.versions
        return {
            "running": [h.version.to_document() for h in versions.running() if h.version],
            "loaded": [hosted.statistics() for hosted in versions],
            "known": [known.to_document() for known in versions.known()],
            "calls": self._hosted.calls,
            "call_failures": self._hosted.call_failures,
            "idle": self._hosted.idle(),
        }

    async def _look(self, fields: dict[str, Any]) -> dict[str, Any]:
        return {}

    async def _load(self, fields: dict[str, Any]) -> dict[str, Any]:
        return {"service": (await self._hosted.versions.load(fields["spec"])).statistics()}

    async def _unload(self, fields: dict[str, Any]) -> dict[str, Any]:
        hosted = self._hosted.versions.drain(fields["name"], fields["version"])
        return {"service": hosted.statistics()}

    async def _upgrade(self, fields: dict[str, Any]) -> dict[str, Any]:
        return _shown(
            await self._hosted.versions.upgrade(fields["name"], fields["spec"], fields["hand_over"])
        )

    async def _rollback(self, fields: dict[str, Any]) -> dict[str, Any]:
        return _shown(await self._hosted.versions.rollback(fields["name"], fields["hand_over"]))

    async def _retire(self, fields: dict[str, Any]) -> dict[str, Any]:
        for hosted in self._hosted.versions:
            if hosted.number == fields["number"] and hosted.state == STATE_DRAINING:
                await self._hosted.versions.retire(hosted)
        return {}

    async def _close_intakes(self, fields: dict[str, Any]) -> dict[str, Any]:
        self._hosted.close_intakes()
        return {}

    def _keep_lost(self, parked: Parked, reason: str) -> None:
        self._membership.control.tell(
            "parked_lost",
            event_id=parked.target.event_id,
            point=parked.point,
            key_hash=parked.job.key_hash,
            payload=parked.job.payload,
            reason=reason,
        )


def _shown(change: Change) -> dict[str, Any]:
    return {
        "old": change.old.statistics(),
        "new": change.new.statistics(),
        "handed_over": change.handed_over,
        "at_switch": change.at_switch,
        "pause_s": change.pause_s,
        "calls_kept": change.calls_kept,
    }


_ANSWERS: Final[dict[str, Callable[[HostProcess, dict[str, Any]], Awaitable[dict[str, Any]]]]] = {
    "look": HostProcess._look,
    "load": HostProcess._load,
    "unload": HostProcess._unload,
    "upgrade": HostProcess._upgrade,
    "rollback": HostProcess._rollback,
    "retire": HostProcess._retire,
    "close_intakes": HostProcess._close_intakes,
}


async def _host(configuration: dict[str, Any]) -> int:
    try:
        return await HostProcess(configuration).run()
    except AembusError as error:
        text = f"{type(error).__name__}: {text_of(error)}"
        report = functools.partial(_report_not_started, configuration, text)
        await asyncio.to_thread(report)
        return EXIT_NOT_STARTED


def _report_not_started(configuration: dict[str, Any], text: str) -> None:
    try:
        control = ControlClient(configuration["bus"])
        control.request("not_started", name=configuration["name"], text=text)
        control.close()
    except AembusError:
        log.error("service host %s could not start: %s", configuration["name"], text)


def main() -> int:
    """Entry point of the process."""
    configuration = begin()
    sys.path[:0] = [p for p in configuration["path"] if p not in sys.path]
    event_loop.raise_descriptor_limit()
    return event_loop.run(_host(configuration))


if __name__ == "__main__":
    sys.exit(main())
