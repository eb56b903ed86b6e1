"""The supervisor's process: builds the bus, runs it in one event loop, and takes it down in order.

Start: lock, sweep, registry and own inbox, services, control socket, workers.
Stop: close the intakes (listeners, timers), drain the workers, flush outputs, stop everybody, tell
the rest that the bus is broken, make dead letters of what is left, remove every name.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from aembus.errors import AembusError, ServiceLoadError, SupervisorError
from aembus.hosting.hosting import Hosting
from aembus.routing import STATE_DEGRADED, STATE_RUNNING
from aembus.sender import Sender
from aembus.shm import lanes, layout, names, registry
from aembus.shm.doorbell import PipeBell, open_bell
from aembus.shm.inbox import Inbox
from aembus.shm.registry import RegistryReader, RegistryWriter
from aembus.shm.segment import Segment
from aembus.supervisor import outside
from aembus.supervisor.configuration import Configuration, WorkerSpec
from aembus.supervisor.control import Connection, ControlServer
from aembus.supervisor.dead_letters import DeadLetters
from aembus.supervisor.departures import Departures
from aembus.supervisor.fleet import Fleet
from aembus.supervisor.inboxes import Inboxes
from aembus.supervisor.inspection import bus_statistics
from aembus.supervisor.letter_file import default_directory
from aembus.supervisor.members import (
    KIND_CLIENT,
    KIND_HOST,
    KIND_SUPERVISOR,
    KIND_WORKER,
    STATE_STARTING,
    SUPERVISED,
    Member,
    Members,
)
from aembus.supervisor.operations import Operations
from aembus.supervisor.ownership import BusLock, state_owned, sweep
from aembus.supervisor.places import Places
from aembus.supervisor.publication import Publication
from aembus.supervisor.replay import Replay
from aembus.supervisor.requests import Requests
from aembus.supervisor.restarts import GiveUp, Restart
from aembus.supervisor.service_hosts import ServiceHosts
from aembus.supervisor.services import Services
from aembus.supervisor.spawn_host import SpawnHost
from aembus.supervisor.summary import Summary, summarise
from aembus.supervisor.watchdog import Watchdog
from aembus.supervisor.workers import Worker, Workers

log = logging.getLogger("aembus")

WORKER_MODULE: Final = "aembus.worker"
HOST_MODULE: Final = "aembus.hosting.process"
ABORT_S: Final = 0.4  # between SIGABRT (which dumps the stack) and SIGKILL
HUNG_UP_S: Final = 1.0  # after that, the end of a connection without a death is told
END_S: Final = 0.2  # for activations that run when the bus ends


class SupervisorProcess:
    """One run of a bus.

    Args:
        configuration: what to run.
        on_ready: called once when every worker has come up.
    """

    def __init__(self, configuration: Configuration, on_ready: Callable[[], None]) -> None:
        self._configuration = configuration
        self._on_all_ready = on_ready
        self._bus = configuration.bus
        self._nonce = names.new_nonce()
        self._started_at = time.monotonic()
        self._stop_reason = ""
        self._stop_event = asyncio.Event()
        self._failure: AembusError | None = None
        self._ready = False
        self._dismissed = False  # the workers were told to stop
        self._processes: list[Workers] = []  # in the order in which they are started
        directory = configuration.state_directory
        self._dead_letters = DeadLetters(
            Path(directory) if directory else default_directory(self._bus)
        )

    async def run(self) -> Summary:
        """Run the bus until a signal or a stop request, and return what it came to.

        Raises: BusAlreadyRunning, OutOfSharedMemory, ServiceLoadError, SupervisorError when a
        worker never came up.  Nothing of the bus is left in either case.
        """
        lanes.check()
        outside.on_stop_signals(self.stop, self._be_quick)
        lock = BusLock(self._bus)
        try:
            removed = sweep(self._bus)
            if removed:
                log.info("removed %d names that an earlier supervisor left", len(removed))
            with state_owned(self._configuration.state_directory):
                return await self._run_locked()
        finally:
            sweep(self._bus)
            lock.release()

    async def _run_locked(self) -> Summary:
        configuration = self._configuration
        self._dead_letters.load()
        self._members = Members(configuration.slots)
        self._inboxes = Inboxes(
            self._bus, self._nonce, configuration.slots, configuration.lane_bytes
        )
        self._spawn_host = SpawnHost(self._members, self._inboxes)
        registry_name = names.shared_name(self._bus, self._nonce, registry.ROLE)
        self._writer = RegistryWriter(registry_name, configuration.registry_bytes)
        try:
            me = self._members.add(KIND_SUPERVISOR, "supervisor", os.getpid(), STATE_RUNNING)
            self._inboxes.create(me.inbox_id, layout.BELL_DESCRIPTOR)
            self._publication = Publication(
                self._writer, self._members, self._document, self._on_published
            )
            self._hosting: Hosting | None = None
            self._services: Services | None = None
            self._publication.publish_now()
            inbox, descriptor = self._open_inbox(me)
            try:
                return await self._run_member(me, inbox, descriptor)
            finally:
                inbox.close()
        finally:
            self._writer.publish_broken()
            self._inboxes.remove_all()
            self._writer.close()

    def _open_inbox(self, me: Member) -> tuple[Inbox, int]:
        segment = Segment.open(self._inboxes.name(me.inbox_id), layout.INBOX_MAGIC)
        try:
            bell = open_bell(self._bus, self._nonce, me.inbox_id, layout.BELL_DESCRIPTOR)
        except BaseException:
            segment.close()
            raise
        assert isinstance(bell, PipeBell)
        return Inbox(segment, bell), bell.descriptor

    async def _run_member(self, me: Member, inbox: Inbox, descriptor: int) -> Summary:
        reader = RegistryReader.open(self._writer.name)
        sender = Sender(self._bus, self._nonce, me.slot, me.incarnation, reader, inbox.wait)
        self._departures = Departures(
            self._nonce,
            self._members,
            self._inboxes,
            self._publication,
            sender,
            self._dead_letters,
        )
        hosting = Hosting(inbox, sender, me.slot, self._departures.keep_parked)
        self._hosting = self._departures.hosting = hosting
        self._host_processes = self._spawner(self._configuration.hosts, HOST_MODULE)
        hosts = self._hosts = ServiceHosts(
            self._members,
            self._inboxes,
            self._publication,
            self._host_processes,
            self._departures.keep_unsent,
        )
        services = self._services = Services(hosting, hosts, self._members, self._publication)
        self._departures.on_process_gone = services.on_member_gone
        self._requests = Requests(self._members, self._inboxes, self._departures, hosting, hosts)
        self._departures.on_given_up = self._requests.on_given_up
        self._places = Places(self._members, self._publication, self._departures, self._requests)
        self._replay = Replay(self._dead_letters, self._members, sender, hosting)
        try:
            return await self._serve(hosting, services, descriptor)
        finally:
            sender.close()
            reader.close()

    def _spawner(self, specs: Sequence[WorkerSpec], module: str) -> Workers:
        processes = Workers(
            self._configuration,
            specs,
            module,
            self._finished,
            self._on_worker_death,
            self._on_worker_restart,
        )
        self._processes.append(processes)
        return processes

    async def _serve(self, hosting: Hosting, services: Services, descriptor: int) -> Summary:
        self._workers = self._spawner(self._configuration.workers, WORKER_MODULE)
        self._spawn_host.workers = self._workers
        hosting.start(descriptor)
        self._fleet = Fleet(
            self._members,
            self._inboxes,
            self._publication,
            self._departures,
            self._workers,
            services.on_member_gone,
        )
        operations = Operations(
            self._nonce,
            self._members,
            self._inboxes,
            self._publication,
            self._departures,
            self._places,
            self._requests,
            self._workers,
            self._host_processes,
            self._fleet.rolling,
            self._spawn_host,
            self._on_worker_ready,
            self._statistics,
            self.stop,
        )
        self._control = ControlServer(
            self._bus,
            {
                **operations.table(),
                **self._fleet.table(),
                **self._replay.table(),
                **services.table(),
                **self._hosts.table(),
            },
            self._on_hang_up,
            self._on_process_gone,
        )
        clock = asyncio.ensure_future(outside.watch_clock(self._on_clock_step))
        parent = asyncio.ensure_future(self._stop_with_parent())
        watchdog = asyncio.ensure_future(
            Watchdog(self._members, self._inboxes, self._workers).run()
        )
        started = False
        try:
            await services.load_first(self._configuration.services)
            self._hosts.add_members()
            for worker in self._workers:
                member = self._members.add(KIND_WORKER, worker.name, 0, STATE_STARTING)
                try:
                    self._inboxes.create(member.inbox_id)
                except BaseException:
                    self._members.remove(member)
                    raise
            self._publication.publish_now()
            self._control.start()
            started = True
            await self._hosts.start(self._stop_event)  # first: workers ask for services
            if not self._stop_event.is_set():
                for worker in self._workers:
                    self._workers.spawn(worker)
                if not len(self._workers):
                    self._all_ready()
            await self._stop_event.wait()
        finally:
            clock.cancel()
            parent.cancel()
            watchdog.cancel()
            summary = await self._take_down(hosting, services, started)
        if self._failure is not None:
            raise self._failure
        return summary

    # --- what happens ---------------------------------------------------------------------------

    def _document(self, announced: bool) -> dict[str, Any]:
        versions = self._services.versions() if self._services is not None else []
        documents = [version.to_document() for version in versions]
        return self._members.document(self._bus, self._nonce, documents, announced=announced)

    def _on_published(self) -> None:
        self._spawn_host.reconcile()
        if self._services is not None:
            self._services.on_registry_changed()

    def _finished(self, worker_name: str) -> int:
        member = self._members.named(worker_name)
        return self._inboxes.finished(member.inbox_id) if member is not None else 0

    def _worker_member(self, worker: Worker) -> Member:
        found = self._members.named(worker.name)
        assert found is not None
        return found

    def _on_worker_ready(self, member: Member) -> None:
        worker = self._workers[member.name]
        self._workers.came_up(worker)
        if worker.on_trial is not None and not worker.on_trial.done():
            worker.on_trial.set_result("")
        if self._spawn_host.is_member(member):
            self._spawn_host.on_ready()
        if self._dismissed and member.connection is not None:
            member.connection.push({"push": "stop"})  # it was not there when the others were told
        if member.restarts:
            log.info("worker %s is up again, pid %d", member.name, member.pid)
        if not self._ready and all(w.history.ever_ready for w in self._workers):
            self._all_ready()

    def _all_ready(self) -> None:
        self._ready = True
        self._on_all_ready()

    def _on_worker_death(self, worker: Worker, decision: Restart | GiveUp) -> None:
        member = self._worker_member(worker)
        self._departures.let_go(member)
        degraded = isinstance(decision, Restart) and decision.degraded
        member.state = STATE_DEGRADED if degraded else STATE_STARTING
        self._fleet.on_death(member)
        try:
            self._see_to_death(member, degraded)
        except Exception:
            log.exception("not all was seen to that worker %s has left", worker.name)
        if isinstance(decision, GiveUp) and not self._stop_event.is_set():
            self._fail(worker, decision)

    def _see_to_death(self, member: Member, degraded: bool) -> None:
        self._inboxes.ring_all()
        if self._spawn_host.is_member(member):
            self._spawn_host.on_death()
        assert self._services is not None
        self._services.on_member_gone(member.slot, member.incarnation)
        self._requests.on_death(member, queued=degraded)
        if not self._stop_event.is_set():
            self._publication.publish_now()

    def _fail(self, worker: Worker, decision: GiveUp) -> None:
        process = worker.process
        code = process.poll() if process is not None else None
        reason = worker.not_started or f"its process ended while it started, exit code {code}"
        if worker.on_trial is not None:
            if not worker.on_trial.done():
                worker.on_trial.set_result(reason)
            return
        if self._worker_member(worker).kind == KIND_HOST:
            self._failure = ServiceLoadError(
                f"service host {worker.name} could not start: {reason}"
            )
        else:
            self._failure = SupervisorError(
                f"worker {worker.name} could not start: {reason} "
                f"(entry point {worker.spec.entry_point}, {decision.reason})"
            )
        self.stop(f"{worker.name} could not start")

    def _on_worker_restart(self, worker: Worker) -> None:
        self._worker_member(worker).restarts += 1

    def _on_hang_up(self, connection: Connection) -> None:
        member = connection.member
        if isinstance(member, Member) and connection.alive:
            loop = asyncio.get_running_loop()
            loop.call_later(HUNG_UP_S, self._warn_of_hung_up, connection)

    @staticmethod
    def _warn_of_hung_up(connection: Connection) -> None:
        member = connection.member
        if isinstance(member, Member) and connection.alive:
            log.warning(
                "member %s hung up but lives; its slot waits for its end, pid=%d",
                member.name,
                connection.pid,
            )

    def _on_process_gone(self, connection: Connection) -> None:
        member = connection.member
        if not isinstance(member, Member) or member.kind != KIND_CLIENT:
            return  # a worker's death comes by its own pidfd
        connection.member = None
        self._inboxes.ring_all()
        self._places.vacate(member)
        self._publication.check_passed()

    async def _statistics(self) -> dict[str, Any]:
        assert self._hosting is not None and self._services is not None
        await self._services.look()
        await self._publication.settle()  # what is shown is what activations go by
        return bus_statistics(
            self._bus,
            self._started_at,
            self._members,
            self._inboxes,
            self._hosting,
            self._services,
            self._dead_letters,
            [p.spare_pid for p in self._processes if p.spare_pid is not None],
        )

    # --- clocks and signals ---------------------------------------------------------------------

    def _on_clock_step(self) -> None:
        # Sleeps on semaphores end by the wall clock.  After a step back they would last too long.
        self._inboxes.ring_all()
        if self._services is not None:
            self._services.on_clock_step()

    async def _stop_with_parent(self) -> None:
        if self._configuration.ends_with_parent:
            await outside.standard_input_ended()
            self.stop("its parent ended")

    def stop(self, reason: str) -> None:
        """Begin to stop the bus.  Idempotent."""
        if not self._stop_event.is_set():
            log.info("stopping: %s", reason)
            self._stop_event.set()

    # --- the end --------------------------------------------------------------------------------

    def _be_quick(self) -> None:
        # The workers; with none left, the service hosts, whose services have no more to flush then.
        for processes in reversed(self._processes):
            if processes.running():
                processes.signal_all(signal.SIGKILL)
                return

    async def _take_down(self, hosting: Hosting, services: Services, started: bool) -> Summary:
        self._stop_event.set()
        timeout_s = self._configuration.stop_timeout_s
        self._fleet.close()
        self._workers.stop_restarting()
        self._places.close()
        hosting.close_intakes()
        self._hosts.close_intakes()
        await self._drain(hosting, timeout_s / 2)
        self._dismissed = True
        for member in self._members:
            if member.kind in SUPERVISED and member.connection is not None:
                member.connection.push({"push": "stop"})
        if not await self._workers.wait_until_gone(timeout_s / 2):
            self._workers.signal_all(signal.SIGABRT)
            if not await self._workers.wait_until_gone(ABORT_S):
                self._workers.signal_all(signal.SIGKILL)
                await self._workers.wait_until_gone(ABORT_S)
        await self._hosts.stop(timeout_s / 2)
        hosting.run_last_turns()
        await hosting.stop()
        await services.stop()
        await self._departures.settle(0.1)
        # First the end, then what is left: else what is sent in between would be lost.
        await self._publication.end(END_S)
        for member in self._members:
            if member.kind != KIND_SUPERVISOR:
                self._departures.empty_into_dead_letters(member, "the bus was stopped")
        restarts = self._workers.restarts
        uptime_s = time.monotonic() - self._started_at
        letters = self._dead_letters.count
        summary = summarise(uptime_s, self._members, self._inboxes, letters, restarts)
        self._inboxes.ring_all()
        if started:
            await self._control.close()
        else:
            self._control.abandon()
        return summary

    async def _drain(self, hosting: Hosting, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while self._workers.running() and time.monotonic() < deadline:
            queued = sum(
                self._inboxes.totals(m.inbox_id).queued
                for m in self._members
                if m.kind in SUPERVISED and m.connection is not None
            )
            if not queued and hosting.idle() and self._hosts.idle():
                return
            await asyncio.sleep(0.005)


async def run_supervisor(configuration: Configuration, on_ready: Callable[[], None]) -> Summary:
    """Run a bus in this process's event loop until it is stopped; see SupervisorProcess.run."""
    return await SupervisorProcess(configuration, on_ready).run()
