/* Calls of handlers, as `deliver` runs them: which are plain, and how they are answered. */

#ifndef AEMBUS_LANE_CALLS_H
#define AEMBUS_LANE_CALLS_H

#include "_lane_consumer.h"

#pragma GCC visibility push(hidden)

#define CALL_CHAIN_BYTES 4 /* in front of the data of a call for which no other handler waits */

/* Whether a record is a call that is answered, and that no other handler waits for. */
int lane_is_plain_call(const Header *header, PyObject *payload);

/* Send a handler's result to the caller; 0, or -1 with an exception set.
 *
 * By the caller's Publisher in `publishers`, a dictionary by incarnations; else by calling
 * `answer(record, result, event)`.  Python code may run: look again whether the lane is open.
 */
int lane_answer(Consumer *self, const Taken *taken, PyObject *payload, PyObject *result,
                PyObject *event, PyObject *publishers, PyObject *answer);

#pragma GCC visibility pop

#endif
