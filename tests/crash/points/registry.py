"""The registry's two ends, each stopped or killed at every bytecode."""

from __future__ import annotations

import functools
import os
import signal

from aembus.shm import layout, names, registry
from aembus.shm.registry import RegistryReader
from tests.crash.points.cases import Child, end_children
from tests.crash.points.steps import KILL, STOP, Bytecodes
from tests.crash.points.world import NONCE, World

GENERATIONS: tuple[int, ...] = (1, 2, 3)  # published while a reader is stopped


def sweep_reader(world: World) -> tuple[int, list[str]]:
    """Stop a reader at each bytecode, publish meanwhile; return the cases and what went wrong.

    What it reads in the end is one generation, whole.
    """
    reader = RegistryReader.open(names.shared_name(world.bus, NONCE, registry.ROLE))
    steps = Bytecodes()
    read = functools.partial(world.check_registry, reader)
    total = steps.run(read, lambda number, where: None)
    wrong, cases = [], 0
    for count in GENERATIONS:
        for number in range(1, total + 1):
            child = Child(functools.partial(steps.run_to, read, number, STOP))
            cases += 1
            try:
                child.expect(-signal.SIGSTOP, "the reader")
                for _ in range(count):
                    world.publish_registry()
                os.kill(child.pid, signal.SIGCONT)
                child.expect(0, "the reader")
            except AssertionError as error:
                end_children()
                wrong.append(f"reader stopped at {number}, {count} generations meanwhile: {error}")
    reader.close()
    return cases, wrong


def sweep_writer(world: World) -> tuple[int, list[str]]:
    """Kill the writer at each bytecode; return the number of cases and what went wrong.

    Readers find the old generation or the new one, whole.
    """
    reader = RegistryReader.open(names.shared_name(world.bus, NONCE, registry.ROLE))
    steps = Bytecodes()
    world.publish_registry()
    before = bytes(reader.memory)
    generation = reader.generation
    found: set[int] = set()
    wrong, number = [], 0
    while True:
        number += 1
        child = Child(functools.partial(steps.run_to, world.publish_registry, number, KILL))
        ended = child.wait()
        try:
            found.add(world.check_registry(reader) - generation)
        except AssertionError as error:
            wrong.append(f"writer killed at {number}: {error}")
        reader.memory[layout.GENERATION :] = before[layout.GENERATION :]
        if ended == 0:
            break
    if found != {0, 1}:
        wrong.append(f"generations found={found}")
    reader.close()
    return number, wrong
