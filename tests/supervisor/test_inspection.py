from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import aembus
from aembus.shm import layout, names
from aembus.shm.lane import LaneCounts
from aembus.shm.layout import CURSOR_RECORD
from aembus.supervisor.inboxes import Inboxes, Totals
from tests.support.running import statistics, until

SLOTS = 4


@pytest.fixture
def inboxes(bus_name: str) -> Iterator[Inboxes]:
    """An inbox for each slot; its number is the slot's."""
    made = Inboxes(bus_name, names.new_nonce(), SLOTS, 4096)
    try:
        for inbox_id in range(SLOTS):
            made.create(inbox_id)
        yield made
    finally:
        made.remove_all()


def test_each_inbox_is_looked_at_once(inboxes: Inboxes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is asked: who looks holds up the supervisor, and there are as many lanes as pairs.

    The one of slot p in inbox i has carried 10 * p + i records, and i of them are finished.
    """
    for inbox_id in range(SLOTS):
        words = inboxes._inboxes[inbox_id].segment.words
        memory = inboxes._inboxes[inbox_id].segment.memory
        for producer in range(SLOTS):
            lane = layout.lane_index(SLOTS, layout.CLASS_NORMAL, producer)
            control = layout.lane_control_offset(SLOTS, lane)
            memory[layout.DOORS + lane] = layout.DOOR_OPEN
            words[(control + layout.LANE_TAIL) // 8] = CURSOR_RECORD * (10 * producer + inbox_id)
            words[(control + layout.LANE_HEAD) // 8] = CURSOR_RECORD * inbox_id
    looked: list[int] = []
    counts = inboxes._counts

    def look(inbox_id: int) -> list[tuple[int, int, LaneCounts]]:
        looked.append(inbox_id)
        return counts(inbox_id)

    monkeypatch.setattr(inboxes, "_counts", look)
    survey = inboxes.survey()
    assert looked == [0, 1, 2, 3]
    assert survey.sent_by == {p: 40 * p + 6 for p in range(SLOTS)}
    assert survey.by_inbox[2] == Totals(sent=68, delivered=8, queued=60)
    assert survey.totals == Totals(sent=264, delivered=24, queued=240)
    assert survey.by_inbox[2] == inboxes.totals(2)


def test_what_a_member_has_sent_stays_sent(bus_name: str, tmp_path: Path) -> None:
    """Also when who got it has left, and not taken from whoever has the sender's slot by then."""

    def sent() -> dict[str, int]:
        return {member["name"]: member["sent"] for member in statistics(bus_name)["members"]}

    with aembus.Supervisor(bus_name, state_directory=tmp_path):
        with aembus.connect(bus_name, name="taker") as taker:
            taker.register("job", lambda event: None)
            taker.publish_registrations()
            with aembus.connect(bus_name, name="first") as first:
                assert [first.activate("job") for _ in range(5)] == [1] * 5
            until("the first has left", lambda: "first" not in sent())
            second = aembus.connect(bus_name, name="second")
            assert [second.activate("job") for _ in range(3)] == [1] * 3
            while taker.poll():
                pass
            assert sent()["second"] == 3
        with second:
            until("the taker has left", lambda: "taker" not in sent())
            assert sent()["second"] == 3
