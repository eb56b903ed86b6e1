from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import aembus
from aembus.cli.main import main
from tests.cli.support import AEMBUS, environment


@contextmanager
def activating(client: aembus.Bus, point: str, data: object = "c1") -> Iterator[None]:
    """Activate a point again and again, until the end of the block."""
    over = threading.Event()

    def activate() -> None:
        while not over.wait(0.005):
            client.activate(point, data, timeout=5.0)

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


@pytest.mark.parametrize(
    ("place", "code", "last"),
    [("a pipe that nobody reads", 0, "shown, 0 dropped"), ("/dev/full", 1, "No space left")],
)
def test_output_that_nobody_takes_ends_it(
    bus_name: str, tmp_path: Path, place: str, code: int, last: str
) -> None:
    """As in `aembus trace POINT | head -1`: it ends at the next job, with a line at most."""
    if place == "/dev/full":
        output = os.open(place, os.O_WRONLY)
    else:
        reading, output = os.pipe()
        os.close(reading)
    with (
        aembus.Supervisor(bus_name, state_directory=tmp_path),
        aembus.connect(bus_name) as client,
    ):
        client.register("call.setup", lambda event, call_id: None, full="drop")
        try:
            with activating(client, "call.setup"):
                ended = subprocess.run(
                    [*AEMBUS, "trace", "call.setup", "--bus", bus_name], stdout=output,
                    stderr=subprocess.PIPE, env=environment(tmp_path), text=True, timeout=20,
                    check=False,
                )  # fmt: skip
        finally:
            os.close(output)
    assert ended.returncode == code
    assert "Traceback" not in ended.stderr
    assert last in ended.stderr.splitlines()[-1]


def test_data_that_json_has_not_got_is_shown(
    bus_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Keys and values that the bus carries and JSON does not are written as Python writes them."""
    data = {("a", 1): {2}, b"b": float("inf"), 3: [b"c"]}
    with (
        aembus.Supervisor(bus_name, state_directory=tmp_path),
        aembus.connect(bus_name) as client,
        activating(client, "odd", data),
    ):
        client.register("odd", lambda event, data: None, full="drop")
        assert main(["trace", "odd", "--count", "2", "--bus", bus_name, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    shown = {"('a', 1)": "{2}", "b'b'": "inf", "3": ["b'c'"]}
    assert [line["data"] for line in lines] == [[shown]] * 2
