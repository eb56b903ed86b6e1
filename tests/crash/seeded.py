"""Bugs to be seeded: what a careless change would do to aembus, and who is asked to notice."""

from __future__ import annotations

from typing import Final

from tests.crash.seeding import Bug, Edit, one_test, registry, sweep, sweep_in_c

_SCHEDULES: Final = "shm/test_interleavings.py::"

TAIL_BEFORE_PAYLOAD: Final = Bug(
    "tail before payload",
    "A record is visible whole or not at all.",
    (
        Edit(
            "aembus/shm/lane_producer.py",
            """\
        self._memory[at : at + length] = payload
        self._free -= need
""",
            """\
        wrapped = offset + units if units == to_end else 0
        self._words[self._tail_word] = cursor + CURSOR_RECORD + units - wrapped
        self._memory[at : at + length] = payload
        self._free -= need
""",
        ),
        Edit(
            "aembus/shm/lane_producer.py",
            """\
        sequence = self._plain_sequence + 1
""",
            """\
        sequence = self._plain_sequence + 1
        self._words[self._tail_word] = self._tail + CURSOR_RECORD + units
""",
        ),
    ),
    (
        one_test(
            f"{_SCHEDULES}test_records_are_whole_and_in_order_under_every_schedule",
            "AssertionError: consumer failed",
        ),
        sweep("put", "empty", "FAILED a lane was corrupt"),
        sweep("open", "empty", "FAILED a handler failed"),
    ),
)

TAIL_BEFORE_PAYLOAD_IN_C: Final = Bug(
    "tail before payload, in C",
    "A record is visible whole or not at all.",
    (
        Edit(
            "aembus/shm/_lane_producer.h",
            """\
    KILLPOINT("claim: header written");
    memcpy(""",
            """\
    store(word_at(memory, LANE_TAIL),
          cursor + CURSOR_RECORD + units - (units == to_end ? offset + units : 0));
    KILLPOINT("claim: header written");
    memcpy(""",
        ),
    ),
    (sweep_in_c("put", "empty", "FAILED a handler failed"),),
)

NO_FENCE_OF_THE_SLEEPER: Final = Bug(
    "no fence between sleeping and the last look",
    "Nobody sleeps with a job in its inbox.",
    (
        Edit(
            "aembus/shm/sleeper.py",
            """\
        fence()  # SYNC POINT: pairs with the producer's fence between tail and sleeping
""",
            "",
        ),
    ),
    (
        one_test(
            f"{_SCHEDULES}test_no_schedule_leaves_a_job_with_a_sleeper",
            "not all have finished: [\"owner: Operation(verb='wait'",
        ),
    ),
)

NO_FENCE_OF_THE_PRODUCER: Final = Bug(
    "no fence between tail and the look at sleeping",
    "Nobody sleeps with a job in its inbox, also when the producer's lock is held further out.",
    (
        Edit(
            "aembus/sender.py",
            """\
            fence()  # releasing the lock is one too, but not if it is held further out
""",
            "",
        ),
        Edit(
            "aembus/publisher.py",
            """\
            if is_owned():  # as Gate.is_held_here
                fence()
""",
            "",
        ),
    ),
    (
        one_test(
            f"{_SCHEDULES}test_a_signal_handler_in_the_midst_of_a_refresh_loses_nothing",
            "not all have finished: [\"owner: Operation(verb='wait'",
        ),
    ),
)

NO_FENCE_OF_THE_PRODUCER_IN_C: Final = Bug(
    "no fence between tail and the look at sleeping, in C",
    "Nobody sleeps with a job in its inbox.",
    (
        Edit(
            "aembus/shm/_lane_publisher.c",
            """\
    atomic_thread_fence(memory_order_seq_cst); /* SYNC POINT: pairs with announce_sleep's */
""",
            "",
        ),
    ),
    (
        one_test(
            "shm_c/test_single_step.py::test_a_fence_stands_behind_what_is_published",
            "function=3, steps=",
            "c",
        ),
    ),
)

NO_POST: Final = Bug(
    "no post",
    "A job that is visible is announced.",
    (
        Edit(
            "aembus/shm/peer.py",
            """\
        if sleeping:
            self._ringer.ring(sleeping)
""",
            "",
        ),
    ),
    (sweep("put", "empty", "FAILED nobody woke slot 0 for 1 jobs"),),
)

