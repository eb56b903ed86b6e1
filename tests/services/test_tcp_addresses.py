"""Where the service listens and connects: TLS, proxies, unix sockets, shared ports, systemd."""

from __future__ import annotations

import math
import os
import shutil
import socket
import ssl
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import aembus
from aembus.services.proxy_protocol import SIGNATURE
from tests.support.running import program, until
from tests.support.tcp import Peer, Server, note_addresses, serving

CERTIFICATES = Path(__file__).parent / "certificates"
AUTHORITY = str(CERTIFICATES / "ca.pem")
FOLDER = "TEST_TCP_FOLDER"


def main(bus: aembus.Bus) -> None:
    """Entry point: listeners of several kinds that echo lines, with the peer's address."""
    tcp = bus.service("tcp")
    folder = os.environ[FOLDER]
    addresses = {}

    def listen(name: str, address: str = "127.0.0.1:0", **options: object) -> None:
        addresses[name] = tcp.listen(address, name, framer="line", with_peer=True, **options)

    certificate = f"{folder}/server.pem"
    listen("tls", tls={"certificate": certificate}, handshake_s_max=0.5)
    listen("mutual", tls={"certificate": certificate, "authorities": AUTHORITY})
    listen("proxied", proxy_protocol=True, connections_per_address_max=1, handshake_s_max=0.5)
    listen("proxied tls", proxy_protocol=True, tls={"certificate": certificate})
    listen("unix", f"unix:{folder}/socket", mode=0o640)
    listen("drained")
    note_addresses(addresses)

    @bus.on("tls")
    @bus.on("mutual")
    @bus.on("proxied")
    @bus.on("proxied tls")
    @bus.on("unix")
    @bus.on("drained")
    def echo(event: aembus.Event, connection: int, line: bytes, peer: str) -> None:
        if line == b"much":
            tcp.send(connection, b"x" * 200_000 + b"\n")
        else:
            tcp.send(connection, line + b" of " + peer.encode() + b"\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the server's certificate, and its unix socket."""
    made = tmp_path_factory.mktemp("tcp")
    shutil.copy(CERTIFICATES / "first.pem", made / "server.pem")
    return made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    """One bus for all tests of this file."""
    os.environ[FOLDER] = str(folder)
    # What a server that was killed has left.
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(folder / "socket"))
    name = f"t{os.getpid()}-addresses"
    with serving(name, folder, "tests.services.test_tcp_addresses:main") as running:
        yield running
    assert not (folder / "socket").exists()


def trusting(certificate: str | None = None) -> ssl.SSLContext:
    """Return a client's context that trusts the tests' authority."""
    context = ssl.create_default_context(cafile=AUTHORITY)
    if certificate is not None:
        context.load_cert_chain(CERTIFICATES / certificate)
    return context


def tls_peer(server: Server, name: str, context: ssl.SSLContext, header: bytes = b"") -> Peer:
    """Return a TLS client of a listener."""
    connected = socket.create_connection(server.address(name), 10.0)
    try:
        connected.sendall(header)
        return Peer(context.wrap_socket(connected, server_hostname="localhost"))
    except BaseException:
        connected.close()
        raise


def proxy_header(source: str, port: int) -> bytes:
    """Return the header of a proxy that speaks for a peer."""
    addresses = socket.inet_aton(source) + socket.inet_aton("127.0.0.1")
    return SIGNATURE + struct.pack(">BBH", 0x21, 0x11, 12) + addresses + struct.pack(">HH", port, 1)


# --- TLS ------------------------------------------------------------------------------------------


def common_name(peer: Peer) -> str:
    """Return whose certificate a server has shown."""
    assert isinstance(peer.socket, ssl.SSLSocket)
    shown = peer.socket.getpeercert()
    assert shown is not None
    return str(dict(pair[0] for pair in shown["subject"])["commonName"])  # type: ignore[misc]


def test_tls_is_spoken(server: Server) -> None:
    """Lines go both ways, long ones too, and the end is said and not only seen."""
    with tls_peer(server, "tls", trusting()) as peer:
        assert peer.ask(b"hello") == b"hello of " + peer.address
        assert len(peer.ask(b"much")) == 200_000
        assert isinstance(peer.socket, ssl.SSLSocket)
        peer.file.close()
        peer.socket.unwrap().close()


