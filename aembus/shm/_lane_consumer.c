/* LaneConsumer: the reading end, as Python sees it; `deliver` is in _lane_deliver.c. */

#include "_lane_consumer.h"

static void corrupt(Consumer *self, const char *what, uint64_t cursor, const Header *h)
{
    char text[400];
    if (h == NULL)
        snprintf(text, sizeof text, "%s=0x%llx", what, (unsigned long long)cursor);
    else
        snprintf(text, sizeof text,
                 "%s cannot be followed, cursor=0x%llx, header=(%u, %u, %u, %u, %llu, %llu, ...)",
                 what, (unsigned long long)cursor, h->length, h->kind, h->flags, h->origin_slot,
                 (unsigned long long)h->state, (unsigned long long)h->sequence);
    PyErr_SetString(self->module->corrupt_lane, text);
}

static PyObject *consumer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"memory", "control", "ring", "ring_bytes", NULL};
    PyObject *object;
    Py_ssize_t control, ring, ring_bytes;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Onnn", names, &object, &control, &ring,
                                     &ring_bytes))
        return NULL;
    Consumer *self = (Consumer *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->module = state_of((PyObject *)self);
    self->held = UINT64_MAX;
    self->finished = PyDict_New();
    if (self->finished == NULL ||
        lane_memory_open(&self->memory, object, control, ring, ring_bytes) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    self->head = self->taken = self->tail = load(word_at(&self->memory, LANE_HEAD));
    if ((self->head & CURSOR_OFFSET_MASK) >= self->memory.capacity) {
        corrupt(self, "head is outside the ring, head", self->head, NULL);
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

/* `finished` and `payload` hold numbers and bytes alone, and are in no cycle. */
static int consumer_traverse(Consumer *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->returned);
    return 0;
}

static int consumer_clear(Consumer *self)
{
    Py_CLEAR(self->returned);
    return 0;
}

static void consumer_dealloc(Consumer *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_CLEAR(self->returned);
    Py_CLEAR(self->finished);
    Py_CLEAR(self->payload);
    lane_memory_close(&self->memory);
    type->tp_free(self);
    Py_DECREF(type);
}

/* --- what is there ----------------------------------------------------------------------------*/

/* How much lies between what was taken and `tail`; 0 if nothing can. */
static uint64_t units_before(Consumer *self, uint64_t tail)
{
    uint64_t capacity = self->memory.capacity;
    uint64_t before = self->taken >> CURSOR_OFFSET_BITS, after = tail >> CURSOR_OFFSET_BITS;
    uint64_t units = (tail - self->taken) & (capacity - 1);
    if (units == 0)
        units = capacity;
    int possible = (tail & CURSOR_OFFSET_MASK) < capacity && after > before &&
                   after - before <= units && before + units <= CURSOR_COUNT_MAX;
    return possible ? units : 0;
}

static inline int is_news(Consumer *self, uint64_t tail)
{
    return tail != self->taken && !(self->has_refused && tail == self->refused);
}

/* 1: there is more, 0: there is not, -1: an exception is set. */
static int look_for_more(Consumer *self)
{
    uint64_t tail = load(word_at(&self->memory, LANE_TAIL)); /* SYNC POINT: acquires records */
    if (!is_news(self, tail))
        return 0;
    self->available = units_before(self, tail);
    if (self->available == 0) {
        char what[80];
        snprintf(what, sizeof what, "tail makes no sense, taken=0x%llx, tail",
                 (unsigned long long)self->taken);
        corrupt(self, what, tail, NULL);
        return -1;
    }
    self->tail = tail;
    return 1;
}

/* Make a private copy of a header; only that is checked and used. */
static inline void copy_header(Consumer *self, Header *header, uint64_t offset)
{
    memcpy(header, header_at(&self->memory, offset), sizeof *header);
    /* The producer may change its bytes at any time, so they must not be read a second time where
     * the compiler finds it cheaper than to keep the copy. */
    atomic_signal_fence(memory_order_seq_cst);
}

int lane_take(Consumer *self, Taken *taken)
{
    uint64_t capacity = self->memory.capacity;
    Header *header = &taken->header;
    for (;;) {
        uint64_t cursor = taken->begin = self->taken;
        if (cursor == self->tail) {
            int more = look_for_more(self);
            if (more <= 0)
                return more;
        }
        uint64_t available = self->available;
        uint64_t offset = cursor & CURSOR_OFFSET_MASK;
        copy_header(self, header, offset);
        if (header->kind == KIND_PAD) {
            uint64_t units = capacity - offset;
            if (offset == 0 || header->length != units * UNIT - RECORD_HEADER_BYTES ||
                available <= units) {
                corrupt(self, "pad", cursor, header);
                return -1;
            }
            available -= units;
            cursor -= offset;
            offset = 0;
            copy_header(self, header, offset);
        }
        uint64_t units = units_of(header->length);
        uint64_t after = offset + units;
        if (header->sequence != (cursor >> CURSOR_OFFSET_BITS) + 1 || after > capacity ||
            header->length > payload_bytes_max(&self->memory) || units > available ||
            header->kind <= KIND_PAD || header->kind > KIND_LAST) {
            corrupt(self, "record", cursor, header);
            return -1;
        }
        self->available = available - units;
        uint64_t end = cursor + CURSOR_RECORD + units;
        if (after == capacity)
            end -= after; /* the next record begins at the ring's start */
        self->taken = taken->end = end;
        KILLPOINT("take: taken");
        taken->offset = offset;
        if ((header->state & STATE_MASK) < STATE_DONE)
            return 1;
        /* Finished by an earlier incarnation. */
        if (lane_finish(self, taken->begin, end, header->state & STATE_MASK) < 0)
            return -1;
    }
}

static PyObject *consumer_take(Consumer *self, PyObject *unused)
{
    if (memory_check(&self->memory) < 0)
        return NULL;
    if (self->returned != NULL) {
        PyObject *record = self->returned;
        self->returned = NULL;
        return record;
    }
    Taken taken;
    int found = lane_take(self, &taken);
    if (found < 0)
        return NULL;
    if (found == 0)
        Py_RETURN_NONE;
    PyObject *payload = copy_payload(self, &taken);
    PyObject *record = payload == NULL ? NULL : lane_make_record(self, &taken, payload);
    Py_XDECREF(payload);
    return record;
}

/* See LaneConsumer.take_again in lane_consumer.py. */
static PyObject *consumer_take_again(Consumer *self, PyObject *unused)
{
    self->taken = self->tail = self->head;
    self->available = 0;
    Py_CLEAR(self->returned);
    Py_RETURN_NONE;
}

static PyObject *consumer_has_records(Consumer *self, PyObject *unused)
{
    if (memory_check(&self->memory) < 0)
        return NULL;
    uint64_t tail = load(word_at(&self->memory, LANE_TAIL));
    return PyBool_FromLong(self->returned != NULL || is_news(self, tail));
}

/* --- finishing --------------------------------------------------------------------------------*/

#define COUNT_MASK UINT64_C(0xFFFFFFFF)

static void count(Consumer *self, int offset, uint64_t sequence, uint64_t records)
{
    /* See LaneConsumer._count in lane_consumer.py. */
    Word *word = word_at(&self->memory, offset);
    uint64_t counted = load(word);
    uint64_t head = load(word_at(&self->memory, LANE_HEAD)) >> CURSOR_OFFSET_BITS;
    uint64_t last_counted = ((counted >> 32) - head) & COUNT_MASK;
    uint64_t ahead = (sequence - head) & COUNT_MASK;
    if (counted == 0 || !(ahead <= last_counted && last_counted <= self->memory.capacity))
        store(word, (sequence & COUNT_MASK) << 32 | ((counted + records) & COUNT_MASK));
    KILLPOINT("finish: counted");
}

typedef struct {
    uint64_t end;
    uint64_t state;
} Finished;

/* Numbers and bytes, unlike a tuple, are made without the collector running, whose finalizers
 * might close the lane under our hands. */
static int keep_finished(Consumer *self, uint64_t begin, uint64_t end, uint64_t state)
{
    Finished finished = {end, state};
    PyObject *key = PyLong_FromUnsignedLongLong(begin);
    PyObject *value = PyBytes_FromStringAndSize((const char *)&finished, sizeof finished);
    int failed = key == NULL || value == NULL || PyDict_SetItem(self->finished, key, value) < 0;
    Py_XDECREF(key);
    Py_XDECREF(value);
    return failed ? -1 : 0;
}

/* Take out what begins there: 1, 0 if nothing does, -1 with an exception set. */
static int pop_finished(Consumer *self, uint64_t begin, Finished *finished)
{
    PyObject *key = PyLong_FromUnsignedLongLong(begin);
    if (key == NULL)
        return -1;
    PyObject *value = PyDict_GetItemWithError(self->finished, key);
    int found = value != NULL ? 1 : PyErr_Occurred() ? -1 : 0;
    if (found > 0) {
        memcpy(finished, PyBytes_AS_STRING(value), sizeof *finished);
        if (PyDict_DelItem(self->finished, key) < 0)
            found = -1;
    }
    Py_DECREF(key);
    return found;
}

int lane_finish(Consumer *self, uint64_t begin, uint64_t end, uint64_t state)
{
    int found = keep_finished(self, begin, end, state) < 0 ? -1 : 1;
    uint64_t head = self->head;
    Finished finished;
    while (found > 0 && (found = pop_finished(self, head, &finished)) > 0) {
        uint64_t before = head >> CURSOR_OFFSET_BITS;
        head = finished.end;
        uint64_t sequence = head >> CURSOR_OFFSET_BITS;
        if (finished.state == STATE_DEAD)
            count(self, LANE_DEAD, sequence, sequence - before);
        else if (finished.state == STATE_FORWARDED)
            count(self, LANE_FORWARDED, sequence, sequence - before);
    }
    self->head = head;
    store(word_at(&self->memory, LANE_HEAD), head); /* SYNC POINT: gives room back */
    KILLPOINT("finish: head stored");
    return found;
}

static Record *own_record(Consumer *self, PyObject *object)
{
    if (memory_check(&self->memory) < 0)
        return NULL;
    if (!Py_IS_TYPE(object, self->module->record) || ((Record *)object)->lane != (PyObject *)self) {
        PyErr_SetString(PyExc_TypeError, "not a record of this lane");
        return NULL;
    }
    return (Record *)object;
}

static PyObject *consumer_start(Consumer *self, PyObject *object)
{
    Record *record = own_record(self, object);
    if (record == NULL)
        return NULL;
    uint64_t state = record->taken.header.state = start(self, &record->taken);
    return PyLong_FromUnsignedLongLong(state_attempts(state));
}

static PyObject *consumer_fail(Consumer *self, PyObject *object)
{
    Record *record = own_record(self, object);
    if (record == NULL)
        return NULL;
    uint64_t state = record->taken.header.state;
    uint64_t failures = state_failures(state);
    if (failures < STATE_FAILURE_MAX)
        failures++;
    state = STATE_FAILED | state_attempts(state) << STATE_ATTEMPT_SHIFT |
            failures << STATE_FAILURE_SHIFT | state_spared_bits(state);
    store_state(self, &record->taken, state);
    record->taken.header.state = state;
    return PyLong_FromUnsignedLongLong(failures);
}

static PyObject *consumer_hold(Consumer *self, PyObject *object)
{
    Record *record = own_record(self, object);
    if (record == NULL)
        return NULL;
    record->taken.header.state = (record->taken.header.state & ~(uint64_t)STATE_MASK) | STATE_HELD;
    store_state(self, &record->taken, record->taken.header.state);
    self->held = record->taken.begin;
    Py_RETURN_NONE;
}

static PyObject *consumer_mark_done(Consumer *self, PyObject *object)
{
    Record *record = own_record(self, object);
    if (record == NULL)
        return NULL;
    store_state(self, &record->taken, STATE_DONE);
    Py_RETURN_NONE;
}

static PyObject *consumer_done(Consumer *self, PyObject *object)
{
    Record *record = own_record(self, object);
    if (record == NULL || done(self, &record->taken) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *finish_as(Consumer *self, PyObject *object, uint64_t state)
{
    Record *record = own_record(self, object);
    if (record == NULL)
        return NULL;
    store_state(self, &record->taken, state);
    KILLPOINT("finish: state stored");
    if (lane_finish(self, record->taken.begin, record->taken.end, state) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *consumer_dead(Consumer *self, PyObject *object)
{
    return finish_as(self, object, STATE_DEAD);
}

static PyObject *consumer_forwarded(Consumer *self, PyObject *object)
{
    return finish_as(self, object, STATE_FORWARDED);
}

static PyObject *consumer_skip_to_tail(Consumer *self, PyObject *unused)
{
    if (memory_check(&self->memory) < 0)
        return NULL;
    uint64_t tail = load(word_at(&self->memory, LANE_TAIL));
    uint64_t begin = self->taken;
    if (tail != begin && units_before(self, tail) == 0) {
        self->refused = tail;
        self->has_refused = 1;
        tail = begin;
    }
    self->taken = self->tail = tail;
    self->available = 0;
    if (tail != begin && lane_finish(self, begin, tail, STATE_DEAD) < 0)
        return NULL;
    return PyLong_FromUnsignedLongLong((tail >> CURSOR_OFFSET_BITS) -
                                       (begin >> CURSOR_OFFSET_BITS));
}

static PyObject *consumer_wants_post(Consumer *self, PyObject *unused)
{
    if (memory_check(&self->memory) < 0)
        return NULL;
    if (!load(word_at(&self->memory, LANE_ROOM_WANTED)))
        Py_RETURN_FALSE;
    uint64_t tail = load(word_at(&self->memory, LANE_TAIL));
    uint64_t capacity = self->memory.capacity;
    uint64_t used = (tail - self->head) & (capacity - 1);
    if (used == 0 && tail != self->head)
        used = capacity;
    return PyBool_FromLong(used * 2 <= capacity);
}

static PyObject *consumer_close(Consumer *self, PyObject *unused)
{
    lane_memory_close(&self->memory);
    Py_RETURN_NONE;
}

static PyObject *consumer_get_delivered(Consumer *self, void *unused)
{
    return PyLong_FromUnsignedLongLong(self->delivered);
}

/* --- the type ---------------------------------------------------------------------------------*/

static PyMethodDef consumer_methods[] = {
    {"has_records", (PyCFunction)consumer_has_records, METH_NOARGS, NULL},
    {"take", (PyCFunction)consumer_take, METH_NOARGS, NULL},
    {"take_again", (PyCFunction)consumer_take_again, METH_NOARGS, NULL},
    {"take_numbers", (PyCFunction)lane_consumer_take_numbers, METH_O, NULL},
    {"start", (PyCFunction)consumer_start, METH_O, NULL},
    {"fail", (PyCFunction)consumer_fail, METH_O, NULL},
    {"hold", (PyCFunction)consumer_hold, METH_O, NULL},
    {"mark_done", (PyCFunction)consumer_mark_done, METH_O, NULL},
    {"done", (PyCFunction)consumer_done, METH_O, NULL},
    {"dead", (PyCFunction)consumer_dead, METH_O, NULL},
    {"forwarded", (PyCFunction)consumer_forwarded, METH_O, NULL},
    {"skip_to_tail", (PyCFunction)consumer_skip_to_tail, METH_NOARGS, NULL},
    {"wants_post", (PyCFunction)consumer_wants_post, METH_NOARGS, NULL},
    {"deliver", (PyCFunction)(void (*)(void))lane_consumer_deliver, METH_FASTCALL, NULL},
    {"close", (PyCFunction)consumer_close, METH_NOARGS, NULL},
    {NULL},
};

static PyGetSetDef consumer_getset[] = {
    {"in_hand", (getter)lane_consumer_get_in_hand, NULL, NULL, NULL},
    {"delivered", (getter)consumer_get_delivered, NULL, NULL, NULL},
    {NULL},
};

static PyType_Slot consumer_slots[] = {
    {Py_tp_doc, "The reading end of a lane; see aembus.shm.lane.LaneConsumer."},
    {Py_tp_new, consumer_new},
    {Py_tp_traverse, consumer_traverse},
    {Py_tp_clear, consumer_clear},
    {Py_tp_dealloc, consumer_dealloc},
    {Py_tp_methods, consumer_methods},
    {Py_tp_getset, consumer_getset},
    {0, NULL},
};

PyType_Spec lane_consumer_spec = {"aembus.shm._lane.LaneConsumer", sizeof(Consumer), 0,
                                  Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC |
                                      Py_TPFLAGS_IMMUTABLETYPE,
                                  consumer_slots};
