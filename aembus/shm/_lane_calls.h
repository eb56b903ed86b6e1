/* Calls: how `deliver` answers those of handlers, and how a Publisher makes one. */

#ifndef AEMBUS_LANE_CALLS_H
#define AEMBUS_LANE_CALLS_H

#include "_lane_consumer.h"
#include "_lane_publisher.h"

#pragma GCC visibility push(hidden)

#define CALL_CHAIN_BYTES 4 /* in front of the data of a call for which no other handler waits */

/* Whether a record is a call that is answered, and that no other handler waits for. */
int lane_is_plain_call(const Header *header, PyObject *payload);

/* Send a handler's result to the caller: 0; 1 if it cannot be sent any more, and the call is to
 * stay in hand; -1 with an exception set.
 *
 * By the caller's Publisher in `publishers`, a dictionary by incarnations; else by calling
 * `answer(record, result, event)`, which returns False if it cannot be sent.  Python code may run:
 * look again whether the lane is open.
 */
int lane_answer(Consumer *self, const Taken *taken, PyObject *payload, PyObject *result,
                PyObject *event, PyObject *publishers, PyObject *answer);

/* The method of Publisher that _lane_calls.c implements: see _lane.pyi. */
PyObject *lane_publisher_call(Publisher *self, PyObject *const *args, Py_ssize_t arguments);

#pragma GCC visibility pop

#endif
