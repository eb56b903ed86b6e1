"""The SIP responder as a worker of an aembus bus: the glue between the bus and sip_transaction.

What it is: `main(bus)`, which every worker runs at every start. The supervisor hosts the tcp
service, which owns the sockets and cuts the streams with SipFramer, and the timer service.

                     supervisor                                     worker (one of several)
    peer ──TCP──► tcp: SipFramer ── sip.message, key Call-ID ──► message ─► SipServer.receive
         ◄─────── tcp ◄──────────────────── tcp.send ◄───────────────┤
                  timer ◄── "sip.answer" in ring seconds, with the ──┤
                     │       connection and the whole 200            │
                     └───── sip.answer, key Call-ID ─────────────► answer ─► SipServer.answer

Guarantees: all messages of one call go to one worker, since its Call-ID is the key. A worker may
die at any moment: connections stay (they are the tcp service's), calls that ring are answered and
calls that stand are ended by its replacement or its siblings.

It is started by `python -m examples.telecom`, or by hand:
    AEMBUS_SIP_SECRET=… aembus run examples.telecom.responder:main --workers 2 \
        --service timer --service tcp -- --port 5060 --ring 0.2
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import aembus

from .sip_actions import Action, CancelTimer, Close, Count, Send, StartTimer, Wake
from .sip_message import BODY_BYTES_MAX, HEAD_BYTES_MAX, unavailable
from .sip_transaction import Settings, SipServer

SECRET_VARIABLE = "AEMBUS_SIP_SECRET"
FRAMER = "examples.telecom.sip_framer:SipFramer"

log = logging.getLogger("examples.telecom")


def main(bus: aembus.Bus) -> None:
    """Listen, or join the listener that is there, and serve SIP."""
    options = parse_arguments(sys.argv[1:])
    timer = bus.service("timer")
    tcp = bus.service("tcp")
    address = tcp.listen(
        f"{options.host}:{options.port}",
        point="sip.message",
        framer=FRAMER,
        message_bytes_max=HEAD_BYTES_MAX + BODY_BYTES_MAX,
        with_peer=True,
        on_worker_death=unavailable if options.on_worker_death == "503" else "redeliver",
    )
    server = SipServer(settings(address, options))
    # These two are always shown, the others from the first time that there is something to count.
    counters = {name: bus.counter(name) for name in ("calls", "messages")}
    ringing: dict[bytes, Any] = {}  # the timers that this process started
    wake_up: Any = None

    @bus.on("sip.message", group="sip")
    def message(event: aembus.Event, connection: int, data: bytes, peer: str) -> None:
        count("messages")
        carry_out(server.receive(data, connection, time.monotonic(), peer))

    @bus.on("sip.answer", group="sip")
    def answer(event: aembus.Event, name: bytes, connection: int, response: bytes) -> None:
        ringing.pop(name, None)
        carry_out(server.answer(name, connection, response, time.monotonic()))

    def count(name: str) -> None:
        if name not in counters:
            counters[name] = bus.counter(name)
        counters[name].add()

    def tick(event: aembus.Event) -> None:
        carry_out(server.tick(time.monotonic()))

    def carry_out(actions: Sequence[Action]) -> None:
        nonlocal wake_up
        for action in actions:
            if isinstance(action, Send):
                tcp.send(action.connection, action.data)
            elif isinstance(action, Count):
                count(action.name)
            elif isinstance(action, StartTimer):
                # A point, not a handler: it fires though this process be dead by then.
                name, delay_s, call_id, connection, response = action
                ringing[name] = timer.after(
                    delay_s, "sip.answer", name, connection, response, key=call_id
                )
            elif isinstance(action, CancelTimer):
                started = ringing.pop(action.timer, None)
                if started is not None:
                    started.cancel()
            elif isinstance(action, Wake):
                # A handler: what it repeats is known to this process alone, and goes with it.
                if wake_up is not None:
                    wake_up.cancel()
                wake_up = timer.after(action.delay_s, tick)
            elif isinstance(action, Close):
                tcp.close(action.connection)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that `python -m examples.telecom` has too, and passes on."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=port, default=5060, help="TCP port (%(default)s)")
    parser.add_argument(
        "--ring",
        type=seconds,
        default=0.0,
        metavar="S",
        help="let calls ring so many seconds (0: answer at once)",
    )
    parser.add_argument(
        "--user",
        action="append",
        metavar="NAME",
        help="a user that exists, may be repeated; others get 404 (default: everyone exists)",
    )
    parser.add_argument(
        "--on-worker-death",
        choices=("redeliver", "503"),
        default="redeliver",
        help="what becomes of a request whose worker died (%(default)s)",
    )


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The worker's own arguments: what follows `--` in `aembus run`."""
    parser = argparse.ArgumentParser("examples.telecom.responder", description=__doc__)
    add_options(parser)
    return parser.parse_args(arguments)


def settings(address: str, options: argparse.Namespace) -> Settings:
    """What the SipServer is told, from the bound address and the options."""
    host, _, bound_port = address.rpartition(":")
    host = host.strip("[]")
    contact = b""
    if host in ("0.0.0.0", "::"):
        host = ""  # not an address to be reached at: the Request-URI says a better one
    else:
        in_uri = f"[{host}]" if ":" in host else host
        contact = f"sip:{in_uri}:{bound_port};transport=tcp".encode("ascii")
    users = None if options.user is None else frozenset(map(os.fsencode, options.user))
    return Settings(secret(), contact, host.encode("ascii"), options.ring, users)


def secret() -> bytes:
    """The secret of the To-tags: all workers need the same, also those started later."""
    text = os.environ.get(SECRET_VARIABLE, "")
    if not text:
        log.warning("%s is not set: the To-tags of calls can be guessed", SECRET_VARIABLE)
    return text.encode() or b"not a secret"


def port(text: str) -> int:
    """A TCP port, for argparse."""
    number = int(text)
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"not a port, port={number}")
    return number


def seconds(text: str) -> float:
    """A duration, for argparse."""
    number = float(text)
    if not 0 <= number <= 3600:
        raise argparse.ArgumentTypeError(f"not within 0 and 3600 seconds, seconds={text}")
    return number
