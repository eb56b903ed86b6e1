from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

import pytest

from examples.telecom import __main__ as program
from examples.telecom import responder


@pytest.mark.parametrize(
    ("address", "contact", "host"),
    [
        ("192.0.2.1:5080", b"sip:192.0.2.1:5080;transport=tcp", b"192.0.2.1"),
        ("0.0.0.0:5060", b"", b""),
        ("[::]:5060", b"", b""),
        ("2001:db8::1:5060", b"sip:[2001:db8::1]:5060;transport=tcp", b"2001:db8::1"),
    ],
)
def test_our_own_address(address: str, contact: bytes, host: bytes) -> None:
    """The Contact is the bound address, unless that is one that nobody can call."""
    options = responder.parse_arguments(["--user", "a", "--user", "b"])
    found = responder.settings(address, options)
    assert (found.contact, found.host) == (contact, host)
    assert found.users == frozenset([b"a", b"b"])


def test_without_a_secret(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a secret it serves all the same, with a warning."""
    monkeypatch.delenv(responder.SECRET_VARIABLE, raising=False)
    with caplog.at_level(logging.WARNING):
        assert responder.secret()
    assert responder.SECRET_VARIABLE in caplog.text


@pytest.mark.parametrize("arguments", [["--port", "65536"], ["--ring", "-1"], ["--ring", "nan"]])
def test_wrong_arguments(arguments: Sequence[str]) -> None:
    """Arguments that make no sense are refused."""
    with pytest.raises(SystemExit) as caught:
        responder.parse_arguments(arguments)
    assert caught.value.code == 2


def test_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """It becomes `aembus run`; its options reach the worker, the secret is in no command line."""
    executed: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.delenv(responder.SECRET_VARIABLE, raising=False)
    monkeypatch.setattr(
        "os.execve", lambda path, command, environment: executed.append((command, environment))
    )
    program.main(
        [
            "--port",
            "5080",
            "--workers",
            "3",
            "--ring",
            "0.2",
            "--user",
            "a",
            "--on-worker-death",
            "503",
        ]
    )
    [(command, environment)] = executed
    assert command[:6] == [
        sys.executable, "-m", "aembus", "run", "examples.telecom.responder:main", "--bus",
    ]  # fmt: skip
    assert command[command.index("--workers") + 1] == "3"
    ready = command[command.index("--ready-message") + 1]
    assert "127.0.0.1:5080/TCP, 3 workers" in ready
    assert "sipp -sn uac 127.0.0.1:5080 -t t1 -m 1" in ready
    passed = responder.parse_arguments(command[command.index("--") + 1 :])
    assert passed == argparse.Namespace(
        host="127.0.0.1", port=5080, ring=0.2, user=["a"], on_worker_death="503"
    )
    secret = environment[responder.SECRET_VARIABLE]
    assert len(secret) == 64
    assert secret not in " ".join(command)


@pytest.mark.parametrize("arguments", [["--workers", "0"], ["--port", "0"], ["--bus"]])
def test_wrong_options(arguments: list[str]) -> None:
    """The program refuses what cannot work before it becomes anything."""
    with pytest.raises(SystemExit) as caught:
        program.main(arguments)
    assert caught.value.code == 2
