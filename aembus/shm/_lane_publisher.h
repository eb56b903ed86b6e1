/* Publisher, as what else is in C uses it: see _lane_publisher.c. */

#ifndef AEMBUS_LANE_PUBLISHER_H
#define AEMBUS_LANE_PUBLISHER_H

#include "_lane_producer.h"

#pragma GCC visibility push(hidden)

typedef struct {
    Producer *lane;  /* NULL: not open yet */
    PyObject *peer;  /* posted by its ring() */
    Py_buffer words; /* the peer's inbox */
    Word *sleeping;
    uint32_t event_id;
    int drops; /* without room it goes without, and the others do not wait for it */
} Destination;

typedef struct {
    Destination *members;
    Py_ssize_t size;
    Destination *chosen; /* one of them, while publishing; NULL: it goes without */
} Group;

typedef struct {
    PyObject_HEAD
    Py_buffer registry;
    Word *generation_word;
    uint64_t generation;
    uint64_t turn;
    Group *groups;
    Py_ssize_t count;
    uint32_t addressee;
    uint8_t kind;
    uint8_t flags;
} Publisher;

#define IN_TURN (-1) /* in place of a key's hash */

/* Publish a payload to one event of each group: how many jobs that made, 0: leave it to Python,
 * -1 with an exception set: they were published, and a signal handler raised after that. */
Py_ssize_t lane_publish(Publisher *self, const char *payload, uint64_t length, long long key_hash);

/* Send a call to one member of the only group: its place there, from 1 on, 0: leave it to Python,
 * -1 with an exception set: it was sent. */
Py_ssize_t lane_publish_call(Publisher *self, const char *payload, uint64_t length,
                             long long key_hash, uint64_t deadline_ns, uint64_t reply_id);

/* Send an answer to the one member that this is the way to; returns what lane_publish does. */
Py_ssize_t lane_publish_answer(Publisher *self, const char *payload, uint64_t length,
                               uint64_t reply_id);

#pragma GCC visibility pop

#endif
