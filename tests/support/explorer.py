"""Every schedule of a few actors that share memory, on a machine that orders stores as x86-64 does.

An actor is ordinary code (the real producer, the real consumer) whose loads and stores go through
a `Processor`.  Stores go into the actor's own buffer, first in, first out, and reach the memory
one word at a time, at moments that the explorer chooses (total store order); loads look into the
own buffer first.  A fence, a post and a wait let the buffer run empty before they happen.

An actor is a function of what its loads returned and of nothing else.  So the explorer runs it by
itself, once for each history of results, notes what it does next, and then walks through all
states of the whole: what the memory and the buffers hold, and each actor's history.  It visits
every state that some schedule leads to, and counts the schedules.

Not modelled: time (a wait has no time-out here, which is what makes a lost wake-up a deadlock).
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, NoReturn, overload

Verb = Literal["load", "fence", "post", "wait", "try_wait", "count"]

WORD: Final = 8
WORD_MASK: Final = (1 << 64) - 1


class Operation(NamedTuple):
    """What an actor waits for: a load of a word, or something with a semaphore."""

    verb: Verb
    number: int = 0


class Store(NamedTuple):
    """A store into a word, or into the part of it under the mask."""

    word: int
    mask: int
    value: int
    with_next: bool = False  # becomes visible together with the next one


class _Pause(BaseException):
    """Unwinds an actor whose next result is not known yet."""


class Processor:
    """What one actor runs on, during one replay of its history.

    Args:
        results: what its operations returned so far.
    """

    def __init__(self, results: Sequence[int]) -> None:
        self._results = results
        self._number = 0
        self.stores: list[Store] = []  # since the last result
        self.next: Operation | None = None

    def load(self, word: int) -> int:
        """Return the word, as this actor sees it."""
        return self._do(Operation("load", word))

    def store(
        self, word: int, value: int, mask: int = WORD_MASK, *, with_next: bool = False
    ) -> None:
        """Put a store into the actor's buffer."""
        if self.next is None:
            self.stores.append(Store(word, mask, value, with_next))

    def fence(self) -> None:
        """Go on when every store of this actor has reached the memory."""
        self._do(Operation("fence"))

    def post(self, semaphore: int) -> None:
        """Post a semaphore."""
        self._do(Operation("post", semaphore))

    def wait(self, semaphore: int) -> None:
        """Wait for a post, for ever if none comes."""
        self._do(Operation("wait", semaphore))

    def try_wait(self, semaphore: int) -> bool:
        """Take a post if there is one."""
        return bool(self._do(Operation("try_wait", semaphore)))

    def count(self, semaphore: int) -> int:
        """Return how many posts there are."""
        return self._do(Operation("count", semaphore))

    def _do(self, operation: Operation) -> int:
        if self.next is None and self._number < len(self._results):
            self._number += 1
            self.stores.clear()
            return self._results[self._number - 1]
        if self.next is None:
            self.next = operation
        raise _Pause


Actor = Callable[[Processor], object]


class Words:
    """Shared memory as words, in place of ``memoryview.cast("Q")``."""

    def __init__(self, cpu: Processor, begin: int) -> None:
        self._cpu, self._begin = cpu, begin

    def __getitem__(self, index: int) -> int:
        return self._cpu.load(self._begin + index)

    def __setitem__(self, index: int, value: int) -> None:
        self._cpu.store(self._begin + index, int(value))

    def release(self) -> None:
        """As a memoryview's."""


class Copy(bytes):
    """What a slice of a memoryview gives, as far as the code under test asks."""

    def tobytes(self) -> bytes:
        """Return the bytes."""
        return self


