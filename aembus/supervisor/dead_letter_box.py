"""`DeadLetterBox`: the dead letters of a bus, for who looks after them; the bus may run or not."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeAlias, final

from aembus.codec import decode
from aembus.control import ControlClient
from aembus.errors import BusNotFound
from aembus.supervisor import letter_file
from aembus.supervisor.dead_letters import NO_ROOM, DeadLetters
from aembus.supervisor.letter_file import Letter
from aembus.supervisor.ownership import BusLock, state_owned

BATCH: Final = 100
ROOM_TIMEOUT_S: Final = 30.0

Ids: TypeAlias = "list[str]"  # in DeadLetterBox, `list` is something else


@dataclass(slots=True)
class Replayed:
    """What came of a replay: the ids sent back, and of the others why they were not."""

    replayed: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


@final
class DeadLetterBox:
    """The dead letters of one bus; use it as a context manager.

    Args:
        bus: the bus's name.  If it runs, its supervisor is asked for every change.
        state_directory: where the letters of a bus that does not run are; default: where they are
            by default.

    Raises: PermissionRefused, VersionMismatch.
    """

    def __init__(self, bus: str, state_directory: str | Path | None = None) -> None:
        self._bus = bus
        self._control: ControlClient | None = None
        try:
            self._control = ControlClient(bus)
        except BusNotFound:
            directory = Path(state_directory or letter_file.default_directory(bus))
            self.path = letter_file.path_in(directory)
        else:
            self.path = Path(os.fsdecode(self._control.request("dead_file")["path"]))

    def list(self, *, point: str | None = None, reason: str | None = None) -> list[Letter]:
        """Return the letters, oldest first.

        Args:
            point: only those of jobs for this activation point.
            reason: only those whose reason contains this text.

        Each is a map with, among others, `id`, `point`, `event`, `group`, `member`, `reason`,
        `detail` (a traceback, or ""), `attempts`, `failures`, `kept_at` (seconds since 1970) and
        `payload` (the data, msgpack).  Raises OSError.
        """
        return [
            letter
            for letter in letter_file.letters(self.path)
            if (point is None or letter["point"] == point)
            and (reason is None or reason in letter["reason"])
        ]

    def replay(
        self,
        ids: Sequence[str],
        *,
        timeout: float = ROOM_TIMEOUT_S,
        on_progress: Callable[[int], None] = lambda done: None,
    ) -> Replayed:
        """Send jobs back to their groups (or events) on the running bus, in this order.

        A letter is removed once its job is queued there.  If this is interrupted, what was not
        sent is still there.

        Args:
            timeout: seconds to wait where the destination has no room, as long as nothing moves.
            on_progress: called with how many letters were dealt with.

        Raises: BusNotFound if the bus does not run, BusBroken, ControlError.
        """
        control = self._control
        if control is None:
            raise BusNotFound(
                "the bus does not run, so there is nobody to replay to; start it first, "
                f"bus={self._bus!r}"
            )
        result = Replayed()
        left = [*dict.fromkeys(ids)]
        moved_at = time.monotonic()
        while left:
            batch = left[:BATCH]
            answer = control.request("dead_replay", ids=batch)
            result.replayed += answer["replayed"]
            refused: dict[str, str] = answer["refused"]
            if answer["replayed"]:
                moved_at = time.monotonic()
            again = []
            if time.monotonic() - moved_at < timeout:
                again = [name for name in batch if refused.get(name) == NO_ROOM]
            result.refused |= {n: text for n, text in refused.items() if n not in again}
            left[:BATCH] = again
            on_progress(len(result.replayed) + len(result.refused))
        return result

    def drop(
        self, ids: Sequence[str], *, on_progress: Callable[[int], None] = lambda done: None
    ) -> Ids:
        """Remove letters for good; return the ids of those that were there.

        Raises: OSError, BusBroken, ControlError; BusAlreadyRunning if the bus starts meanwhile,
        SupervisorError if another bus that runs keeps its letters there.
        """
        dropped: Ids = []
        if self._control is None:
            lock = BusLock(self._bus)
            try:
                if self.path.exists():
                    with state_owned(str(self.path.parent)):
                        dropped = DeadLetters(self.path.parent).remove(ids)
            finally:
                lock.release()
            on_progress(len(ids))
            return dropped
        for begin in range(0, len(ids), BATCH):
            batch = [*ids[begin : begin + BATCH]]
            dropped += self._control.request("dead_drop", ids=batch)["dropped"]
            on_progress(begin + len(batch))
        return dropped

    def close(self) -> None:
        """Let go of the supervisor.  Idempotent."""
        if self._control is not None:
            self._control.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def readable(letter: Letter) -> dict[str, Any]:
    """Return a letter as it is shown, its data decoded; as JSON knows it."""
    try:
        data: Any = list(decode(letter["payload"]))
    except Exception as error:  # whatever a payload of nonsense makes of the codec
        data = f"cannot be decoded: {error}"
    shown = {key: value for key, value in letter.items() if key != "payload"}
    return {**shown, "bytes": len(letter["payload"]), "data": data}
