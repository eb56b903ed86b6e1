"""Whether what the members of a scene wrote down agrees, job by job.  Pure.

Three sides that do not know of each other: what senders say that they sent, what receivers say
that they got, and the dead letters; `compare_lane` adds the lanes' counts in shared memory.  An
account covers one life of the bus.  Nobody may be writing when it is settled.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from tests.crash.scene_log import (
    ANSWERED,
    ASK,
    ASK_AGAIN,
    BAD,
    BEGIN,
    END,
    FAILED,
    FRAIL,
    NEWS,
    PROBE,
    RAISED,
    REFUSED,
    SENDERS,
    SENT,
    TIMED_OUT,
    WRONG,
    Entry,
)

SUPERVISOR_SLOT: Final = 0
DEATHS_MAX: Final = 3

Job = tuple[int, int]  # stream, number


class Lane(NamedTuple):
    """A lane: whose log, and the slot it comes from."""

    receiver: str
    origin: int


class Letter(NamedTuple):
    """A dead letter: the job, the lane that it was in (by inbox and origin), its attempts."""

    job: Job | None
    inbox_id: object
    origin: int
    lane_number: int
    attempts: int
    reason: str


class Counts(Protocol):
    """What a lane's cursors say (aembus.shm.lane.LaneCounts)."""

    sent: int
    delivered: int
    dead_lettered: int
    forwarded: int
    queued: int


@dataclass(slots=True)
class Delivery:
    """What became of one job in one lane."""

    job: Job
    point: int
    attempt: int
    pid: int
    ended: bool = False
    raised: bool = False


@dataclass(slots=True)
class LaneAccount:
    """What was seen of one lane."""

    last: int = 0
    ended: int = 0
    by_stream: dict[int, int] = field(default_factory=dict)
    open: dict[int, Delivery] = field(default_factory=dict)  # since the last settling


