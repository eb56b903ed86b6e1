/* LaneConsumer.take_numbers: calls of numbers, taken and finished many at a time. */

#include "_lane_consumer.h"

static int has_numbers(const Header *header)
{
    return header->kind == KIND_CALL && (header->flags & FLAG_NUMBERS) && header->length == 0;
}

/* Take the numbers of up to `budget` records of one call into `pairs`: how many, or -1 with an
 * exception set.  `first` is the header of the first.  What ends it otherwise is left to `take`. */
static Py_ssize_t collect_numbers(Consumer *self, uint64_t *pairs, Py_ssize_t budget, Header *first)
{
    Py_ssize_t count = 0;
    int found = 1;
    Taken taken;
    while (count < budget && (found = lane_take(self, &taken)) > 0) {
        const Header *header = &taken.header;
        if (count == 0)
            *first = *header;
        if (!has_numbers(header) || header->event_id != first->event_id ||
            header->origin_incarnation != first->origin_incarnation) {
            PyObject *payload = copy_payload(self, &taken);
            self->returned = payload == NULL ? NULL : lane_make_record(self, &taken, payload);
            Py_XDECREF(payload);
            return self->returned == NULL ? -1 : count;
        }
        pairs[2 * count] = header->reply_id;
        pairs[2 * count + 1] = header->deadline_ns;
        count++;
        if (done(self, &taken) < 0)
            return -1;
    }
    if (found < 0 && count > 0) {
        PyErr_Clear(); /* it is found again at the next call */
        found = 0;
    }
    return found < 0 ? -1 : count;
}

PyObject *lane_consumer_take_numbers(Consumer *self, PyObject *budget_object)
{
    Py_ssize_t budget = PyLong_AsSsize_t(budget_object);
    if ((budget == -1 && PyErr_Occurred()) || memory_check(&self->memory) < 0)
        return NULL;
    if (budget < 1 || self->returned != NULL ||
        load(word_at(&self->memory, LANE_TAIL)) == self->taken)
        Py_RETURN_NONE;
    if ((uint64_t)budget > self->memory.capacity) /* a lane never holds more */
        budget = (Py_ssize_t)self->memory.capacity;
    uint64_t *pairs = PyMem_Malloc((size_t)budget * 2 * sizeof *pairs);
    if (pairs == NULL)
        return PyErr_NoMemory();
    Header first;
    Py_ssize_t count = collect_numbers(self, pairs, budget, &first);
    PyObject *numbers = NULL;
    if (count > 0)
        numbers = PyBytes_FromStringAndSize((const char *)pairs,
                                            count * 2 * (Py_ssize_t)sizeof *pairs);
    PyMem_Free(pairs);
    if (count == 0)
        Py_RETURN_NONE;
    return numbers == NULL ? NULL
                           : Py_BuildValue("(IIN)", first.event_id, first.origin_incarnation,
                                           numbers);
}
