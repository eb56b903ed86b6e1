/* The reading end: what LaneConsumer, its `deliver` and Record share. */

#ifndef AEMBUS_LANE_CONSUMER_H
#define AEMBUS_LANE_CONSUMER_H

#include "_lane.h"

#pragma GCC visibility push(hidden)

/* One record that was taken: a private copy of its header, and where it lies. */
typedef struct {
    Header header;
    uint64_t begin;
    uint64_t end;
    uint64_t offset; /* in the ring, in units */
} Taken;

typedef struct {
    PyObject_HEAD
    Memory memory;
    uint64_t head;
    uint64_t taken;     /* the first record that was not taken yet */
    uint64_t tail;      /* the last known tail */
    uint64_t available; /* units between `taken` and `tail` */
    uint64_t refused;   /* a tail that makes no sense; its producer's next may */
    int has_refused;
    PyObject *finished; /* finished before those in front: begin -> end and state, as bytes */
    PyObject *returned; /* a record that `deliver` left to `take` */
    uint64_t delivered; /* by `deliver`, in this process */
    uint64_t runs;      /* calls of `deliver`, so that one sees another inside it */
    Taken in_hand;      /* whose handler `deliver` runs, or that raised */
    PyObject *payload;  /* of `in_hand`; NULL: nothing is in hand */
    uint64_t held;      /* where the record begins that was held last; UINT64_MAX: none was */
    State *module;
} Consumer;

typedef struct {
    PyObject_HEAD
    PyObject *lane;
    PyObject *payload;
    Taken taken;
} Record;

/* Copy out the next record that is not finished: 1, 0 if there is none, -1 with an exception. */
int lane_take(Consumer *self, Taken *taken);

/* Copy the payload of the record that was taken last, before anything else is done. */
static inline PyObject *copy_payload(Consumer *self, const Taken *taken)
{
    const char *at = (const char *)header_at(&self->memory, taken->offset) + RECORD_HEADER_BYTES;
    return PyBytes_FromStringAndSize(at, taken->header.length);
}

/* Move head over every finished record in front; 0, or -1 with an exception set. */
int lane_finish(Consumer *self, uint64_t begin, uint64_t end, uint64_t state);

static inline void store_state(Consumer *self, const Taken *taken, uint64_t state)
{
    store((Word *)&header_at(&self->memory, taken->offset)->state, state);
}

/* Store STARTED and one more attempt, in one word; return the word. */
static inline uint64_t start(Consumer *self, const Taken *taken)
{
    uint64_t attempts = state_attempts(taken->header.state);
    if (attempts < STATE_ATTEMPT_MAX) /* else a producer wrote nonsense there */
        attempts++;
    uint64_t failures = state_failures(taken->header.state);
    uint64_t state = STATE_STARTED | attempts << STATE_ATTEMPT_SHIFT |
                     failures << STATE_FAILURE_SHIFT | state_spared_bits(taken->header.state);
    KILLPOINT("start: taken");
    store_state(self, taken, state);
    KILLPOINT("start: started");
    return state;
}

/* Store DONE and move head over every finished record in front; 0, or -1 with an exception. */
static inline int done(Consumer *self, const Taken *taken)
{
    KILLPOINT("done: handled");
    store_state(self, taken, STATE_DONE);
    KILLPOINT("done: done");
    if (taken->begin == self->head && PyDict_GET_SIZE(self->finished) == 0) {
        self->head = taken->end;
        store(word_at(&self->memory, LANE_HEAD), self->head); /* SYNC POINT: gives room back */
        KILLPOINT("done: head stored");
        return 0;
    }
    return lane_finish(self, taken->begin, taken->end, STATE_DONE);
}

/* A Record of `taken`, or NULL with an exception set. */
PyObject *lane_make_record(Consumer *self, const Taken *taken, PyObject *payload);

/* The methods and attributes that _lane_deliver.c implements. */
PyObject *lane_consumer_deliver(Consumer *self, PyObject *const *args, Py_ssize_t arguments);
PyObject *lane_consumer_get_in_hand(Consumer *self, void *unused);

/* The method that _lane_numbers.c implements. */
PyObject *lane_consumer_take_numbers(Consumer *self, PyObject *budget_object);

#pragma GCC visibility pop

#endif