def test_certificates_are_replaced_without_a_restart(server: Server, folder: Path) -> None:
    """After reload() new connections are shown the new one; files that do not fit are refused."""
    address = server.path("tls")
    with aembus.connect(server.bus) as client, tls_peer(server, "tls", trusting()) as old:
        tcp = client.service("tcp")
        assert common_name(old) == "first"
        shutil.copy(CERTIFICATES / "second.pem", folder / "server.pem")
        tcp.reload(address)
        with tls_peer(server, "tls", trusting()) as new:
            assert common_name(new) == "second"
            (folder / "server.pem").write_text("half a fi")
            with pytest.raises(aembus.CallFailed, match=r"do not fit.*server\.pem"):
                tcp.reload(address)
            assert new.ask(b"x").startswith(b"x of")
        assert old.ask(b"x").startswith(b"x of")
        with tls_peer(server, "tls", trusting()) as still:
            assert common_name(still) == "second"
        shutil.copy(CERTIFICATES / "first.pem", folder / "server.pem")

        def shows_the_first() -> bool:
            with tls_peer(server, "tls", trusting()) as third:
                return common_name(third) == "first"

        until("it is found by itself", shows_the_first)
        with pytest.raises(aembus.CallFailed, match="does not speak TLS"):
            tcp.reload(server.path("drained"))


def test_an_encrypted_key_is_refused_and_nobody_is_asked(server: Server) -> None:
    """Its pass phrase would be asked for at a terminal, with everybody waiting for the answer."""
    with aembus.connect(server.bus) as client:
        tls = {"certificate": str(CERTIFICATES / "encrypted.pem")}
        with pytest.raises(aembus.CallFailed, match=r"pass phrase.*encrypted\.pem"):
            client.service("tcp").listen("127.0.0.1:0", "encrypted", tls=tls)


def test_clients_may_have_to_show_a_certificate(server: Server) -> None:
    """With authorities named, only who has a certificate of theirs is served."""
    before = server.count("handshake_errors")
    with tls_peer(server, "mutual", trusting("client.pem")) as known:
        assert known.ask(b"hello") == b"hello of " + known.address
    with tls_peer(server, "mutual", trusting()) as unknown:  # TLS 1.3: it hears of it later
        unknown.send(b"hello\n")
        with pytest.raises(ssl.SSLError, match=r"(?i)certificate.required"):
            unknown.file.read()
    assert server.count("handshake_errors") == before + 1


def test_what_is_no_tls_is_refused(server: Server) -> None:
    """Plain text, and a handshake that never ends: each is closed, and counted."""
    errors, timeouts = server.count("handshake_errors"), server.count("handshake_timeouts")
    with server.connect("tls") as plain, server.connect("tls") as silent:
        plain.send(b"hello, is this plain text?\n")
        assert plain.is_closed()
        assert silent.is_closed()
    assert server.count("handshake_errors") == errors + 1
    assert server.count("handshake_timeouts") == timeouts + 1


# --- connect --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "tls", "unix"])
def test_the_service_connects(server: Server, kind: str) -> None:
    """What a member sends by an outgoing connection is answered at a point of its own."""
    name = {"plain": "drained", "tls": "mutual", "unix": "unix"}[kind]
    tls = {"authorities": AUTHORITY, "certificate": str(CERTIFICATES / "client.pem")}
    with aembus.connect(server.bus) as client:
        tcp = client.service("tcp")
        heard: list[tuple[int, bytes]] = []
        closed: list[int] = []
        client.register(f"{kind}.out", lambda event, number, line: heard.append((number, line)))
        client.register(f"{kind}.closed", lambda event, number: closed.append(number))
        address = server.path(name)
        number = tcp.connect(
            address,
            f"{kind}.out",
            framer="line",
            tls={**tls, "server_hostname": "first.example"} if kind == "tls" else None,
            on_close=f"{kind}.closed",
        )
        tcp.send(number, b"hello\n")
        until("it is answered", lambda: client.poll(0.1) and heard)
        assert heard[0][0] == number
        assert heard[0][1].startswith(b"hello of ")
        tcp.close(number)
        until("it is closed", lambda: client.poll(0.1) and closed == [number])


