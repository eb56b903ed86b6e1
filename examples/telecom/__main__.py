"""`python -m examples.telecom`: the SIP responder with its supervisor, ready for a call.

What it is: it makes the secret that the workers share and becomes `aembus run`, by exec, so that
signals, exit code and summary are those of aembus itself. The secret goes by the environment,
where other users cannot read it; the command line they can.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections.abc import Sequence

from .responder import SECRET_VARIABLE, add_options


def main(arguments: Sequence[str]) -> None:
    """Become `aembus run` with the responder as its workers."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.telecom",
        description="A SIP responder over TCP; its calls survive kill -9 of a worker.",
        epilog="example: python -m examples.telecom --port 5080 --workers 4 --ring 2",
    )
    add_options(parser)
    parser.add_argument(
        "--workers", type=int, default=2, metavar="N", help="worker processes (%(default)s)"
    )
    parser.add_argument(
        "--tcp-hosts",
        type=int,
        default=0,
        metavar="N",
        help="processes that own the sockets (0: the supervisor does)",
    )
    parser.add_argument("--bus", default="sip", metavar="NAME", help="name of the bus (sip)")
    options = parser.parse_args(arguments)
    if options.workers < 1:
        parser.error(f"at least one worker is needed, workers={options.workers}")
    if options.tcp_hosts < 0:
        parser.error(f"not a number of processes, tcp-hosts={options.tcp_hosts}")
    if options.port == 0:
        parser.error("a port is needed that callers can know, port=0")
    environment = {SECRET_VARIABLE: secrets.token_hex(32)} | os.environ
    command = run_command(options)
    os.execve(command[0], command, environment)


def run_command(options: argparse.Namespace) -> list[str]:
    """The `aembus run` command line for these options."""
    address = f"{options.host}:{options.port}"
    number = f"{options.workers} worker{'s' if options.workers > 1 else ''}"
    ready = (
        f"SIP responder on {address}/TCP, {number}; place a call: sipp -sn uac {address} -t t1 -m 1"
    )
    command = [sys.executable, "-m", "aembus", "run", "examples.telecom.responder:main"]
    command += ["--bus", options.bus, "--workers", str(options.workers)]
    command += ["--service", "timer", "--service", "tcp", "--ready-message", ready]
    if options.tcp_hosts:
        command += ["--hosts", f"tcp={options.tcp_hosts}"]
    command += ["--"]
    command += ["--host", options.host, "--port", str(options.port), "--ring", str(options.ring)]
    command += ["--on-worker-death", options.on_worker_death]
    for user in options.user or ():
        command += ["--user", user]
    return command


if __name__ == "__main__":
    main(sys.argv[1:])