NO_POST_FOR_THE_DEAD: Final = Bug(
    "no post for the dead",
    "What a dead member owed is done at its death.",
    (
        Edit(
            "aembus/supervisor/core.py",
            """\
        connection.member = None
        self._inboxes.ring_all()
""",
            """\
        connection.member = None
""",
        ),
        Edit(
            "aembus/supervisor/core.py",
            """\
        self._inboxes.ring_all()
        if self._spawn_host.is_member(member):
""",
            """\
        if self._spawn_host.is_member(member):
""",
        ),
    ),
    (
        one_test(
            "crash/test_owed_posts.py::test_a_post_that_a_dead_producer_owes_is_made_for_it",
            "scene.rescued_now() <= RESCUES_MAX",
        ),
    ),
)

DONE_BEFORE_THE_HANDLER: Final = Bug(
    "done before the handler runs",
    "A job in hand at a death comes again.",
    (
        Edit(
            "aembus/shm/lane_consumer.py",
            """\
                event.handler(event, *decode(payload))
""",
            """\
                words[state_word] = STATE_DONE
                event.handler(event, *decode(payload))
""",
        ),
    ),
    (sweep("deliver", "one", "FAILED lost=["),),
)

DONE_BEFORE_THE_HANDLER_IN_C: Final = Bug(
    "done before the handler runs, in C",
    "A job in hand at a death comes again.",
    (
        Edit(
            "aembus/shm/_lane_deliver.c",
            """\
    int is_call = job->taken.header.kind != KIND_JOB && run->answer != NULL;
""",
            """\
    if (done(self, &job->taken) < 0)
        return -1;
    int is_call = job->taken.header.kind != KIND_JOB && run->answer != NULL;
""",
        ),
        Edit(
            "aembus/shm/_lane_deliver.c",
            """\
        return -1;
    if (done(self, &job->taken) < 0)
        return -1;
    return count_delivered(self, run);
""",
            """\
        return -1;
    return count_delivered(self, run);
""",
        ),
    ),
    (sweep_in_c("deliver", "one", "FAILED lost=["),),
)

ATTEMPT_COUNTED_AT_BOOT: Final = Bug(
    "attempt counted at boot",
    "A job counts an attempt when it is begun: who dies before that uses up nothing.",
    (
        Edit(
            "aembus/shm/lane_consumer.py",
            """\
            raise CorruptLane(f"head is outside the ring, head={self._head:#x}")
""",
            """\
            raise CorruptLane(f"head is outside the ring, head={self._head:#x}")
        if self._words[self._tail_word] != self._head:
            first = ring + ((self._head & CURSOR_OFFSET_MASK) << UNIT_SHIFT)
            state_word = (first + layout.RECORD_STATE) >> 3
            attempts = self._words[state_word] >> STATE_ATTEMPT_SHIFT
            if self._words[state_word] & STATE_MASK in (STATE_NEW, STATE_STARTED):
                self._words[state_word] = STATE_STARTED | attempts + 1 << STATE_ATTEMPT_SHIFT
""",
        ),
    ),
    (sweep("boot", "one", "FAILED 2 attempts after 0 deaths"),),
)

SLOT_FREED_AT_HANG_UP: Final = Bug(
    "slot freed at the connection's end",
    "The end of a connection proves no death: nobody touches the inbox of a process that lives.",
    (
        Edit(
            "aembus/supervisor/core.py",
            """\
            loop = asyncio.get_running_loop()
            loop.call_later(HUNG_UP_S, self._warn_of_hung_up, connection)
""",
            """\
            self._on_process_gone(connection)
""",
        ),
    ),
    (
        one_test(
            "crash/test_hang_up.py::"
            "test_a_member_that_hangs_up_keeps_its_slot_until_its_process_ends",
            "assert (",
        ),
    ),
)

LEAVING_WITHOUT_ACKNOWLEDGEMENTS: Final = Bug(
    "leaving without acknowledgements",
    "Nobody writes where nobody reads: an inbox goes when everybody has seen that its owner left.",
    (
        Edit(
            "aembus/supervisor/departures.py",
            """\
        await self._publication.passed(generation)
        self._inboxes.empty(
""",
            """\
        self._inboxes.empty(
""",
        ),
    ),
    (
        one_test(
            "crash/test_stops.py::test_nobodys_inbox_goes_while_a_stopped_member_may_write_to_it",
            'names_by_kind(scene.bus)["inbox"] == inboxes + 1',
        ),
    ),
)

