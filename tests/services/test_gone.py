from __future__ import annotations

from aembus.services.base import Caller
from aembus.services.gone import GONE_MAX, Gone


def test_only_the_last_that_are_gone_are_kept() -> None:
    """However many there are; who is older and lives is not among them; another version knows."""
    gone = Gone()
    for incarnation in range(3 * GONE_MAX):
        if incarnation % 2:
            gone.add(Caller(1, incarnation))
    for known in (gone, Gone(gone.to_data())):
        assert Caller(1, 3 * GONE_MAX - 1) in known
        assert Caller(1, 3 * GONE_MAX - 2) not in known
        assert Caller(2, 3 * GONE_MAX - 1) not in known
        assert Caller(1, 1) not in known
        assert len(known.to_data()) == GONE_MAX
