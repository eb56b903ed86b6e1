"""What is done to a scene: its members are killed, stopped, invited and told to hang up."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time

from tests.crash.scene_base import GONE_S, START_S, ReceiverState, SceneBase
from tests.crash.scene_stage import client_names


class SceneFaults(SceneBase):
    """A scene to which something can be done."""

    def note(self, fault: str) -> None:
        """Write down a fault, for the text of a violation."""
        self.faults.append(f"{time.monotonic():.3f} {fault}")

    def kill_worker(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """End a worker's process by force."""
        worker = self._receivers[name]
        self.note(f"{number.name} to worker {name}, pid {worker.pid}")
        self._end_by_force(worker.pid, number)
        self._note_end(worker)
        self._killed_at_ns[name] = time.monotonic_ns()

    @staticmethod
    def _note_end(receiver: ReceiverState) -> None:
        receiver.running = False
        receiver.killed_at, receiver.killed_pid = time.monotonic(), receiver.pid

    def kill_receiver(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """End the process of a worker, or of another receiver, by force; another one follows."""
        clients = client_names(self.stage)
        if name in clients:
            self.kill_producer(clients[name], number)
            self._note_end(self._receivers[name])
        else:
            self.kill_worker(name, number)

    def kill_starting_worker(self, pid: int) -> None:
        """Kill a worker's process that has not come up yet."""
        self.note(f"SIGKILL to a worker that starts, pid {pid}")
        self._end_by_force(pid, signal.SIGKILL)
        for worker in self._receivers.values():
            if worker.killed_at:
                worker.killed_at = time.monotonic()

    def kill_spare(self, pid: int) -> None:
        """Kill a process that waits to replace a worker."""
        self.note(f"SIGKILL to a spare, pid {pid}")
        self._end_by_force(pid, signal.SIGKILL)

    def kill_producer(self, number: int, how: signal.Signals = signal.SIGKILL) -> None:
        """End a producer's, or another client's, process by force, and start another."""
        process = self._clients[number]
        self.note(f"{how.name} to {self.stage.clients[number]} {number}, pid {process.pid}")
        self._end_by_force(process.pid, how)
        process.wait()
        self._spawn_client(number)

    def _end_by_force(self, pid: int, number: signal.Signals) -> None:
        self.accounts.ended_by_force.add(pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def kill_supervisor(self) -> None:
        """Kill the supervisor, see everybody end, and judge what was."""
        assert self._supervisor is not None
        self.note(f"SIGKILL to the supervisor, pid {self._supervisor.pid}")
        self._supervisor.kill()
        self._supervisor.wait()
        self.bury_supervisor()

    def kill_starting_supervisor(self, after_s: float) -> None:
        """Kill a supervisor that was begun, after so many seconds; its workers end, too."""
        process = self._supervisor
        assert process is not None
        assert process.stdout is not None
        time.sleep(after_s)  # the moment is what is tried out
        self.note(f"SIGKILL to the supervisor, {after_s:.3f} s after it was started")
        process.kill()
        process.wait()
        process.stdout.close()
        self._wait("workers end after their supervisor", GONE_S, lambda: not self.worker_pids())

    def kill_stopping_supervisor(self, after_s: float) -> None:
        """Tell the supervisor to stop, kill it after so many seconds, and judge what was."""
        process = self._supervisor
        assert process is not None
        process.terminate()
        time.sleep(after_s)  # the moment is what is tried out
        self.note(f"SIGKILL to the supervisor, {after_s:.3f} s after it was told to stop")
        process.kill()
        process.wait()
        self.bury_supervisor()

    def stop_under_load(self) -> None:
        """Stop the bus in order while the clients send, and judge what was."""
        self.note("SIGTERM to the supervisor, under load")
        self.end_supervisor()
        self.bury_supervisor()

    def end_supervisor(self) -> None:
        """Stop the supervisor with SIGTERM."""
        process = self._supervisor
        assert process is not None
        process.terminate()
        said = self.read_line(process, START_S)
        if said != "stopped" or process.wait(START_S):
            self.fail(f"the supervisor did not stop well: {said!r}, {process.returncode}")

    def bury_supervisor(self) -> float:
        """Judge what a dead supervisor leaves; return how long its workers lived on, seconds."""
        began = time.monotonic()
        assert self._supervisor is not None
        if self._supervisor.stdout is not None:
            self._supervisor.stdout.close()
        self.board.be_quiet()
        self._wait("workers end after their supervisor", GONE_S, lambda: not self.worker_pids())
        took_s = time.monotonic() - began
        self._await_guests()
        self._wait("clients notice", GONE_S, self._all_disconnected)
        self.take_logs()
        self.accounts.settle_broken(self.view.queued_anywhere() if self._view else 0)
        self._judge_accounts()
        self.sums.add(self.accounts.sums)
        if self._view is not None:
            self.rescued_wakeups += self.rescued_now()
        return took_s

    def _all_disconnected(self) -> bool:
        return all(
            self.board.connected(n) != p.pid or p.poll() is not None
            for n, p in self._clients.items()
        )

    def restart_after_death(self) -> None:
        """Start the next supervisor, at the first try, and let the clients come back."""
        self.start_supervisor()
        self._wait("clients come back", START_S, self._all_connected)

    def hang_up(self, pid: int) -> None:
        """Let a member end its connection to the supervisor and live on."""
        self.note(f"pid {pid} hangs up")
        self.accounts.hung_up.add(pid)
        os.kill(pid, signal.SIGUSR1)

    def worker_hangs_up(self, name: str) -> None:
        """Let a worker hang up; it ends by itself then, and is replaced."""
        worker = self._receivers[name]
        self.hang_up(worker.pid)
        self._note_end(worker)

    def stop_process(self, pid: int) -> None:
        """SIGSTOP."""
        self.note(f"SIGSTOP to pid {pid}")
        self._stopped.add(pid)
        os.kill(pid, signal.SIGSTOP)

    def continue_process(self, pid: int) -> None:
        """SIGCONT."""
        self.note(f"SIGCONT to pid {pid}")
        os.kill(pid, signal.SIGCONT)
        self._stopped.discard(pid)

    # --- guests -----------------------------------------------------------------------------------

    def invite(self) -> str:
        """Start a member that joins the group; return its name.  It comes up meanwhile."""
        self._guests_begun += 1
        name = f"guest-{self._guests_begun}"
        self._guests[name] = self.spawn("guest", name)
        self.note(f"{name} comes, pid {self._guests[name].pid}")
        return name

    def await_guest(self, name: str) -> None:
        """Wait until a guest takes part."""
        if self.read_line(self._guests[name], START_S) != "ready":
            self.fail(f"{name} did not join")

    def guest_pid(self, name: str) -> int:
        """Return a guest's PID."""
        return self._guests[name].pid

    def see_off(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """Let a guest leave (SIGTERM), or end it by force, or let it hang up (SIGUSR1)."""
        guest = self._guests[name]
        self.note(f"{name} goes by {number.name}, pid {guest.pid}")
        if number == signal.SIGUSR1:
            self.hang_up(guest.pid)
        elif number == signal.SIGTERM:
            os.kill(guest.pid, number)
        else:
            self._end_by_force(guest.pid, number)

    def await_unlisted(self, name: str) -> None:
        """Wait until the registry does not show a guest any more."""
        pid = self._guests[name].pid
        self._wait(
            "the registry is published without a guest",
            START_S,
            lambda: all(member.pid != pid for member in self.view.members()),
        )

    def _await_guests(self) -> None:
        for guest in self._guests.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                guest.wait(START_S)
            if guest.returncode is None:
                self.fail(f"a guest does not go, pid {guest.pid}")
            assert guest.stdout is not None
            guest.stdout.close()
        self._guests.clear()