class Memory:
    """Shared memory as bytes, in place of a memoryview.

    Args:
        cpu: who looks at it.
        begin: its first word; different memories lie apart.
        coarse_from: from this offset on, what is read or written at once is one word of its own,
            stored together with what is stored next: fewer states, where tearing is not the
            question.
    """

    def __init__(self, cpu: Processor, begin: int = 0, coarse_from: int | None = None) -> None:
        self._cpu, self._begin, self._coarse_from = cpu, begin, coarse_from

    def cast(self, code: str) -> Words:
        assert code == "Q"
        return Words(self._cpu, self._begin)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Copy: ...
    def __getitem__(self, index: int | slice) -> int | Copy:
        if isinstance(index, int):
            return self.read(index, index + 1)[0]
        return Copy(self.read(index.start, index.stop))

    def __setitem__(self, index: int | slice, data: int | bytes) -> None:
        if isinstance(index, int):
            assert isinstance(data, int)
            self.write(index, bytes([data]))
        else:
            assert isinstance(data, bytes)
            assert len(data) == index.stop - index.start
            self.write(index.start, data)

    def read(self, begin: int, end: int) -> bytes:
        """Load the words that hold these bytes, one after the other."""
        if self._coarse_from is not None and begin >= self._coarse_from:
            return self._cpu.load(self._coarse_word(begin)).to_bytes(end - begin, "little")
        first, last = begin // WORD, (end + WORD - 1) // WORD
        words = [self._cpu.load(self._begin + word) for word in range(first, last)]
        data = b"".join(word.to_bytes(WORD, "little") for word in words)
        return data[begin - first * WORD : end - first * WORD]

    def write(self, begin: int, data: bytes) -> None:
        """Store bytes, one word (or part of one) after the other."""
        if self._coarse_from is not None and begin >= self._coarse_from:
            value, mask = int.from_bytes(data, "little"), (1 << 8 * len(data)) - 1
            self._cpu.store(self._coarse_word(begin), value, mask, with_next=True)
            return
        while data:
            at = begin % WORD
            piece, data = data[: WORD - at], data[WORD - at :]
            mask = ((1 << 8 * len(piece)) - 1) << 8 * at
            value = int.from_bytes(piece, "little") << 8 * at
            self._cpu.store(self._begin + begin // WORD, value, mask)
            begin += len(piece)

    def _coarse_word(self, begin: int) -> int:
        return -1 - self._begin - begin

    def pack_into(self, packing: struct.Struct, at: int, *fields: int) -> None:
        """As ``struct.Struct.pack_into``."""
        self.write(at, packing.pack(*fields))

    def unpack_from(self, packing: struct.Struct, at: int) -> tuple[Any, ...]:
        """As ``struct.Struct.unpack_from``."""
        return packing.unpack(self.read(at, at + packing.size))


# --- the walk -------------------------------------------------------------------------------------


class _Step(NamedTuple):
    """What an actor does after one history: its stores, and the operation that it then waits at."""

    stores: tuple[Store, ...]
    operation: Operation | None  # None: it has come to its end
    failure: str | None


class State(NamedTuple):
    """Everything at one moment."""

    memory: tuple[int, ...]  # by cell; a word gets its cell when it is first touched
    semaphores: tuple[int, ...]
    histories: tuple[int, ...]  # by actor
    buffers: tuple[tuple[Store, ...], ...]  # by actor, oldest first


class Violation(NamedTuple):
    """A schedule that breaks a promise, and how."""

    what: str
    schedule: list[str]

    def __str__(self) -> str:
        return "\n  ".join([self.what, *self.schedule])


@dataclass(frozen=True)
class Exploration:
    """What there was to see; `schedules` is 0 if a violation was found before all were counted."""

    states: int
    schedules: int
    violation: Violation | None


class TooManyStates(Exception):
    """The exploration is larger than its limit, so it would prove nothing."""


class _Frame:
    """A state on the way, what is still to do from there, and the schedules found so far."""

    __slots__ = ("name", "schedules", "state", "todo")

    def __init__(self, name: str, state: State, todo: list[tuple[str, State]]) -> None:
        self.name, self.state, self.todo = name, state, todo
        self.schedules = 0


class Explorer:
    """Walks through all schedules of `actors`.

    Args:
        actors: by name, what each does; an exception that one raises is a violation.
        memory: words that are not 0 at the beginning.
        semaphores: how many there are; all begin at 0.
        reduced: leave out schedules that differ only in the order of steps that cannot see each
            other: loads of words that nobody else stores, stores to words that nobody else uses.
        states_max: when to give up.
    """

    def __init__(
        self,
        actors: dict[str, Actor],
        *,
        memory: dict[int, int] | None = None,
        semaphores: int = 1,
        reduced: bool = False,
        states_max: int = 300_000,
    ) -> None:
        self._names = list(actors)
        self._actors = list(actors.values())
        self._semaphores = semaphores
        self._reduced = reduced
        self._states_max = states_max
        self._initial = memory or {}
        self._cells: dict[int, int] = {word: cell for cell, word in enumerate(self._initial)}
        self._results: list[tuple[int, ...]] = [()]  # a history's results, by its number
        self._longer: dict[tuple[int, int], int] = {}  # history and one more result → history
        self._steps: dict[tuple[int, int], _Step] = {}  # actor and history → step
        self._storing: dict[int, set[int]] = {}  # word → actors seen to store it
        self._loading: dict[int, set[int]] = {}  # word → actors seen to load it

    def explore(self) -> Exploration:
        """Visit every state, or stop at the first violation."""
        while True:
            touched = self._touched()
            found = self._walk()
            # Who touches what is only known when all was seen: a reduction that took too little
            # into account is done again, now with all of it.
            if not self._reduced or found.violation is not None or self._touched() == touched:
                return found

    def _touched(self) -> int:
        return sum(len(who) for who in (*self._storing.values(), *self._loading.values()))

    def _walk(self) -> Exploration:
        schedules: dict[State, int] = {}  # from a state to the end
        start = self._start()
        stack = [_Frame("", start, self._successors(start))]
        while stack:
            frame = stack[-1]
            if not frame.todo:
                schedules[frame.state] = frame.schedules or 1
                stack.pop()
                continue
            name, after = frame.todo[-1]
            known = schedules.get(after)
            if known is not None:
                frame.schedules += known
                frame.todo.pop()
                continue
            stack.append(_Frame(name, after, self._successors(after)))
            failure = self._failure(stack[-1])
            if failure is not None:
                schedule = [frame.name for frame in stack[1:]]
                return Exploration(len(schedules), 0, Violation(failure, schedule))
            if len(schedules) > self._states_max:
                raise TooManyStates(f"states={len(schedules)}, max={self._states_max}")
        return Exploration(len(schedules), schedules[start], None)

    def _start(self) -> State:
        steps = [self._step(actor, 0) for actor in range(len(self._actors))]
        return State(
            tuple(self._initial.values()),
            (0,) * self._semaphores,
            (0,) * len(steps),
            tuple(step.stores for step in steps),
        )

    def _failure(self, frame: _Frame) -> str | None:
        waiting = []
        for actor, history in enumerate(frame.state.histories):
            step = self._step(actor, history)
            if step.failure is not None:
                return f"{self._names[actor]} failed: {step.failure}"
            if step.operation is not None:
                waiting.append(f"{self._names[actor]}: {step.operation}")
        if frame.todo or not waiting:
            return None
        return f"nothing can happen any more, but not all have finished: {waiting}"

    def _step(self, actor: int, history: int) -> _Step:
        step = self._steps.get((actor, history))
        if step is None:
            step = self._steps[actor, history] = self._replay(actor, self._results[history])
            for store in step.stores:
                self._storing.setdefault(store.word, set()).add(actor)
            if step.operation is not None and step.operation.verb == "load":
                self._loading.setdefault(step.operation.number, set()).add(actor)
        return step

    def _replay(self, actor: int, results: tuple[int, ...]) -> _Step:
        cpu = Processor(results)
        failure = None
        with contextlib.suppress(_Pause):
            try:
                self._actors[actor](cpu)
            except Exception as error:
                if cpu.next is None:
                    failure = f"{type(error).__name__}: {error}"
        return _Step(tuple(cpu.stores), cpu.next, failure)

    # --- what can happen next -----------------------------------------------------------------

    def _successors(self, state: State) -> list[tuple[str, State]]:
        found = []
        for actor, name in enumerate(self._names):
            if state.buffers[actor]:
                after = self._drained(state, actor)
                if self._reduced and self._is_private(actor, _oldest(state.buffers[actor])):
                    return [(f"{name}: a store becomes visible", after)]
                found.append((f"{name}: a store becomes visible", after))
            operation = self._step(actor, state.histories[actor]).operation
            if operation is not None:
                done = self._done(state, actor, operation)
                if done is not None:
                    if self._reduced and self._is_local(actor, operation):
                        return [(f"{name}: {operation.verb} {operation.number}", done)]
                    found.append((f"{name}: {operation.verb} {operation.number}", done))
        return found

    def _is_private(self, actor: int, stores: tuple[Store, ...]) -> bool:
        return not any(
            self._others(who, store.word, actor)
            for who in (self._storing, self._loading)
            for store in stores
        )

    def _is_local(self, actor: int, operation: Operation) -> bool:
        if operation.verb == "load":
            return self._others(self._storing, operation.number, actor) == 0
        return operation.verb == "fence"

    @staticmethod
    def _others(who: dict[int, set[int]], word: int, actor: int) -> int:
        actors = who.get(word, set())
        return len(actors) - (actor in actors)

    def _drained(self, state: State, actor: int) -> State:
        memory = list(state.memory)
        buffer = state.buffers[actor]
        oldest = _oldest(buffer)
        for word, mask, value, _ in oldest:
            cell = self._cells.setdefault(word, len(self._cells))
            memory += [0] * (cell + 1 - len(memory))
            memory[cell] = memory[cell] & ~mask | value
        buffers = _replaced(state.buffers, actor, buffer[len(oldest) :])
        return state._replace(memory=tuple(memory), buffers=buffers)

    def _done(self, state: State, actor: int, operation: Operation) -> State | None:
        verb, number = operation
        if verb == "load":
            return self._returned(state, actor, self._load(state, actor, number))
        if verb == "count":
            return self._returned(state, actor, state.semaphores[number])
        if state.buffers[actor]:
            return None  # a locked instruction: every store before it must be visible
        if verb == "fence":
            return self._returned(state, actor, 0)
        posts = state.semaphores[number]
        if verb == "post":
            change = 1
        elif posts:
            change = -1
        elif verb == "try_wait":
            change = 0
        else:
            return None
        semaphores = _replaced(state.semaphores, number, posts + change)
        return self._returned(state._replace(semaphores=semaphores), actor, abs(change))

    def _load(self, state: State, actor: int, word: int) -> int:
        cell = self._cells.setdefault(word, len(self._cells))
        value = state.memory[cell] if cell < len(state.memory) else 0
        for store in state.buffers[actor]:
            if store.word == word:
                value = value & ~store.mask | store.value
        return value

    def _returned(self, state: State, actor: int, result: int) -> State:
        key = (state.histories[actor], result)
        history = self._longer.get(key)
        if history is None:
            history = self._longer[key] = len(self._results)
            self._results.append((*self._results[key[0]], result))
        stores = self._step(actor, history).stores
        return state._replace(
            histories=_replaced(state.histories, actor, history),
            buffers=_replaced(state.buffers, actor, state.buffers[actor] + stores),
        )


def _oldest(buffer: tuple[Store, ...]) -> tuple[Store, ...]:
    number = 0
    while buffer[number].with_next:
        number += 1
    return buffer[: number + 1]


def _replaced(old: tuple[Any, ...], index: int, value: Any) -> tuple[Any, ...]:
    return (*old[:index], value, *old[index + 1 :])


def never(*_: object, **__: object) -> NoReturn:
    """Stand in for what must not be called."""
    raise AssertionError("this must not be called here")
