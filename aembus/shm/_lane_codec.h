/* msgpack for plain data, in C: what a job's way needs between Python objects and bytes.
 *
 * Plain is None, bool, int of 64 bits, float, str, bytes, and lists, tuples and dictionaries of
 * them, each of exactly that type.  Whatever else there is, or is damaged, is told as "not plain",
 * nothing done: `aembus.codec` deals with it, and raises what is to be raised.  The bytes are those
 * that msgpack makes.
 *
 * Encoding runs no Python code at all.  Decoding may (an allocation may run the collector, and that
 * finalizers), so what is decoded must be held, and be private: it is read more than once.
 */

#ifndef AEMBUS_LANE_CODEC_H
#define AEMBUS_LANE_CODEC_H

#include "_lane.h"

#pragma GCC visibility push(hidden)

#define NOT_PLAIN (-1)
#define DEPTH_MAX 32 /* of nested lists and maps; deeper is not plain */

/* Encode `count` arguments as one array; return its length in bytes, or NOT_PLAIN. */
Py_ssize_t lane_encode(PyObject *const *arguments, Py_ssize_t count, char *buffer, size_t size);

/* Decode one array of at most `max` items, and nothing behind it, into new references.
 *
 * It begins behind the first `skipped` bytes of the payload, which has so many.
 *
 * Return how many there are; NOT_PLAIN, perhaps with an exception set (there is no memory).
 */
Py_ssize_t lane_decode(PyObject *payload, Py_ssize_t skipped, PyObject **items, Py_ssize_t max);

#pragma GCC visibility pop

#endif
