/* LaneProducer: the writing end, as Python sees it. */

#include "_lane_producer.h"

static PyObject *producer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"memory", "control", "ring", "ring_bytes", "slot", "incarnation", NULL};
    PyObject *object, *slot_object, *incarnation_object;
    Py_ssize_t control, ring, ring_bytes;
    uint64_t slot, incarnation;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OnnnOO", names, &object, &control, &ring,
                                     &ring_bytes, &slot_object, &incarnation_object) ||
        read_number(slot_object, UINT16_MAX, &slot) < 0 ||
        read_number(incarnation_object, UINT32_MAX, &incarnation) < 0)
        return NULL;
    Producer *self = (Producer *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    if (lane_memory_open(&self->memory, object, control, ring, ring_bytes) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    self->slot = (uint16_t)slot;
    self->incarnation = (uint32_t)incarnation;
    self->payload_bytes_max = payload_bytes_max(&self->memory);
    self->tail = self->claimed = load(word_at(&self->memory, LANE_TAIL));
    if ((self->tail & CURSOR_OFFSET_MASK) >= self->memory.capacity) {
        char text[80];
        snprintf(text, sizeof text, "tail is outside the ring, tail=0x%llx",
                 (unsigned long long)self->tail);
        PyErr_SetString(state_of((PyObject *)self)->corrupt_lane, text);
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static void producer_dealloc(Producer *self)
{
    PyTypeObject *type = Py_TYPE(self);
    lane_memory_close(&self->memory);
    type->tp_free(self);
    Py_DECREF(type);
}

/* --- writing ----------------------------------------------------------------------------------*/

/* Claim a record for `payload`: 1, 0 if there is no room, -1 with an exception set. */
static int claim_payload(Producer *self, const Py_buffer *payload, const Header *fields)
{
    if (memory_check(&self->memory) < 0)
        return -1;
    int claimed = claim(self, payload->buf, (uint64_t)payload->len, fields);
    if (claimed)
        self->claimed_by = NULL;
    return claimed;
}

static PyObject *producer_claim(Producer *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 9) {
        PyErr_Format(PyExc_TypeError, "claim takes 9 arguments, got=%zd", count);
        return NULL;
    }
    uint64_t kind, flags, event_id, key_hash, deadline_ns, reply_id, addressee, activated_ns;
    if (read_number(args[1], UINT8_MAX, &kind) < 0 ||
        read_number(args[2], UINT8_MAX, &flags) < 0 ||
        read_number(args[3], UINT32_MAX, &event_id) < 0 ||
        read_number(args[4], UINT32_MAX, &key_hash) < 0 ||
        read_number(args[5], UINT64_MAX, &deadline_ns) < 0 ||
        read_number(args[6], UINT64_MAX, &reply_id) < 0 ||
        read_number(args[7], UINT32_MAX, &addressee) < 0 ||
        read_number(args[8], UINT64_MAX, &activated_ns) < 0)
        return NULL;
    Header fields = {
        .kind = (uint8_t)kind,
        .flags = (uint8_t)flags,
        .event_id = (uint32_t)event_id,
        .key_hash = (uint32_t)key_hash,
        .deadline_ns = deadline_ns,
        .reply_id = reply_id,
        .addressee = (uint32_t)addressee,
        .activated_ns = activated_ns,
    };
    Py_buffer payload;
    if (PyObject_GetBuffer(args[0], &payload, PyBUF_SIMPLE) < 0)
        return NULL;
    int claimed = -1;
    if ((uint64_t)payload.len <= self->payload_bytes_max)
        claimed = claim_payload(self, &payload, &fields);
    else
        PyErr_Format(PyExc_ValueError, "payload is too long, size=%zd, max=%llu", payload.len,
                     (unsigned long long)self->payload_bytes_max);
    PyBuffer_Release(&payload);
    return claimed < 0 ? NULL : PyBool_FromLong(claimed);
}

static PyObject *producer_commit(Producer *self, PyObject *unused)
{
    if (memory_check(&self->memory) < 0)
        return NULL;
    commit(self);
    Py_RETURN_NONE;
}

/* put(payload, event_id, key_hash, activated_ns): see LaneProducer.put in lane_producer.py. */
static PyObject *producer_put(Producer *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 4) {
        PyErr_Format(PyExc_TypeError, "put takes 4 arguments, got=%zd", count);
        return NULL;
    }
    uint64_t event_id, activated_ns;
    long long key = PyLong_AsLongLong(args[2]);
    if ((key == -1 && PyErr_Occurred()) ||
        read_number(args[1], UINT32_MAX, &event_id) < 0 ||
        read_number(args[3], UINT64_MAX, &activated_ns) < 0)
        return NULL;
    if (key > UINT32_MAX) {
        PyErr_Format(PyExc_OverflowError, "number is too large, key_hash=%lld", key);
        return NULL;
    }
    Header fields = {.kind = KIND_JOB,
                     .event_id = (uint32_t)event_id,
                     .key_hash = key > 0 ? (uint32_t)key : 0,
                     .activated_ns = activated_ns};
    Py_buffer payload;
    if (PyObject_GetBuffer(args[0], &payload, PyBUF_SIMPLE) < 0)
        return NULL;
    uint64_t length = (uint64_t)payload.len;
    uint64_t to_end = self->memory.capacity - (self->claimed & CURSOR_OFFSET_MASK);
    int claimed = 0;
    if (length <= self->payload_bytes_max && units_of(length) < to_end &&
        self->claimed == self->tail)
        claimed = claim_payload(self, &payload, &fields);
    if (claimed > 0)
        commit(self);
    PyBuffer_Release(&payload);
    return claimed < 0 ? NULL : PyBool_FromLong(claimed);
}

static PyObject *producer_abort(Producer *self, PyObject *unused)
{
    abort_claims(self);
    Py_RETURN_NONE;
}

/* --- room -------------------------------------------------------------------------------------*/

static PyObject *producer_want_room(Producer *self, PyObject *wanted)
{
    int truth = PyObject_IsTrue(wanted);
    if (truth < 0)
        return NULL;
    if (self->memory.open) /* else another thread closed the lane: its owner has left */
        store(word_at(&self->memory, LANE_ROOM_WANTED), (uint64_t)truth);
    Py_RETURN_NONE;
}

static PyObject *producer_has_room(Producer *self, PyObject *unused)
{
    if (!self->memory.open) /* as above: whoever waits for room looks again */
        Py_RETURN_TRUE;
    uint64_t head = load(word_at(&self->memory, LANE_HEAD));
    if (head == self->tail)
        Py_RETURN_TRUE;
    uint64_t free = (head - self->tail) & (self->memory.capacity - 1);
    return PyBool_FromLong(free * 2 >= self->memory.capacity);
}

static PyObject *producer_count_dropped(Producer *self, PyObject *unused)
{
    if (self->memory.open) /* as above: nobody reads it any more */
        count_dropped(self);
    Py_RETURN_NONE;
}

static PyObject *producer_sent(Producer *self, PyObject *unused)
{
    return PyLong_FromUnsignedLongLong(self->tail >> CURSOR_OFFSET_BITS);
}

static PyObject *producer_close(Producer *self, PyObject *unused)
{
    lane_memory_close(&self->memory);
    Py_RETURN_NONE;
}

static PyObject *producer_get_payload_bytes_max(Producer *self, void *unused)
{
    return PyLong_FromUnsignedLongLong(self->payload_bytes_max);
}

/* --- the type ---------------------------------------------------------------------------------*/

static PyMethodDef producer_methods[] = {
    {"claim", (PyCFunction)(void (*)(void))producer_claim, METH_FASTCALL, NULL},
    {"put", (PyCFunction)(void (*)(void))producer_put, METH_FASTCALL, NULL},
    {"commit", (PyCFunction)producer_commit, METH_NOARGS, NULL},
    {"abort", (PyCFunction)producer_abort, METH_NOARGS, NULL},
    {"want_room", (PyCFunction)producer_want_room, METH_O, NULL},
    {"has_room", (PyCFunction)producer_has_room, METH_NOARGS, NULL},
    {"count_dropped", (PyCFunction)producer_count_dropped, METH_NOARGS, NULL},
    {"sent", (PyCFunction)producer_sent, METH_NOARGS, NULL},
    {"close", (PyCFunction)producer_close, METH_NOARGS, NULL},
    {NULL},
};

static PyGetSetDef producer_getset[] = {
    {"payload_bytes_max", (getter)producer_get_payload_bytes_max, NULL, NULL, NULL},
    {NULL},
};

static PyType_Slot producer_slots[] = {
    {Py_tp_doc, "The writing end of a lane; see aembus.shm.lane.LaneProducer."},
    {Py_tp_new, producer_new},
    {Py_tp_dealloc, producer_dealloc},
    {Py_tp_methods, producer_methods},
    {Py_tp_getset, producer_getset},
    {0, NULL},
};

PyType_Spec lane_producer_spec = {"aembus.shm._lane.LaneProducer", sizeof(Producer), 0,
                                  Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, producer_slots};