def test_what_cannot_be_reached_is_told(server: Server, free_port: int) -> None:
    """Nobody there, no trust, another name: CallFailed says which, and nothing is left open."""
    with aembus.connect(server.bus) as client:
        tcp = client.service("tcp")
        with pytest.raises(aembus.CallFailed, match=rf"127.0.0.1:{free_port}.*refused"):
            tcp.connect(f"127.0.0.1:{free_port}", "out")
        address = server.path("tls")
        with pytest.raises(aembus.CallFailed, match=r"(?i)verify failed"):
            tcp.connect(address, "out", tls={})
        tls = {"authorities": AUTHORITY, "server_hostname": "other.example"}
        with pytest.raises(aembus.CallFailed, match=r"(?i)other\.example"):
            tcp.connect(address, "out", tls=tls)
        with pytest.raises(aembus.CallFailed, match=r"cannot connect.*(idna|label)"):
            tcp.connect(address, "out", tls={"server_hostname": ".nobody"}, timeout=math.inf)
        with pytest.raises(aembus.CallFailed, match="the peer has closed"):
            tcp.connect(server.path("proxied"), "out", tls={})
        with socket.create_server(("127.0.0.1", 0)) as silent:
            address = f"127.0.0.1:{silent.getsockname()[1]}"
            with pytest.raises(aembus.CallFailed, match="it took too long"):
                tcp.connect(address, "out", tls={}, timeout=0.2)
    server.until_count("connections", 0)


# --- proxies --------------------------------------------------------------------------------------


def test_a_proxy_says_whose_connection_it_is(server: Server) -> None:
    """Handlers see the peer's address, and it is what connections are counted by."""
    before = server.count("refused_per_address")
    with server.connect("proxied") as a, server.connect("proxied") as b:
        for byte in proxy_header("192.0.2.7", 5070):
            a.send(bytes([byte]))
        assert a.ask(b"hello") == b"hello of 192.0.2.7:5070"
        b.send(proxy_header("192.0.2.8", 5070) + b"hello\n")  # in one piece with the first message
        assert b.line() == b"hello of 192.0.2.8:5070\n"
        with server.connect("proxied") as again:
            again.send(proxy_header("192.0.2.7", 5071))
            assert again.is_closed()
    assert server.count("refused_per_address") == before + 1


def test_the_header_comes_before_tls(server: Server) -> None:
    """A proxy that passes TLS on unopened sends its header in front of the handshake."""
    header = proxy_header("192.0.2.9", 5080)
    with tls_peer(server, "proxied tls", trusting(), header) as peer:
        assert peer.ask(b"hello") == b"hello of 192.0.2.9:5080"


def test_what_comes_with_the_header_waits_for_somebody_at_the_point(server: Server) -> None:
    """While nobody is there nothing is read, and nothing of what was read is lost."""
    with aembus.connect(server.bus) as client:
        tcp = client.service("tcp")
        heard: list[bytes] = []
        opened: list[int] = []
        event = client.register("late", lambda event, number, line: heard.append(line))
        client.register("late.open", lambda event, number, peer: opened.append(number))
        address = tcp.listen(
            "127.0.0.1:0", "late", framer="line", proxy_protocol=True, on_open="late.open"
        )
        host, _, port = address.rpartition(":")
        accepted = server.count("accepted")
        with Peer(socket.create_connection((host, int(port)))) as peer:
            server.until_count("accepted", accepted + 1)
            event.stop()
            peer.send(proxy_header("192.0.2.1", 1) + b"hello\n")
            until("it is open", lambda: client.poll(0.1) and opened)
            event.start()
            until("it is heard", lambda: client.poll(0.1) * 0 or heard)
        tcp.stop_listening(address, 0.0)
    assert heard == [b"hello"]


def test_a_connection_without_a_header_is_refused(server: Server) -> None:
    """Something else, or nothing for handshake_s_max, is closed, and counted."""
    errors, timeouts = server.count("proxy_errors"), server.count("handshake_timeouts")
    with server.connect("proxied") as wrong, server.connect("proxied") as silent:
        wrong.send(b"hello\n")
        silent.send(SIGNATURE)
        assert wrong.is_closed()
        assert silent.is_closed()
    assert server.count("proxy_errors") == errors + 1
    assert server.count("handshake_timeouts") == timeouts + 1


# --- unix sockets, ports, systemd -----------------------------------------------------------------


def test_a_unix_socket_is_listened_on(server: Server, folder: Path) -> None:
    """With its mode, in place of a dead server's, and the peer is known by its process."""
    path = folder / "socket"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    with socket.socket(socket.AF_UNIX) as connected:
        connected.connect(str(path))
        with Peer(connected) as peer:
            assert peer.ask(b"hello") == b"hello of unix:pid=%d,uid=%d" % (os.getpid(), os.getuid())


