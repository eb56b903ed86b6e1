from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import aembus
from aembus.cli.main import main


@contextmanager
def activating(client: aembus.Bus, point: str) -> Iterator[None]:
    """Activate a point again and again, until the end of the block."""
    over = threading.Event()

    def activate() -> None:
        while not over.wait(0.005):
            client.activate(point, "c1", timeout=5.0)

    thread = threading.Thread(target=activate)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_point_where_nobody_is_registered_is_told(
    bus_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may be mistyped, so those that there are stand beside it; and it is traced."""
    with (
        aembus.Supervisor(bus_name, state_directory=tmp_path),
        aembus.connect(bus_name) as client,
    ):
        client.register("call.setup", lambda event, call_id: None, full="drop")
        with activating(client, "call.setup"):
            assert main(["trace", "call.setup", "--count", "1", "--bus", bus_name]) == 0
        said = capsys.readouterr()
        assert "'c1'" in said.out
        assert "nobody" not in said.err
        with activating(client, "call.stup"):
            assert main(["trace", "call.stup", "--count", "1", "--bus", bus_name]) == 0
        said = capsys.readouterr()
        assert said.err.startswith(
            "aembus trace: nobody is registered at 'call.stup' now, points=['call.setup']"
        )
