"""What may be asked over the control socket: one method an operation.

Each gets the connection that asks and the request's fields, and returns the answer's fields or
raises an AembusError, which travels back as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aembus.errors import ControlError, OutOfSharedMemory
from aembus.routing import STATE_RUNNING
from aembus.supervisor.control import Connection, Operation
from aembus.supervisor.departures import Departures
from aembus.supervisor.inboxes import Inboxes
from aembus.supervisor.members import (
    KIND_CLIENT,
    KIND_HOST,
    KIND_SPAWN,
    KIND_WORKER,
    STATE_STARTING,
    SUPERVISED,
    Member,
    Members,
    member_of,
)
from aembus.supervisor.places import Places
from aembus.supervisor.publication import Publication
from aembus.supervisor.requests import Requests, deaths
from aembus.supervisor.rolling import Rolling
from aembus.supervisor.spawn_host import SpawnHost
from aembus.supervisor.workers import Workers

log = logging.getLogger("aembus")

LEAVE_S_MAX: Final = 2.0  # a stopped member holds up departures; nobody waits longer for that


class Operations:
    """The operations of one supervisor.

    Args: the supervisor's parts, and
        on_ready: called when a worker has come up.
        statistics: returns the whole bus's statistics.
        stop: begins to stop the bus.
    """

    def __init__(
        self,
        nonce: str,
        members: Members,
        inboxes: Inboxes,
        publication: Publication,
        departures: Departures,
        places: Places,
        requests: Requests,
        workers: Workers,
        hosts: Workers,
        rolling: Rolling,
        spawn_host: SpawnHost,
        on_ready: Callable[[Member], None],
        statistics: Callable[[], Awaitable[dict[str, Any]]],
        stop: Callable[[str], None],
    ) -> None:
        self._nonce = nonce
        self._members = members
        self._inboxes = inboxes
        self._publication = publication
        self._departures = departures
        self._places = places
        self._requests = requests
        self._spawned = {KIND_WORKER: workers, KIND_SPAWN: workers, KIND_HOST: hosts}
        self._rolling = rolling
        self._spawn_host = spawn_host
        self._on_ready = on_ready
        self._statistics = statistics
        self._stop = stop

    def table(self) -> dict[str, Operation]:
        """Return the operations by name."""
        return {
            "join": self.join,
            "register": self.register,
            "publish": self.publish,
            "ready": self.ready,
            "stop_event": self.stop_event,
            "start_event": self.start_event,
            "unregister": self.unregister,
            "spawned_events": self.spawned_events,
            "spawn_host_says": self.spawn_host_says,
            "unregister_spawned": self.unregister_spawned,
            "children": self.children,
            "leave": self.leave,
            "acknowledge": self.acknowledge,
            "pipe_bell": self.pipe_bell,
            "counter": self.counter,
            "undeliverable": self.undeliverable,
            "not_started": self.not_started,
            "statistics": self.statistics,
            "stop": self.stop,
        }

    async def join(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        """Become a member: a new client, or the process of a worker."""
        if connection.member is not None or not connection.is_watched:
            raise ControlError(
                f"this connection has joined already; use another one, pid={connection.pid}"
            )
        if request["kind"] == KIND_WORKER and self._rolling.of_pid(connection.pid):
            member = await self._rolling.join(connection)
        elif request["kind"] in self._spawned:
            member = self._join_spawned(connection, request["kind"], request["name"])
        else:
            member = await self._join_client(connection, request)
        connection.member = connection.last_member = member
        member.connection = connection
        await self._publication.welcome(member)
        return {
            "nonce": self._nonce,
            "slot": member.slot,
            "incarnation": member.incarnation,
            "inbox_id": member.inbox_id,
            "name": member.name,
        }

    def _join_spawned(self, connection: Connection, kind: str, name: str) -> Member:
        worker = self._spawned[kind].by_pid(connection.pid)
        if worker is None or worker.name != name:
            raise ControlError(
                f"only a worker that this supervisor spawned can join as one, "
                f"pid={connection.pid}, name={name!r}"
            )
        member = next(m for m in self._members if m.name == name and m.kind == kind)
        self._members.replace_process(member, connection.pid)
        return member

    async def _join_client(self, connection: Connection, request: dict[str, Any]) -> Member:
        name, keep_s = request["name"], request["keep_s"]
        if name:
            found = await self._places.claim(connection, name, keep_s)
            if found is not None:
                found.keep_s = keep_s
                return found
            if not connection.is_watched:
                raise ControlError(f"who asked has gone, pid={connection.pid}")
        # With a name its registrations are published together, as a worker's: see `ready`.
        state = STATE_STARTING if name else STATE_RUNNING
        member = self._members.add(KIND_CLIENT, name, connection.pid, state)
        member.keep_s = keep_s if name else 0.0
        try:
            self._inboxes.create(member.inbox_id)
        except BaseException:
            self._members.remove(member)
            raise
        member.sent_before = self._inboxes.sent_by(member.slot)
        return member

    async def pipe_bell(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        """Give the member's inbox a doorbell with a descriptor, beside its semaphore."""
        self._inboxes.create_pipe_bell(member_of(connection).inbox_id)
        return {}

    async def register(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        """Give out ids for events; they are not published yet, but the spawn host has its own."""
        member = member_of(connection)
        ids = self._members.register(member, request["events"])
        try:
            self._publication.check_room()
        except OutOfSharedMemory:
            self._members.take_back(member, ids)
            raise
        await self._spawn_host.adopt(member, ids)
        return {"ids": ids}

    async def publish(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        """Publish what the member has registered."""
        self._members.publish(member_of(connection), request["stopped"])
        return {"generation": await self._publication.publish()}

    async def ready(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        """Publish a member's registrations, all together: a worker's entry point has returned."""
        member = member_of(connection)
        self._members.publish_all(member, request["stopped"])
        generation = await self._publication.publish()
        if member.kind in SUPERVISED:
            if member.kind == KIND_WORKER:
                self._rolling.on_ready(member)
            self._on_ready(member)
        return {"generation": generation}

    async def stop_event(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        """Take events off their wait queues until they are started."""
        self._members.stop(member_of(connection), request["ids"])
        return {"generation": await self._publication.publish()}

    async def start_event(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        """Put stopped events back on their wait queues."""
        self._members.start(member_of(connection), request["ids"])
        return {"generation": await self._publication.publish()}

    async def unregister(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        """Take events off their wait queues."""
        self._members.unregister(member_of(connection), request["ids"])
        return {"generation": await self._publication.publish()}

    async def spawned_events(
        self, connection: Connection, request: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the events that the spawn host is to have; its process begins with that."""
        return {"events": self._spawn_host.events_for_process()}

    async def spawn_host_says(
        self, connection: Connection, request: dict[str, Any]
    ) -> dict[str, Any]:
        """Take the spawn host's answer to what it was asked."""
        self._spawn_host.says(request["number"], request["says"])
        return {}

    async def unregister_spawned(
        self, connection: Connection, request: dict[str, Any]
    ) -> dict[str, Any]:
        """Take events off their wait queues, for the spawn host: they had their only job."""
        self._spawn_host.unregister(request["ids"])
        return {"generation": await self._publication.publish()}

    async def children(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        """Return the children of one event."""
        children = await self._spawn_host.children()
        return {"children": children.get(request["event_id"], [])}

    async def leave(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        """Let go of the member; a worker's place stays for its replacement."""
        member = member_of(connection)
        connection.member = None
        if member.kind == KIND_CLIENT:
            connection.release()
            if request["keep"] and member.keep_s:
                self._places.vacate(member)
                return {}
            # Answered when the slot is free: who comes and goes often waits for himself.
            await self._departures.gone(member, LEAVE_S_MAX)
        else:
            member.connection = None
        self._publication.check_passed()
        return {}

    async def acknowledge(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        """Take note that the member has passed a generation."""
        if connection.member is not None:
            self._publication.acknowledge(connection.member, request["generation"])
        return {}

    async def counter(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        """Give a name to one of the member's counters."""
        return {"index": self._members.counter(member_of(connection), request["name"])}

    async def undeliverable(
        self, connection: Connection, request: dict[str, Any]
    ) -> dict[str, Any]:
        """Take a job that its member cannot deliver: for its group, or for the dead letters."""
        member, header, payload = member_of(connection), request["header"], request["payload"]
        if self._departures.is_copy(header[11]):
            return {"forwarded": True}
        if request["try_group"] and self._departures.forward(header, payload):
            return {"forwarded": True}
        try:
            self._departures.keep(
                member,
                request["lane_class"],
                header,
                payload,
                request["reason"],
                request["detail"],
            )
        except OSError as error:
            raise ControlError(f"dead letter cannot be kept: {error}") from error
        if deaths(header):
            event = self._members.registration(header[11])
            log.warning(
                "a job is a dead letter now: %s, worker=%s, point=%r, sequence=%d",
                *(request["reason"], member.name, event and event.point, header[5]),
            )
            self._requests.on_given_up(header, payload)
        return {"forwarded": False}

    async def not_started(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        """Take note why a worker's process could not come up."""
        for spawned in self._spawned.values():
            worker = spawned.by_pid(connection.pid)
            if worker is not None:
                worker.not_started = request["text"]
        self._rolling.on_not_started(connection.pid, request["text"])
        return {}

    async def statistics(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        """Return everything that `aembus stats --json` shows."""
        found = await self._statistics()
        try:
            children = await self._spawn_host.children()
        except ControlError as error:
            log.warning("children are not shown: %s", error)
            children = {}
        for point in found["points"]:
            for event in point["events"]:
                event["children"] = children.get(event["id"], [])
        return found

    async def stop(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        """Begin to stop the bus."""
        self._stop(f"asked by pid {connection.pid}")
        return {}
