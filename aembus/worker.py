"""The process that a supervisor spawns for a worker: ``python -m aembus.worker``.

Reads its configuration as one JSON object from standard input, imports the entry point, joins the
bus under the worker's name, calls ``entry_point(bus)``, publishes what that registered, and runs
until the supervisor says stop or dies.  The terminal's Ctrl-C and a SIGTERM to the whole group are
the supervisor's business and ignored here.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from aembus.bus import Bus
from aembus.control import ControlClient
from aembus.coroutines import is_coroutine
from aembus.errors import AembusError, BusAlreadyRunning, BusBroken, SupervisorError, text_of
from aembus.runner import spin_from_environment
from aembus.supervised import EXIT_BROKEN, EXIT_NOT_STARTED, begin, end_after_grace

log = logging.getLogger("aembus")


def load_entry_point(spec: str) -> Callable[[Bus], object]:
    """Return the function that ``module:function`` names.

    Raises SupervisorError saying which part was not found; an exception inside the module's own
    code comes through as it is.
    """
    module_name, colon, function_name = spec.partition(":")
    if not colon or not module_name or not function_name:
        raise SupervisorError(f"an entry point is written module:function, entry_point={spec!r}")
    try:
        module = importlib.import_module(module_name)
    except BusAlreadyRunning as error:
        raise SupervisorError(
            "its module starts a bus when it is imported, as each worker does; start that under "
            f"if __name__ == '__main__', entry_point={spec!r}"
        ) from error
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise  # a module that the entry point's module imports
        raise SupervisorError(
            "no module of this name can be imported; install it, or start in its directory, "
            f"module={error.name!r}, entry_point={spec!r}, directory={os.getcwd()!r}"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        names = sorted(n for n, v in vars(module).items() if callable(v) and n[0] != "_")
        raise SupervisorError(
            f"the module has no such function, entry_point={spec!r}, it has={names[:12]}"
        )
    if is_coroutine(function):
        raise SupervisorError(
            "an entry point is a plain function; it may call asyncio.run(...) around bus.serve(), "
            f"entry_point={spec!r}"
        )
    return function  # type: ignore[no-any-return]


def run_worker(configuration: dict[str, Any]) -> int:
    """Be the worker that `configuration` describes; return the process's exit code."""
    bus_name, name, spec = (configuration[k] for k in ("bus", "name", "entry_point"))
    sys.path[:0] = [p for p in configuration["path"] if p not in sys.path]
    sys.argv = [spec, *configuration["arguments"]]
    bus: Bus | None = None
    try:
        main = load_entry_point(spec)
        bus = Bus(bus_name, kind="worker", name=name)
        bus.on_broken(end_after_grace)
        main(bus)
        spin = spin_from_environment()  # before it is up: what is wrong here ends the start
        bus.publish_registrations()
    except BusBroken:
        return EXIT_BROKEN
    except AembusError as error:
        return _report_not_started(bus_name, name, f"{type(error).__name__}: {text_of(error)}")
    except Exception as error:
        log.exception("worker %s: its entry point %s raised", name, spec)
        return _report_not_started(bus_name, name, f"{type(error).__name__}: {text_of(error)}")
    try:
        bus.run(spin=spin)
    except BusBroken as error:
        log.error("worker %s ends: %s", name, error)
        return EXIT_BROKEN
    finally:
        bus.close()
    return 0


def _report_not_started(bus_name: str, name: str, text: str) -> int:
    try:
        control = ControlClient(bus_name)
        control.request("not_started", name=name, text=text)
        control.close()
    except AembusError:
        log.error("worker %s could not start: %s", name, text)
    return EXIT_NOT_STARTED


def main() -> int:
    """Entry point of the process."""
    return run_worker(begin())


if __name__ == "__main__":
    sys.exit(main())
