"""What may come over the control socket beside what aembus itself says."""

from __future__ import annotations

import asyncio
import select
import socket
import struct
import threading
from pathlib import Path
from typing import Any

import msgpack
import pytest

import aembus
from aembus.control import FRAME_BYTES_MAX, ControlClient, FrameReader, pack_frame
from aembus.services import Service
from aembus.shm import names
from aembus.supervisor.control import StreamToItsEnd
from tests.support.peer import peer_of
from tests.support.running import statistics, until

PLENTY_BYTES = 1 << 20
PATIENCE_S = 1.0


class Odd(Service):
    """A service whose statistics cannot be sent."""

    name = "odd"
    version = "1"

    def statistics(self) -> dict[str, Any]:
        """Return no plain data."""
        return {"seen": {1, 2}}


def framed(body: bytes) -> bytes:
    """Return a frame of anything."""
    return struct.pack(">I", len(body)) + body


@pytest.mark.parametrize(
    ("garbage", "says"),
    [
        (framed(b"\xc1"), "no msgpack"),
        (framed(b"\x92\x01"), "no msgpack"),
        (framed(msgpack.packb({"a": 1}) + b"x"), "no msgpack"),
        (framed(msgpack.packb([1, 2])), "no map"),
        (framed(b""), "no msgpack"),
        (struct.pack(">I", FRAME_BYTES_MAX + 1), "too long"),
    ],
)
def test_garbage_ends_the_connection(
    bus_name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], garbage: bytes, says: str
) -> None:
    """With one line in the log; the bus goes on."""
    with aembus.Supervisor(bus_name, state_directory=tmp_path):
        with peer_of(bus_name) as peer:
            peer.socket.sendall(garbage)
            assert peer.read() == {}
        assert statistics(bus_name)["bus"] == bus_name
    log = capfd.readouterr().err
    assert says in log
    assert "Traceback" not in log


@pytest.mark.parametrize("cut", [1, 4, 9])
def test_half_a_message_is_waited_for(bus: str, cut: int) -> None:
    """And costs nobody else anything."""
    message = pack_frame({"id": 7, "op": "workers"})
    with peer_of(bus) as peer:
        peer.socket.sendall(message[:cut])
        assert statistics(bus)["bus"] == bus
        peer.socket.sendall(message[cut:])
        assert peer.read() == {"id": 7, "result": {"workers": []}}


@pytest.mark.parametrize(
    "request_", [{}, {"op": "join"}, {"op": ["x"]}, {"op": "scale", "kind": 1}, {"op": "register"}]
)
def test_what_cannot_be_done_is_answered(bus: str, request_: dict[str, Any]) -> None:
    """Fields that are missing or wrong are an error for whoever asked."""
    with peer_of(bus) as peer:
        peer.send({"id": 7, **request_})
        assert set(peer.read()) == {"id", "error"}


def test_a_connection_joins_once(bus: str) -> None:
    """Also when it has left: nobody would see the death of its process any more."""
    join = {"op": "join", "kind": "client", "name": "", "keep_s": 0.0}
    with peer_of(bus) as peer:
        peer.send({"id": 1, **join})
        assert "result" in peer.read()
        peer.send({"id": 2, **join})
        assert "joined already" in peer.read()["error"]["text"]
        peer.send({"id": 3, "op": "leave", "keep": False})
        assert peer.read() == {"id": 3, "result": {}}
        peer.send({"id": 4, **join})
        assert "joined already" in peer.read()["error"]["text"]
    assert len(statistics(bus)["members"]) == 1


def test_who_takes_no_answers_is_not_read_from(bus: str) -> None:
    """The supervisor keeps so many answers for somebody who asks on and on, and no more."""
    request = pack_frame({"id": 7, "op": "statistics"})
    with peer_of(bus) as peer:
        peer.socket.setblocking(False)
        sent = 0
        while sent < PLENTY_BYTES and select.select([], [peer.socket], [], PATIENCE_S)[1]:
            sent += peer.socket.send(request * 100)
        assert sent < PLENTY_BYTES
        assert statistics(bus)["bus"] == bus


def test_statistics_that_cannot_be_sent_are_left_out(bus_name: str, tmp_path: Path) -> None:
    """Those of the others are shown, and so is the service."""
    with aembus.Supervisor(
        bus_name, services=[f"{__name__}:Odd", "timer"], state_directory=tmp_path
    ):
        found = {service["name"]: service for service in statistics(bus_name)["services"]}
        assert "seen" not in found["odd"]
        assert found["odd"]["failures"] == 1
        assert "running" in found["timer"]


def test_a_supervisor_that_talks_nonsense_is_gone(bus_name: str) -> None:
    """Whoever waits for an answer does not wait for its time-out."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(names.control_path(bus_name)))
        server.listen()
        broken = threading.Event()

        def talk() -> None:
            peer, _ = server.accept()
            with peer:
                peer.sendall(pack_frame({"hello": "x", "protocol": 1}))
                reader = FrameReader()
                while not any("op" in frame for frame in reader.feed(peer.recv(65536))):
                    pass
                peer.sendall(framed(b"\xc1"))
                broken.wait(20.0)

        talking = threading.Thread(target=talk)
        talking.start()
        try:
            client = ControlClient(bus_name, on_broken=broken.set)
            with pytest.raises(aembus.BusBroken):
                client.request("statistics", timeout_s=20.0)
            assert broken.wait(20.0)
            client.close()
        finally:
            broken.set()
            talking.join()
            names.control_path(bus_name).unlink()


def test_a_member_without_threads_holds_up_no_departure(
    bus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its watcher needs one if an activation is under way; it waits, and goes on."""
    with aembus.connect(bus) as client:
        start, refused = threading.Thread.start, threading.Event()

        def no_more_threads(thread: threading.Thread) -> None:
            if thread.name == "aembus-passing":
                refused.set()
                raise RuntimeError("can't start new thread")
            start(thread)

        with client._sender._gate.lock:  # as while an activation is under way
            monkeypatch.setattr(threading.Thread, "start", no_more_threads)
            other = aembus.connect(bus)
            leaving = threading.Thread(target=other.close)
            start(leaving)
            assert refused.wait(20.0)
        leaving.join()
        until("it has left", lambda: len(statistics(bus)["members"]) == 2)
        client.register("still told", lambda event: None)


def test_what_was_said_before_a_reset_is_heard() -> None:
    """A process that is killed with something unread resets its connection."""

    async def read_all() -> list[bytes]:
        reader = StreamToItsEnd()
        reader.feed_data(b"the last words")
        reader.set_exception(ConnectionResetError())
        return [await reader.read(100), await reader.read(100)]

    assert asyncio.run(read_all()) == [b"the last words", b""]