@dataclass(slots=True)
class Sums:
    """Jobs, summed."""

    activations: int = 0
    answered: int = 0
    failed: int = 0
    jobs: int = 0
    delivered: int = 0
    redelivered: int = 0
    dead_lettered: int = 0
    refused: int = 0
    in_doubt: int = 0
    lost: int = 0
    duplicated: int = 0
    reordered: int = 0
    corrupted: int = 0

    def add(self, other: Sums) -> None:
        """Add another's."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Accounts:
    """The accounts of one life of a bus."""

    def __init__(self) -> None:
        self.sums = Sums()
        self.wrong: list[str] = []
        self.inboxes: dict[str, int] = {}  # of receivers that have a name, by that
        self.ended_by_force: set[int] = set()  # PIDs; whose END need not have become DONE
        self.hung_up: set[int] = set()  # PIDs; whose answers to calls need not have been sent
        self.lanes: defaultdict[Lane, LaneAccount] = defaultdict(LaneAccount)
        self._activations: dict[Job, Entry] = {}
        self._last_sent: dict[int, int] = {}
        self._deliveries: defaultdict[Job, list[tuple[Lane, Delivery]]] = defaultdict(list)
        self._letters: defaultdict[Job, list[Letter]] = defaultdict(list)
        self._dead_in_lane: defaultdict[tuple[object, int], int] = defaultdict(int)
        self._ended_and_dead: defaultdict[tuple[object, int], int] = defaultdict(int)
        self.deliveries_by_pid: defaultdict[int, int] = defaultdict(int)
        self.first_by_pid: dict[int, int] = {}
        self._last_word: dict[int, tuple[Lane, int]] = {}  # by PID: the job it wrote of last

    # --- taking in --------------------------------------------------------------------------------

    def take(self, log: str, entries: Iterable[Entry]) -> None:
        """Take in what one member added to its log."""
        for entry in entries:
            if entry.kind in SENDERS:
                self._take_activation(entry)
            else:
                self._take_delivery(log, entry)

    def _take_activation(self, entry: Entry) -> None:
        expected = self._last_sent.get(entry.stream, 0) + 1
        if entry.number != expected:
            self._complain(f"the harness is wrong: {entry} does not follow {expected - 1}")
        self._last_sent[entry.stream] = entry.number
        self._activations[entry.stream, entry.number] = entry
        if entry.kind == REFUSED:
            self.sums.refused += 1
            return
        self.sums.jobs += entry.jobs
        if entry.kind == SENT:
            self.sums.activations += 1
        elif entry.kind == ANSWERED:
            self.sums.answered += 1
        elif entry.kind == FAILED:
            self.sums.failed += 1
        elif entry.kind == WRONG:
            self._complain(f"answered with something else: {entry}")
        elif entry.kind == TIMED_OUT:
            self._complain(f"a call was left hanging: {entry}")

    def _take_delivery(self, log: str, entry: Entry) -> None:
        lane = Lane(log, entry.origin)
        self._last_word[entry.pid] = (lane, entry.lane_number)
        account = self.lanes[lane]
        found = account.open.get(entry.lane_number)
        if entry.kind == BEGIN:
            self.first_by_pid.setdefault(entry.pid, entry.at_ns)
            if found is None:
                self._take_first(lane, account, entry)
            else:
                self._take_again(lane, found, entry)
            return
        if found is None or found.pid != entry.pid or found.attempt != entry.attempt:
            self._complain(f"ended without a beginning: {lane}, {entry}, {found}")
            return
        if entry.kind == BAD:
            self.sums.corrupted += 1
            self._complain(f"corrupted: {lane}, {entry}")
        elif entry.kind == RAISED:
            found.raised = True
        elif entry.kind == END:
            self.deliveries_by_pid[entry.pid] += 1
            if not found.ended:
                account.ended += 1
            found.ended = True

    def _take_first(self, lane: Lane, account: LaneAccount, entry: Entry) -> None:
        delivery = Delivery((entry.stream, entry.number), entry.point, entry.attempt, entry.pid)
        if entry.lane_number <= account.last:
            self.sums.reordered += 1
            self._complain(f"came after number {account.last} of its lane: {lane}, {entry}")
        account.last = max(account.last, entry.lane_number)
        account.open[entry.lane_number] = delivery
        if entry.point == PROBE:
            return
        # What was sent on by the supervisor may have been overtaken by what was not.
        if entry.origin != SUPERVISOR_SLOT:
            before = account.by_stream.get(entry.stream, 0)
            if entry.number <= before:
                self.sums.reordered += 1
                self._complain(f"came after {before} of its producer: {lane}, {entry}")
            account.by_stream[entry.stream] = entry.number
        self._deliveries[entry.stream, entry.number].append((lane, delivery))

    def _take_again(self, lane: Lane, found: Delivery, entry: Entry) -> None:
        same = found.job == (entry.stream, entry.number)
        if not same or entry.attempt <= found.attempt or entry.pid == found.pid:
            self.sums.duplicated += 1
            self._complain(f"delivered again: {lane}, {entry}, before: {found}")
        if entry.point in (FRAIL, ASK):
            self.sums.duplicated += 1
            self._complain(f"redelivered against its wish: {lane}, {entry}")
        if entry.attempt > DEATHS_MAX:
            self._complain(f"delivered after {DEATHS_MAX} deaths: {lane}, {entry}")
        self.sums.redelivered += 1
        found.attempt, found.pid = entry.attempt, entry.pid

    def take_letter(self, letter: Letter) -> None:
        """Take in a dead letter."""
        if letter.job is not None:
            self.sums.dead_lettered += 1
            self._letters[letter.job].append(letter)
        self._dead_in_lane[letter.inbox_id, letter.origin] += 1

    def deliveries(self, job: Job) -> list[Delivery]:
        """Return how a job was delivered so far, since the last settling."""
        return [delivery for _, delivery in self._deliveries.get(job, [])]

    def letters(self, job: Job) -> list[Letter]:
        """Return a job's dead letters so far, since the last settling."""
        return self._letters.get(job, [])

    # --- settling ---------------------------------------------------------------------------------

    def settle(self) -> None:
        """Judge every job since the last settling; nothing may be queued or in hand."""
        for job in self._jobs_seen():
            self._judge(job)
        for job in self._activations:
            self.sums.delivered += sum(d.ended for _, d in self._deliveries.get(job, ()))
        self._forget()

    def settle_broken(self, queued: int) -> None:
        """Judge every job at the death of the bus.

        Args:
            queued: how many jobs lie in the inboxes; the one in hand counts as queued.
        """
        missing = 0
        for job in self._jobs_seen():
            missing += max(self._judge_presence(job), 0)
        for job in self._activations:
            self.sums.delivered += sum(d.ended for _, d in self._deliveries.get(job, ()))
        if missing > queued:
            self.sums.lost += missing - queued
            self._complain(f"lost at the supervisor's death: {missing}, still queued: {queued}")
        self._forget()

    def _jobs_seen(self) -> list[Job]:
        return [*{**self._activations, **self._deliveries, **self._letters}]

    def _forget(self) -> None:
        for account in self.lanes.values():
            account.open.clear()
        for of in (self._activations, self._deliveries, self._letters):
            of.clear()

    def _judge(self, job: Job) -> None:
        missing = self._judge_presence(job)
        if missing > 0:
            self.sums.lost += missing
            self._complain(f"lost: {self._describe(job)}")

    def _judge_presence(self, job: Job) -> int:
        """Return how many jobs of an activation are neither delivered nor dead letters."""
        activation = self._activations.get(job)
        deliveries = self._deliveries.get(job, [])
        letters = self._letters.get(job, [])
        receivers = [lane.receiver for lane, delivery in deliveries if delivery.ended]
        present = len(receivers) + len(letters)
        if activation is None:
            return self._judge_doubtful(job)
        if activation.kind == REFUSED:
            if deliveries or letters:
                self.sums.duplicated += 1
                self._complain(f"sent though it was refused: {self._describe(job)}")
            return 0
        both = sum(self._is_both(lane, d, letters) for lane, d in deliveries if d.ended)
        if present - both > activation.jobs or len(set(receivers)) < len(receivers):
            self.sums.duplicated += 1
            self._complain(f"more often than sent: {self._describe(job)}")
        if activation.kind == ANSWERED and not receivers:
            self._complain(f"answered by nobody: {self._describe(job)}")
        if activation.kind == FAILED and not letters:
            self._complain(f"failed and no dead letter: {self._describe(job)}")
        return activation.jobs - present + both

    def _judge_doubtful(self, job: Job) -> int:
        stream, number = job
        deliveries = self._deliveries.get(job, [])
        if number != self._last_sent.get(stream, 0) + 1:
            self._complain(f"nobody sent this: {self._describe(job)}")
            return 0
        self.sums.in_doubt += 1
        receivers = [lane.receiver for lane, _ in deliveries]
        news = any(delivery.point == NEWS for _, delivery in deliveries)
        if len(set(receivers)) < len(receivers) or (len(receivers) > 1 and not news):
            self.sums.duplicated += 1
            self._complain(f"more often than sent: {self._describe(job)}")
        # What was begun must have an end.
        ended = sum(delivery.ended for _, delivery in deliveries)
        return max(len(deliveries) - ended - len(self._letters.get(job, [])), 0)

    def _is_both(self, lane: Lane, delivery: Delivery, letters: list[Letter]) -> bool:
        # Its receiver was killed between its END and DONE: then this was its last word.  Or it has
        # hung up, and could not answer this call any more.  And this very record is among the
        # dead letters.
        number = next(n for n, found in self.lanes[lane].open.items() if found is delivery)
        killed = delivery.pid in self.ended_by_force
        last_word = killed and self._last_word[delivery.pid] == (lane, number)
        unanswered = delivery.pid in self.hung_up and delivery.point in (ASK, ASK_AGAIN)
        return (last_word or unanswered) and any(
            letter.attempts > 0
            and (letter.origin, letter.lane_number) == (lane.origin, number)
            and letter.inbox_id == self.inboxes.get(lane.receiver, letter.inbox_id)
            for letter in letters
        )

    def _describe(self, job: Job) -> str:
        return (
            f"job {job}, activation {self._activations.get(job)}, "
            f"deliveries {self._deliveries.get(job)}, letters {self._letters.get(job)}"
        )

    # --- shared memory ----------------------------------------------------------------------------

    def note_ended_and_dead(self, receiver: str, inbox_id: int) -> None:
        """Find the jobs that have an END and became dead letters all the same; before `settle`.

        The lane counts those as dead, the ledger as delivered.
        """
        for letters in self._letters.values():
            for letter in letters:
                if letter.inbox_id == inbox_id:
                    account = self.lanes.get(Lane(receiver, letter.origin))
                    delivery = account.open.get(letter.lane_number) if account else None
                    if delivery is not None and delivery.ended:
                        self._ended_and_dead[inbox_id, letter.origin] += 1

    def compare_lane(
        self, receiver: str, inbox_id: int, origin: int, counts: Counts, *, calls: bool
    ) -> None:
        """Compare a receiver's lane in shared memory with what was written down of it."""
        account = self.lanes.get(Lane(receiver, origin), LaneAccount())
        dead = self._dead_in_lane[inbox_id, origin]
        ended = account.ended - self._ended_and_dead[inbox_id, origin]
        # A call that nobody had begun may have gone back to its caller, who called again.
        forwarded = counts.forwarded if calls else 0
        says = (counts.delivered, counts.dead_lettered, counts.forwarded, counts.queued)
        if says != (ended, dead, forwarded, 0):
            self._complain(
                f"lane into {receiver} from slot {origin}: delivered, dead, forwarded, queued are "
                f"{says} in shared memory and {(ended, dead, forwarded, 0)} in the ledger"
            )

    def _complain(self, text: str) -> None:
        self.wrong.append(text)
