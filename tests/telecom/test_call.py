from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Callable

import pytest

from examples.telecom import call
from examples.telecom.call_client import misfit
from examples.telecom.sip_message import Request, Response, build_response, parse
from tests.telecom.support import LocalServer, invite, request


def place(server: LocalServer, **options: object) -> call.Report:
    """Run calls against a server in the same loop."""

    async def scenario() -> call.Report:
        async with server:
            return await call.place_calls(*server.address, **options)  # type: ignore[arg-type]

    return asyncio.run(scenario())


def test_calls_go_well() -> None:
    """All calls at once, over several connections, are set up and ended."""
    server = LocalServer()
    report = place(server, calls=50, rate=1e6, connections=3)
    assert (report.ok, report.failed, report.causes) == (50, 0, {})
    assert server.counted == {"calls": 50, "calls_ended": 50}
    assert set(report.latency_ms) == {"setup", "bye"}


def test_calls_that_ring() -> None:
    """A call that rings has a time to its 180, before the one to its 200."""
    report = place(LocalServer(ring_s=0.02), calls=3, rate=1e6)
    assert report.ok == 3
    assert report.latency_ms["setup"]["p50"] >= 20.0
    assert report.latency_ms["ringing"]["max"] < report.latency_ms["setup"]["max"]


def test_a_call_that_is_not_answered() -> None:
    """A call without a final response fails when its time is up, with the cause."""
    report = place(LocalServer(ring_s=60.0), calls=2, rate=1e6, timeout_s=0.05)
    assert (report.ok, report.failed) == (0, 2)
    assert report.causes == {"no final response to INVITE within 0.05 s": 2}


def test_a_connection_that_is_lost() -> None:
    """Calls on a connection that ends fail, those that wait and those that come after."""

    async def scenario() -> call.Report:
        async with LocalServer(ring_s=60.0) as server:
            asyncio.get_running_loop().call_later(0.05, server.drop_connections)
            return await call.place_calls(*server.address, calls=3, rate=25.0)

    report = asyncio.run(scenario())
    assert report.causes == {"connection lost": 3}


def test_stopping_early() -> None:
    """When it is stopped, calls that stand are ended at once and no more are placed."""

    async def scenario() -> tuple[call.Report, dict[str, int]]:
        stop = asyncio.Event()
        async with LocalServer() as server:
            asyncio.get_running_loop().call_later(0.05, stop.set)
            report = await call.place_calls(
                *server.address, calls=1000, rate=100.0, hold_s=600.0, stop=stop
            )
            return report, server.counted

    report, counted = asyncio.run(scenario())
    assert 0 < report.ok < 1000
    assert report.failed == 0
    assert counted["calls_ended"] == report.ok
    assert "not placed" in call.as_text(report)


def test_ctrl_c() -> None:
    """Ctrl-C ends the calls that stand, and prints what there is."""

    async def scenario() -> tuple[int | None, str, str, int]:
        async with LocalServer() as server:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "examples.telecom.call", "--calls", "5", "--hold", "600"),
                f"{server.address[0]}:{server.address[1]}",
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            await asyncio.wait_for(server.has_counted("calls", 5), 20.0)
            process.send_signal(signal.SIGINT)
            out, err = await asyncio.wait_for(process.communicate(), 20.0)
            return process.returncode, out.decode(), err.decode(), server.counted["calls_ended"]

    code, out, err, ended = asyncio.run(scenario())
    assert (code, err, ended) == (0, "", 5)  # they all were placed, and ended well
    assert "5 of 5 calls" in out


def test_a_server_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    """Where nobody listens the command says so and exits with 1."""
    assert call.main(["127.0.0.1:1", "--calls", "1"]) == 1
    assert "127.0.0.1:1" in capsys.readouterr().err


@pytest.mark.parametrize("as_json", [True, False])
def test_the_command(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """The command prints a table or JSON, and its code says whether all calls went well."""

    async def serve(run: Callable[[list[str]], int]) -> int:
        async with LocalServer() as server:
            target = f"{server.address[0]}:{server.address[1]}"
            arguments = [target, "--calls", "5", "--rate", "1000"] + ["--json"] * as_json
            return await asyncio.to_thread(run, arguments)

    def run(arguments: list[str]) -> int:
        options = call.parse_arguments(arguments)
        report = asyncio.run(
            call.place_calls(options.host, options.port, calls=options.calls, rate=options.rate)
        )
        return call.finish(report, options.json)

    assert asyncio.run(serve(run)) == 0
    printed = capsys.readouterr().out
    if as_json:
        assert json.loads(printed)["ok"] == 5
    else:
        assert "5 of 5 calls" in printed
        assert "setup" in printed


@pytest.mark.parametrize(
    "arguments",
    [["5060"], ["host:"], ["host:0"], ["host:x"], ["h:1", "--calls", "0"], ["h:1", "--hold", "-1"]],
)
def test_wrong_usage(arguments: list[str]) -> None:
    """Wrong usage exits with 2."""
    with pytest.raises(SystemExit) as caught:
        call.parse_arguments(arguments)
    assert caught.value.code == 2


def test_percentiles() -> None:
    """Percentiles are of the nearest rank."""
    assert call.percentiles([float(n) for n in range(1, 101)]) == {
        "p50": 50.0,
        "p90": 90.0,
        "p99": 99.0,
        "max": 100.0,
    }
    assert call.percentiles([7.0]) == {"p50": 7.0, "p90": 7.0, "p99": 7.0, "max": 7.0}
    assert call.percentiles([]) == {}


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (b"", b"", ""),
        (b"branch=z9hG4bK-1", b"branch=z9hG4bK-2", "another Via"),
        (b"branch=z9hG4bK-1", b"branch=z9hG4bK-1;received=192.0.2.1", ""),
        (b"Via: ", b"Via: SIP/2.0/TCP proxy, ", "another Via"),
        (b";tag=from-1", b";tag=from-2", "another From"),
        (b"Call-ID: ", b"Call-ID: x", "another Call-ID"),
        (b"CSeq: 1", b"CSeq: 2", "another CSeq"),
        (b"To: <sip:service", b"To: <sip:other", "another To"),
        (b";tag=mine", b"", "no To-tag"),
        (b";tag=mine", b";tag=other", "another To-tag"),
        (b"200 OK", b"200 ", "no reason phrase"),
    ],
)
def test_responses_are_looked_at_strictly(old: bytes, new: bytes, problem: str) -> None:
    """Each thing that a response must copy is compared."""
    asked = parse(invite())
    assert isinstance(asked, Request)
    answer = parse(build_response(asked, 200, b"mine").replace(old, new, 1))
    assert isinstance(answer, Response)
    assert misfit(answer, asked, b"mine") == problem


def test_a_100_needs_no_tag() -> None:
    """Only a 100 may come without a To-tag."""
    asked = parse(request())
    assert isinstance(asked, Request)
    answer = parse(build_response(asked, 100))
    assert isinstance(answer, Response)
    assert misfit(answer, asked, None) == ""