REGISTRY_READ_ONCE: Final = Bug(
    "registry read without a second look",
    "The registry is read whole: one generation, and the document of that generation.",
    (
        Edit(
            "aembus/shm/registry.py",
            """\
            if self.generation != generation:
                continue  # the writer went on meanwhile: this half may be half written
""",
            "",
        ),
        Edit(
            "aembus/shm/registry.py",
            "return document if zlib.crc32(document) == crc else None",
            "return document",
        ),
    ),
    (registry("FAILED reader stopped at"),),
)

REGISTRY_CHECKSUM_ONLY: Final = Bug(
    "registry read with nothing but its checksum",
    "The document belongs to the generation that it is read under.",
    (REGISTRY_READ_ONCE.edits[0],),
    (registry("FAILED reader stopped at"),),
)

HALF_A_FAN_OUT: Final = Bug(
    "half of a fan-out",
    "A fan-out is published to all or to none.",
    (
        Edit(
            "aembus/sender.py",
            """\
                peers.append(peer)
            if full:
""",
            """\
                lane.commit()
                peers.append(peer)
            if full:
""",
        ),
    ),
    (
        sweep("half full", "empty", "FAILED numbers=["),
        sweep("open both", "empty", "FAILED half of activation", fault="interrupt"),
    ),
)

HALF_A_FAN_OUT_IN_C: Final = Bug(
    "half of a fan-out, in C",
    "A fan-out is published to all or to none.",
    (
        Edit(
            "aembus/shm/_lane_publisher.c",
            """\
        lane->claimed_by = self;
""",
            """\
        commit(lane);
        lane->claimed_by = self;
""",
        ),
    ),
    (sweep_in_c("half full", "empty", "FAILED numbers=["),),
)

REAPED_BEFORE_TAKE_OVER: Final = Bug(
    "reaped before take-over",
    "Until a dead worker's place is somebody else's, nobody can get its PID.",
    (
        Edit(
            "aembus/supervisor/workers.py",
            """\
        try:
            self._on_death(worker, decision)
        finally:
            process.wait()
            worker.process = None
""",
            """\
        process.wait()
        worker.process = None
        self._on_death(worker, decision)
""",
        ),
    ),
    (
        one_test(
            "crash/test_pid_reuse.py::test_a_worker_is_taken_over_before_it_is_reaped",
            'process_state(pid) == "Z"',
        ),
    ),
)

POST_OUTSIDE_FINALLY: Final = Bug(
    "post outside of finally",
    "A job that is visible is announced on every way out, Ctrl-C's too.",
    (
        Edit(
            "aembus/sender.py",
            """\
        except BaseException:
            fence()
            for peer in peers:
                peer.ring()
            raise
""",
            """\
        except BaseException:
            raise
""",
        ),
        Edit(
            "aembus/publisher.py",
            """\
            if peer is not None:
                fence()
                peer.ring()
            raise
""",
            """\
            raise
""",
        ),
    ),
    (
        sweep("put", "empty", "FAILED nobody woke slot 0 for 1 jobs", fault="interrupt"),
        sweep("open", "empty", "FAILED nobody woke slot 0 for 1 jobs", fault="interrupt"),
    ),
)

BUGS: Final = (
    TAIL_BEFORE_PAYLOAD,
    TAIL_BEFORE_PAYLOAD_IN_C,
    NO_FENCE_OF_THE_SLEEPER,
    NO_FENCE_OF_THE_PRODUCER,
    NO_FENCE_OF_THE_PRODUCER_IN_C,
    NO_POST,
    NO_POST_FOR_THE_DEAD,
    DONE_BEFORE_THE_HANDLER,
    DONE_BEFORE_THE_HANDLER_IN_C,
    ATTEMPT_COUNTED_AT_BOOT,
    SLOT_FREED_AT_HANG_UP,
    LEAVING_WITHOUT_ACKNOWLEDGEMENTS,
    REGISTRY_READ_ONCE,
    REGISTRY_CHECKSUM_ONLY,
    HALF_A_FAN_OUT,
    HALF_A_FAN_OUT_IN_C,
    REAPED_BEFORE_TAKE_OVER,
    POST_OUTSIDE_FINALLY,
)
