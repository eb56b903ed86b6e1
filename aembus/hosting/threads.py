"""The threads in which services do what blocks: those of `asyncio.to_thread`.

As a ThreadPoolExecutor, which it stands in for in the event loop of a host, with one difference:
its threads are daemons.  So one that blocks for ever does not keep a bus that has stopped from
ending; it gets two seconds, is named in the log, and ends with the process.
"""

from __future__ import annotations

import logging
import queue
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

log = logging.getLogger("aembus")

END_S_MAX: Final = 2.0  # for what no service's stop() has waited for


class Threads(ThreadPoolExecutor):
    """As many threads as a ThreadPoolExecutor has, begun when they are needed."""

    def __init__(self) -> None:
        super().__init__()
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._begun: list[threading.Thread] = []
        self._idle = 0  # threads that wait for work which is not there yet
        self._closed = False

    def submit(self, function: Callable[..., Any], /, *args: Any, **named: Any) -> Future[Any]:
        """See Executor."""
        future: Future[Any] = Future()

        def work() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function(*args, **named))
                except BaseException as error:
                    future.set_exception(error)

        with self._lock:
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._work.put(work)
            if self._idle:
                self._idle -= 1
            elif len(self._begun) < self._max_workers:
                thread = threading.Thread(target=self._run, daemon=True)
                thread.start()
                self._begun.append(thread)
        return future

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()
            del work  # and what it holds
            with self._lock:
                if self._work.empty():
                    self._idle += 1

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more work, and wait for the threads for END_S_MAX seconds in all."""
        with self._lock:
            self._closed = True
            for _ in self._begun:
                self._work.put(None)
        deadline = time.monotonic() + END_S_MAX
        for thread in self._begun if wait else ():
            thread.join(max(deadline - time.monotonic(), 0.0))
            frame = sys._current_frames().get(thread.ident or 0)
            if thread.is_alive() and frame is not None:
                where = f"{frame.f_code.co_filename}, line {frame.f_lineno}"
                log.error("a thread of a service does not end, and is left behind, at=%r", where)