def test_a_living_servers_unix_socket_is_not_taken(server: Server, tmp_path: Path) -> None:
    """Who listens, and what is no socket, are left as they are."""
    with aembus.connect(server.bus) as client, socket.socket(socket.AF_UNIX) as living:
        tcp = client.service("tcp")
        living.bind(str(tmp_path / "living"))
        living.listen()
        with pytest.raises(aembus.CallFailed, match="another server listens"):
            tcp.listen(f"unix:{tmp_path}/living", "x")
        (tmp_path / "file").write_text("kept")
        with pytest.raises(aembus.CallFailed, match="no socket"):
            tcp.listen(f"unix:{tmp_path}/file", "x")
        assert (tmp_path / "file").read_text() == "kept"
        assert sorted(os.listdir(tmp_path)) == ["file", "living"]


def test_a_port_is_shared_by_who_says_so(server: Server) -> None:
    """With reuse_port=True another socket may have the same port; without it, it may not."""
    with aembus.connect(server.bus) as client, socket.socket() as other:
        tcp = client.service("tcp")
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(aembus.CallFailed, match="in use"):
            tcp.listen(address, "x")
        assert tcp.listen(address, "x", reuse_port=True) == address
        assert tcp.stop_listening(address) == 0


def test_a_listener_is_drained(server: Server) -> None:
    """Its address is free at once; who is connected goes on, until the time is over."""
    host, port = server.address("drained")
    before = server.count("drained_late")
    with aembus.connect(server.bus) as client, server.connect("drained") as peer:
        tcp = client.service("tcp")
        assert peer.ask(b"one").startswith(b"one of")
        assert tcp.stop_listening(f"{host}:{port}", 0.5) == 1
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind((host, port))
        assert peer.ask(b"two").startswith(b"two of")
        assert peer.is_closed()
        with pytest.raises(aembus.CallFailed, match="nobody listens"):
            tcp.stop_listening(f"{host}:{port}")
    assert server.count("drained_late") == before + 1


def passed(bus: aembus.Bus) -> None:
    """Entry point: echoes lines that come by sockets of systemd's."""
    tcp = bus.service("tcp")
    for name in ("web", "4", "unix"):
        tcp.listen(f"systemd:{name}", "line", framer="line")

    @bus.on("line")
    def line(event: aembus.Event, connection: int, data: bytes) -> None:
        tcp.send(connection, data + b"\n")


def test_sockets_come_from_systemd(bus_name: str, tmp_path: Path) -> None:
    """By name or number; the queue of who has connected before the start is served.

    A unix socket's file stays, for it is systemd's.
    """
    file = tmp_path / "systemd.socket"
    with (
        socket.socket() as first,
        socket.socket() as second,
        socket.socket(socket.AF_UNIX) as third,
    ):
        for passed_on in (first, second):
            passed_on.bind(("127.0.0.1", 0))
            passed_on.listen()
        third.bind(str(file))
        third.listen()
        with (
            Peer(socket.create_connection(first.getsockname())) as early,
            Peer(socket.create_connection(second.getsockname())) as other,
            Peer(socket.socket(socket.AF_UNIX)) as local,
        ):
            local.socket.connect(str(file))
            command = subprocess.list2cmdline(
                [sys.executable, "-m", "aembus", "run", "tests.services.test_tcp_addresses:passed",
                 "--bus", bus_name, "--service", "tcp", "--state-directory", str(tmp_path)]
            )  # fmt: skip
            # As systemd does it: descriptors from 3 on, and the PID of who gets them.
            script = (
                f"exec 3<&{first.fileno()} 4<&{second.fileno()} 5<&{third.fileno()}; "
                f"LISTEN_PID=$$ LISTEN_FDS=3 LISTEN_FDNAMES=web:other:unix exec {command}"
            )
            shell = ["bash", "-c", script]
            descriptors = (first.fileno(), second.fileno(), third.fileno())
            with program(shell, pass_fds=descriptors) as running:
                running.read_until("stop it")
                assert early.ask(b"early") == b"early"
                assert other.ask(b"other") == b"other"
                assert local.ask(b"local") == b"local"
                assert running.end() == 0
            assert file.is_socket()


def test_a_socket_that_systemd_did_not_pass_is_told(server: Server) -> None:
    """The error says what there is, and to which process."""
    with aembus.connect(server.bus) as client:
        tcp = client.service("tcp")
        with pytest.raises(aembus.CallFailed, match=r"passed no such socket.*name='web'"):
            tcp.listen("systemd:web", "x")
