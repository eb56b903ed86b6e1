from __future__ import annotations

from aembus.refusals import no_room
from aembus.routing import Target


def test_each_member_is_named_once() -> None:
    """However many of its events are concerned: a page of one name tells nobody anything."""
    targets = [Target(slot, event_id) for event_id in range(100) for slot in (3, 1)]
    assert "members=['slot 3', 'slot 1']" in str(no_room("point", 1.0, targets, {}))
