"""Looking before a sleep: for a moment, and less often where it is in vain."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from aembus import looking as looking_module
from aembus.looking import SKIPPED_MAX, Looking

MOMENT_S = 50.0
YIELD_S = 1.0  # that others have the core for, each time that they are given it


class Scene:
    """A clock that goes on while others have the core, and something that comes at its time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.away_s = YIELD_S
        self.comes_at = float("inf")
        self.looks = 0
        self.looking = Looking(MOMENT_S)
        monkeypatch.setattr(looking_module, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(looking_module, "os", SimpleNamespace(sched_yield=self._give_core))

    def _give_core(self) -> None:
        self.now += self.away_s

    def _found(self) -> bool:
        self.looks += 1
        return self.now >= self.comes_at

    def look(self, comes_in_s: float = float("inf")) -> tuple[bool, float]:
        """Look; return what was said, and how long that took."""
        began, self.comes_at = self.now, self.now + comes_in_s
        return self.looking.look(self._found), self.now - began

    def skipped(self) -> int:
        """Return how many looks are left out until the next one, which is in vain."""
        left_out = 0
        while True:
            before = self.looks
            assert not self.look()[0]
            if self.looks > before:
                return left_out
            left_out += 1


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    """A scene of its own for each test."""
    return Scene(monkeypatch)


def test_what_comes_within_the_moment_is_found_when_it_comes(scene: Scene) -> None:
    """At once, or as soon as the core is ours again; and it is looked for the next time too."""
    assert scene.look(0) == (True, 0)
    for _ in range(3):
        assert scene.look(MOMENT_S - YIELD_S) == (True, MOMENT_S - YIELD_S)


def test_what_does_not_come_is_looked_for_no_longer_than_the_moment(scene: Scene) -> None:
    """Then whoever looks may sleep."""
    assert scene.look() == (False, MOMENT_S)


def test_looks_in_vain_become_rare(scene: Scene) -> None:
    """Each one in vain doubles how many are left out after it, up to a bound."""
    assert not scene.look()[0]
    left_out = [scene.skipped() for _ in range(9)]
    assert left_out == [1, 2, 4, 8, 16, 32, *[SKIPPED_MAX] * 3]


def test_one_that_pays_makes_them_frequent(scene: Scene) -> None:
    """However rare they had become."""
    for _ in range(5):
        scene.skipped()
    while not scene.look(0)[0]:
        pass
    assert scene.look(0) == (True, 0)
    assert not scene.look()[0]
    assert scene.skipped() == 1


def test_a_core_that_comes_back_late_counts_as_in_vain(scene: Scene) -> None:
    """Found is found, but a sleep would have been shorter; unless it is said to be worth it."""
    scene.away_s = 10 * MOMENT_S
    assert scene.look(0.1) == (True, 10 * MOMENT_S)
    assert scene.look(0) == (False, 0)
    assert scene.look(0.1) == (True, 10 * MOMENT_S)
    scene.looking.was_worth()
    assert scene.look(0.1) == (True, 10 * MOMENT_S)
