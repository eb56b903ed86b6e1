"""The processes of a scene: the supervisor, clients that send or receive, and guests.

``python -m tests.crash.scene_actors supervisor|client|guest STAGE [NUMBER or NAME]``; a worker's
entry point is scene_receivers.worker.  Signals: SIGUSR2 ends a process at once, by ``os._exit``;
SIGUSR1 ends its connection to the supervisor and lets it live; SIGTERM lets a guest leave.
"""

from __future__ import annotations

import faulthandler
import json
import signal
import sys

import aembus
from tests.crash.parent_death import die_with_parent
from tests.crash.scene_receivers import be_a_guest, be_a_receiver
from tests.crash.scene_senders import be_a_sender
from tests.crash.scene_stage import Stage, say


def supervise(stage: Stage) -> None:
    """Be the supervisor, in this process; say "ready" and how it ended."""
    workers = [
        aembus.WorkerSpec(
            "w", "tests.crash.scene_receivers:worker", stage.workers, (stage.to_json(),)
        )
    ]
    supervisor = aembus.Supervisor(
        stage.bus,
        workers=workers,
        slots=stage.slots,
        lane_bytes=stage.lane_bytes,
        state_directory=stage.state,
        stop_timeout_s=stage.stop_timeout_s,
        handler_timeout_s=stage.handler_timeout_s,
        log_level=stage.log_level,
    )
    try:
        supervisor.run(on_ready=lambda: say("ready"))
    except aembus.AembusError as error:
        say(f"{type(error).__name__}: {error}")
        sys.exit(1)
    say("stopped")


def main(arguments: list[str]) -> None:
    """Be one of a scene's processes."""
    die_with_parent()
    faulthandler.register(signal.SIGQUIT)  # the scene asks where everybody is when it fails
    role, stage = arguments[0], Stage(**json.loads(arguments[1]))
    if role == "supervisor":
        import logging

        logging.basicConfig(
            level=stage.log_level, format="%(asctime)s %(levelname)s [supervisor] %(message)s"
        )
        supervise(stage)
    elif role == "guest":
        be_a_guest(stage, arguments[2])
    elif (number := int(arguments[2])) < stage.senders:
        be_a_sender(stage, number)
    else:
        be_a_receiver(stage, number)


if __name__ == "__main__":
    main(sys.argv[1:])
