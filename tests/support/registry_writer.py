"""A process that publishes one registry document after the other (see tests/shm/test_registry.py).

``python -m tests.support.registry_writer NAME`` creates the registry, says ``ready``, waits for a
line, publishes, and keeps the registry until its standard input ends.
"""

from __future__ import annotations

import sys
from typing import Any, Final

from aembus.shm.registry import RegistryWriter

HALF_BYTES: Final = 64 * 1024
DOCUMENTS: Final = 60_000


def document(generation: int) -> dict[str, Any]:
    """Return a document whose parts all say which generation it is; no two follow in one size."""
    filler = generation.to_bytes(4, "little") * (generation * 37 % 2000)
    return {"generation": generation, "filler": filler, "tail": generation}


def is_whole(found: dict[str, Any], generation: int) -> bool:
    """Say whether this is the document of `generation`, and nothing else is in it."""
    return found == document(generation)


def main(name: str) -> None:
    """Publish."""
    writer = RegistryWriter(name, HALF_BYTES)
    try:
        writer.publish(document(1))
        print("ready", flush=True)
        sys.stdin.readline()
        for generation in range(2, DOCUMENTS + 1):
            writer.publish(document(generation))
        sys.stdin.read()
    finally:
        writer.close()


if __name__ == "__main__":
    main(sys.argv[1])
