"""The statistics of a whole bus, read from shared memory and the supervisor's own tables."""

from __future__ import annotations

import dataclasses
import os
import time
from typing import Any

from aembus.hosting.hosting import Hosting
from aembus.shm import layout
from aembus.supervisor.dead_letters import DeadLetters
from aembus.supervisor.inboxes import Inboxes, Survey
from aembus.supervisor.members import Member, Members
from aembus.supervisor.services import Services
from aembus.supervisor.summary import application_counters


def bus_statistics(
    bus: str,
    started_at: float,
    members: Members,
    inboxes: Inboxes,
    hosting: Hosting,
    services: Services,
    dead_letters: DeadLetters,
    spares: list[int],
) -> dict[str, Any]:
    """Return what `aembus stats --json` prints; `spares` are the PIDs of the spare processes."""
    survey = inboxes.survey()
    points: dict[str, dict[str, Any]] = {}
    for member in members:
        for event_id, event in (*member.events.items(), *member.stopped.items()):
            point = points.setdefault(event.point, {"name": event.point, "events": []})
            point["events"].append(
                {
                    "id": event_id,
                    "slot": members.slot_of(event, member),
                    "name": event.name,
                    "group": event.group,
                    "stopped": event_id in member.stopped,
                    "options": event.options.to_document(),
                }
            )
    loaded = services.statistics()
    for name in (name for service in loaded for name in service["points"]):
        points.setdefault(name, {"name": name, "events": []})
    return {
        "bus": bus,
        "supervisor": {
            "pid": os.getpid(),
            "uptime_s": round(time.monotonic() - started_at, 3),
            "spares": spares,
            "calls": hosting.calls,
            "call_failures": hosting.call_failures,
            "dead_letters": dead_letters.count,
            "dead_letters_kept": dead_letters.kept,
            "dead_letters_dropped": dead_letters.dropped,
        },
        "members": [_member_statistics(member, inboxes, survey) for member in members],
        "points": sorted(points.values(), key=lambda p: str(p["name"])),
        "services": loaded,
        "totals": dataclasses.asdict(survey.totals),
        "counters": dict(application_counters(members, inboxes)),
    }


def _member_statistics(member: Member, inboxes: Inboxes, survey: Survey) -> dict[str, Any]:
    received = survey.by_inbox[member.inbox_id]
    return {
        "slot": member.slot,
        "kind": member.kind,
        "name": member.name,
        "pid": member.pid,
        "state": member.state,
        "incarnation": member.incarnation,
        "restarts": member.restarts,
        "sent": survey.sent_by.get(member.slot, 0) - member.sent_before,
        "received": dataclasses.asdict(received),
        "delivered": received.delivered,
        "queued": received.queued,
        "held": inboxes.word(member.inbox_id, layout.HELD),
        "retrying": inboxes.word(member.inbox_id, layout.RETRYING),
        "dead_lettered": received.dead_lettered,
        "expired": received.expired,
        "dropped": received.dropped,
        "failed": received.failed,
        "rescued_wakeups": inboxes.word(member.inbox_id, layout.RESCUED_WAKEUPS),
        "corrupted": inboxes.word(member.inbox_id, layout.CORRUPTED),
        "counters": inboxes.counters(member.inbox_id, member.counters),
    }
