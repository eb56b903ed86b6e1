/* The writing end: claim and commit, inlined into what LaneProducer and Publisher make of them. */

#ifndef AEMBUS_LANE_PRODUCER_H
#define AEMBUS_LANE_PRODUCER_H

#include "_lane.h"

typedef struct {
    PyObject_HEAD
    Memory memory;
    uint64_t tail;
    uint64_t claimed;
    uint64_t free; /* units known to be free behind `claimed` */
    uint64_t payload_bytes_max;
    uint32_t incarnation;
    uint16_t slot;
    const void *claimed_by; /* the Publisher that claimed last, NULL: Python did; only compared */
} Producer;

static inline uint64_t count_free(Producer *self)
{
    uint64_t head = load(word_at(&self->memory, LANE_HEAD));
    uint64_t capacity = self->memory.capacity;
    uint64_t free = head == self->claimed ? capacity : (head - self->claimed) & (capacity - 1);
    /* A cursor counts to CURSOR_COUNT_MAX: see LaneProducer._count_free in lane_producer.py. */
    uint64_t count = (head >> CURSOR_OFFSET_BITS) + capacity - free;
    if (count < self->claimed >> CURSOR_OFFSET_BITS)
        count = self->claimed >> CURSOR_OFFSET_BITS;
    uint64_t left = count < CURSOR_COUNT_MAX ? CURSOR_COUNT_MAX - count : 0;
    return self->free = free < left ? free : left;
}

/* Write a record behind those claimed before; 0 if there is no room, with nothing changed.
 *
 * The lane is open, and `length` not more than `payload_bytes_max`.
 */
static inline int claim(Producer *self, const char *payload, uint64_t length, const Header *fields)
{
    Memory *memory = &self->memory;
    uint64_t units = units_of(length);
    uint64_t cursor = self->claimed;
    uint64_t offset = cursor & CURSOR_OFFSET_MASK;
    uint64_t to_end = memory->capacity - offset;
    uint64_t need = units <= to_end ? units : units + to_end;
    if (need > self->free && need > count_free(self))
        return 0;
    if (units > to_end) {
        Header pad = {.length = (uint32_t)((to_end << UNIT_SHIFT) - RECORD_HEADER_BYTES),
                      .kind = KIND_PAD,
                      .origin_slot = self->slot,
                      .state = STATE_DONE};
        memcpy(header_at(memory, offset), &pad, sizeof pad);
        KILLPOINT("claim: pad written");
        cursor -= offset;
        offset = 0;
        to_end = memory->capacity;
    }
    Header header = *fields;
    header.length = (uint32_t)length;
    header.origin_slot = self->slot;
    header.state = STATE_NEW;
    header.sequence = (cursor >> CURSOR_OFFSET_BITS) + 1;
    header.origin_incarnation = self->incarnation;
    char *at = (char *)header_at(memory, offset);
    KILLPOINT("claim: room found");
    memcpy(at, &header, sizeof header);
    KILLPOINT("claim: header written");
    memcpy(at + sizeof header, payload, length);
    KILLPOINT("claim: payload written");
    self->free -= need;
    if (units == to_end)
        cursor -= offset + units; /* the next record begins at the ring's start */
    self->claimed = cursor + CURSOR_RECORD + units;
    return 1;
}

static inline void commit(Producer *self)
{
    KILLPOINT("commit: claimed");
    store(word_at(&self->memory, LANE_TAIL), self->claimed); /* SYNC POINT: publishes */
    KILLPOINT("commit: tail stored");
    self->tail = self->claimed;
}

/* Count a job that an event goes without; the lane is open. */
static inline void count_dropped(Producer *self)
{
    Word *dropped = word_at(&self->memory, LANE_DROPPED);
    store(dropped, load(dropped) + 1);
}

static inline void abort_claims(Producer *self)
{
    self->claimed = self->tail;
    self->free = 0;
}

#endif
