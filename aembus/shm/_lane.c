/* The lane in C: the twin of lane.py, same names, same layout, same promises.
 *
 * Optional: built where a compiler is found.  `aembus.shm.lanes` chooses between the two.
 *
 * Everything in a function here runs under the GIL without giving it up, so to the other threads
 * and the signal handlers of the process it is one step.  What other processes see is ordered by
 * C11 atomics: `tail` and `head` are released and acquired, and a seq_cst fence stands between
 * storing `tail` and reading `sleeping`.
 *
 * Beside the two ends of a lane it has the two inner loops that profiles showed to be the cost of
 * a job: Publisher.publish (pick, claim, commit, look whether to post) and LaneConsumer.deliver
 * (take, decode, call the handler, done).  Whatever is not the plain case they leave to Python.
 *
 * The whole API is used and not the limited one: calls by vectorcall are a third of the cost of a
 * job, and the limited API has them from 3.12 on only.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

/* --- layout.py's numbers; test_lane_c.py compares them with it --------------------------------*/

enum {
    LANE_TAIL = 0,
    LANE_ROOM_WANTED = 8,
    LANE_HEAD = 64,
    LANE_DEAD = 72,
    LANE_FORWARDED = 80,
    LANE_CONTROL_BYTES = 128,
    UNIT = 64,
    UNIT_SHIFT = 6,
    CURSOR_OFFSET_BITS = 18,
    RECORD_HEADER_BYTES = 64,
    KIND_PAD = 1,
    KIND_JOB = 2,
    KIND_LAST = 5,
    STATE_NEW = 1,
    STATE_STARTED = 2,
    STATE_DONE = 3,
    STATE_DEAD = 4,
    STATE_FORWARDED = 5,
    STATE_MASK = 0xFF,
    STATE_ATTEMPT_SHIFT = 8,
};

#define CURSOR_OFFSET_MASK ((UINT64_C(1) << CURSOR_OFFSET_BITS) - 1)
#define CURSOR_RECORD (UINT64_C(1) << CURSOR_OFFSET_BITS)
#define COUNT_MASK UINT64_C(0xFFFFFFFF)
#define ARGUMENTS_ON_STACK 16

typedef struct {
    uint32_t length;
    uint8_t kind;
    uint8_t flags;
    uint16_t origin_slot;
    uint64_t state;
    uint64_t sequence;
    uint64_t activated_ns;
    uint64_t deadline_ns;
    uint64_t reply_id;
    uint32_t origin_incarnation;
    uint32_t addressee;
    uint32_t event_id;
    uint32_t key_hash;
} Header;

_Static_assert(sizeof(Header) == RECORD_HEADER_BYTES, "a header is one cache line");
_Static_assert(offsetof(Header, state) == 8, "state is the second word");
_Static_assert(sizeof(_Atomic uint64_t) == 8, "a word is stored in one piece");

typedef _Atomic uint64_t Word;

static inline uint64_t load(Word *word) { return atomic_load_explicit(word, memory_order_acquire); }

static inline void store(Word *word, uint64_t value)
{
    atomic_store_explicit(word, value, memory_order_release);
}

static inline uint64_t units_of(uint64_t length)
{
    return (length + RECORD_HEADER_BYTES + UNIT - 1) >> UNIT_SHIFT;
}

static uint64_t monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

typedef struct {
    PyTypeObject *producer;
    PyTypeObject *consumer;
    PyTypeObject *record;
    PyTypeObject *publisher;
    PyObject *corrupt_lane;
    PyObject *str_handler;
    PyObject *str_lane;
    PyObject *str_delivered;
    PyObject *str_once;
    PyObject *str_ring;
} State;

static struct PyModuleDef lane_module;

static State *state_of(PyObject *self)
{
    return PyModule_GetState(PyType_GetModuleByDef(Py_TYPE(self), &lane_module));
}

/* --- the memory that both ends use ------------------------------------------------------------*/

typedef struct {
    Py_buffer buffer;
    int open;
    char *control;
    char *ring;
    uint64_t capacity; /* in units, a power of two */
} Memory;

static int memory_open(Memory *memory, PyObject *object, Py_ssize_t control, Py_ssize_t ring,
                       Py_ssize_t ring_bytes)
{
    if (PyObject_GetBuffer(object, &memory->buffer, PyBUF_WRITABLE) < 0)
        return -1;
    Py_ssize_t size = memory->buffer.len;
    int fits = control >= 0 && control % UNIT == 0 && ring >= 0 && ring % UNIT == 0 &&
               ring_bytes >= 2 * UNIT && (ring_bytes & (ring_bytes - 1)) == 0 &&
               (uint64_t)ring_bytes <= (uint64_t)UNIT << CURSOR_OFFSET_BITS &&
               control <= size - LANE_CONTROL_BYTES && ring <= size - ring_bytes &&
               ((uintptr_t)memory->buffer.buf & 7) == 0;
    if (!fits) {
        PyBuffer_Release(&memory->buffer);
        PyErr_Format(PyExc_ValueError,
                     "no lane fits there, size=%zd, control=%zd, ring=%zd, ring_bytes=%zd", size,
                     control, ring, ring_bytes);
        return -1;
    }
    memory->control = (char *)memory->buffer.buf + control;
    memory->ring = (char *)memory->buffer.buf + ring;
    memory->capacity = (uint64_t)ring_bytes >> UNIT_SHIFT;
    memory->open = 1;
    return 0;
}

static void memory_close(Memory *memory)
{
    if (memory->open) {
        memory->open = 0;
        PyBuffer_Release(&memory->buffer);
    }
}

static int memory_check(Memory *memory)
{
    if (memory->open)
        return 0;
    PyErr_SetString(PyExc_ValueError, "operation on a closed lane");
    return -1;
}

static inline Word *word_at(Memory *memory, int offset)
{
    return (Word *)(memory->control + offset);
}

static inline Header *header_at(Memory *memory, uint64_t offset)
{
    return (Header *)(memory->ring + (offset << UNIT_SHIFT));
}

/* --- LaneProducer -----------------------------------------------------------------------------*/

typedef struct {
    PyObject_HEAD
    Memory memory;
    uint64_t tail;
    uint64_t claimed;
    uint64_t free; /* units known to be free behind `claimed` */
    uint64_t payload_bytes_max;
    uint32_t slot;
    uint32_t incarnation;
} Producer;

static PyObject *producer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"memory", "control", "ring", "ring_bytes", "slot", "incarnation", NULL};
    PyObject *object;
    Py_ssize_t control, ring, ring_bytes;
    unsigned int slot, incarnation;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OnnnII", names, &object, &control, &ring,
                                     &ring_bytes, &slot, &incarnation))
        return NULL;
    Producer *self = (Producer *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    if (memory_open(&self->memory, object, control, ring, ring_bytes) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    self->slot = slot;
    self->incarnation = incarnation;
    self->payload_bytes_max = (uint64_t)ring_bytes / 2 - RECORD_HEADER_BYTES;
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
    memory_close(&self->memory);
    type->tp_free(self);
    Py_DECREF(type);
}

static uint64_t count_free(Producer *self)
{
    uint64_t head = load(word_at(&self->memory, LANE_HEAD));
    uint64_t capacity = self->memory.capacity;
    self->free = head == self->claimed ? capacity : (head - self->claimed) & (capacity - 1);
    return self->free;
}

/* Write a record behind those claimed before; 0 if there is no room, with nothing changed. */
static int claim(Producer *self, const char *payload, uint64_t length, const Header *fields)
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
                      .origin_slot = (uint16_t)self->slot,
                      .state = STATE_DONE};
        memcpy(header_at(memory, offset), &pad, sizeof pad);
        cursor -= offset;
        offset = 0;
        to_end = memory->capacity;
    }
    Header header = *fields;
    header.length = (uint32_t)length;
    header.origin_slot = (uint16_t)self->slot;
    header.state = STATE_NEW;
    header.sequence = (cursor >> CURSOR_OFFSET_BITS) + 1;
    header.origin_incarnation = self->incarnation;
    char *at = (char *)header_at(memory, offset);
    memcpy(at, &header, sizeof header);
    memcpy(at + sizeof header, payload, length);
    self->free -= need;
    if (units == to_end)
        cursor -= offset + units; /* the next record begins at the ring's start */
    self->claimed = cursor + CURSOR_RECORD + units;
    return 1;
}

static inline void commit(Producer *self)
{
    store(word_at(&self->memory, LANE_TAIL), self->claimed); /* SYNC POINT: publishes */
    self->tail = self->claimed;
}

static inline void abort_claims(Producer *self)
{
    self->claimed = self->tail;
    self->free = 0;
}

static int fits_lane(Producer *self, Py_ssize_t length)
{
    if ((uint64_t)length <= self->payload_bytes_max)
        return 1;
    PyErr_Format(PyExc_ValueError, "payload is too long, size=%zd, max=%llu", length,
                 (unsigned long long)self->payload_bytes_max);
    return 0;
}

static PyObject *producer_claim(Producer *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 9) {
        PyErr_Format(PyExc_TypeError, "claim takes 9 arguments, got=%zd", count);
        return NULL;
    }
    if (memory_check(&self->memory) < 0)
        return NULL;
    Header fields = {
        .kind = (uint8_t)PyLong_AsUnsignedLongMask(args[1]),
        .flags = (uint8_t)PyLong_AsUnsignedLongMask(args[2]),
        .event_id = (uint32_t)PyLong_AsUnsignedLongMask(args[3]),
        .key_hash = (uint32_t)PyLong_AsUnsignedLongMask(args[4]),
        .deadline_ns = PyLong_AsUnsignedLongLongMask(args[5]),
        .reply_id = PyLong_AsUnsignedLongLongMask(args[6]),
        .addressee = (uint32_t)PyLong_AsUnsignedLongMask(args[7]),
        .activated_ns = PyLong_AsUnsignedLongLongMask(args[8]),
    };
    if (PyErr_Occurred())
        return NULL;
    Py_buffer payload;
    if (PyObject_GetBuffer(args[0], &payload, PyBUF_SIMPLE) < 0)
        return NULL;
    int claimed = -1;
    if (fits_lane(self, payload.len))
        claimed = claim(self, payload.buf, (uint64_t)payload.len, &fields);
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

static PyObject *producer_abort(Producer *self, PyObject *unused)
{
    abort_claims(self);
    Py_RETURN_NONE;
}

static PyObject *producer_want_room(Producer *self, PyObject *wanted)
{
    int truth = PyObject_IsTrue(wanted);
    if (truth < 0)
        return NULL;
    if (self->memory.open)
        store(word_at(&self->memory, LANE_ROOM_WANTED), (uint64_t)truth);
    Py_RETURN_NONE;
}

static PyObject *producer_has_room(Producer *self, PyObject *unused)
{
    if (!self->memory.open)
        Py_RETURN_TRUE;
    uint64_t head = load(word_at(&self->memory, LANE_HEAD));
    if (head == self->tail)
        Py_RETURN_TRUE;
    uint64_t free = (head - self->tail) & (self->memory.capacity - 1);
    return PyBool_FromLong(free * 2 >= self->memory.capacity);
}

static PyObject *producer_sent(Producer *self, PyObject *unused)
{
    return PyLong_FromUnsignedLongLong(self->tail >> CURSOR_OFFSET_BITS);
}

static PyObject *producer_close(Producer *self, PyObject *unused)
{
    memory_close(&self->memory);
    Py_RETURN_NONE;
}

static PyObject *producer_get_payload_bytes_max(Producer *self, void *unused)
{
    return PyLong_FromUnsignedLongLong(self->payload_bytes_max);
}

static PyMethodDef producer_methods[] = {
    {"claim", (PyCFunction)(void (*)(void))producer_claim, METH_FASTCALL, NULL},
    {"commit", (PyCFunction)producer_commit, METH_NOARGS, NULL},
    {"abort", (PyCFunction)producer_abort, METH_NOARGS, NULL},
    {"want_room", (PyCFunction)producer_want_room, METH_O, NULL},
    {"has_room", (PyCFunction)producer_has_room, METH_NOARGS, NULL},
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

static PyType_Spec producer_spec = {"aembus.shm._lane.LaneProducer", sizeof(Producer), 0,
                                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, producer_slots};

/* --- Record -----------------------------------------------------------------------------------*/

typedef struct {
    PyObject_HEAD
    PyObject *lane;
    PyObject *payload;
    Header header;
    uint64_t begin;
    uint64_t end;
    uint64_t offset; /* of the record in the ring, in units */
} Record;

static int record_traverse(Record *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->lane);
    return 0;
}

static int record_clear(Record *self)
{
    Py_CLEAR(self->lane);
    return 0;
}

static void record_dealloc(Record *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_CLEAR(self->lane);
    Py_CLEAR(self->payload);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *record_get_header(Record *self, void *unused)
{
    Header *h = &self->header;
    return Py_BuildValue("(IBBHKKKKKIIII)", h->length, h->kind, h->flags, h->origin_slot,
                         (unsigned long long)h->state, (unsigned long long)h->sequence,
                         (unsigned long long)h->activated_ns, (unsigned long long)h->deadline_ns,
                         (unsigned long long)h->reply_id, h->origin_incarnation, h->addressee,
                         h->event_id, h->key_hash);
}

static PyObject *record_get_object(Record *self, void *field)
{
    return Py_NewRef(field == NULL ? self->lane : self->payload);
}

#define RECORD_NUMBER(name, expression)                                                            \
    static PyObject *record_get_##name(Record *self, void *unused)                                 \
    {                                                                                              \
        return PyLong_FromUnsignedLongLong(expression);                                            \
    }

RECORD_NUMBER(kind, self->header.kind)
RECORD_NUMBER(flags, self->header.flags)
RECORD_NUMBER(origin_slot, self->header.origin_slot)
RECORD_NUMBER(attempts, self->header.state >> STATE_ATTEMPT_SHIFT)
RECORD_NUMBER(sequence, self->header.sequence)
RECORD_NUMBER(activated_ns, self->header.activated_ns)
RECORD_NUMBER(deadline_ns, self->header.deadline_ns)
RECORD_NUMBER(reply_id, self->header.reply_id)
RECORD_NUMBER(origin_incarnation, self->header.origin_incarnation)
RECORD_NUMBER(addressee, self->header.addressee)
RECORD_NUMBER(event_id, self->header.event_id)
RECORD_NUMBER(key_hash, self->header.key_hash)
RECORD_NUMBER(begin, self->begin)
RECORD_NUMBER(end, self->end)

#define RECORD_GETTER(name) {#name, (getter)record_get_##name, NULL, NULL, NULL}

static PyGetSetDef record_getset[] = {
    {"lane", (getter)record_get_object, NULL, NULL, NULL},
    {"payload", (getter)record_get_object, NULL, NULL, "payload"},
    RECORD_GETTER(header),
    RECORD_GETTER(kind),
    RECORD_GETTER(flags),
    RECORD_GETTER(origin_slot),
    RECORD_GETTER(attempts),
    RECORD_GETTER(sequence),
    RECORD_GETTER(activated_ns),
    RECORD_GETTER(deadline_ns),
    RECORD_GETTER(reply_id),
    RECORD_GETTER(origin_incarnation),
    RECORD_GETTER(addressee),
    RECORD_GETTER(event_id),
    RECORD_GETTER(key_hash),
    RECORD_GETTER(begin),
    RECORD_GETTER(end),
    {NULL},
};

static PyType_Slot record_slots[] = {
    {Py_tp_doc, "One taken record; see aembus.shm.lane.Record."},
    {Py_tp_traverse, record_traverse},
    {Py_tp_clear, record_clear},
    {Py_tp_dealloc, record_dealloc},
    {Py_tp_getset, record_getset},
    {0, NULL},
};

static PyType_Spec record_spec = {"aembus.shm._lane.Record", sizeof(Record), 0,
                                  Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC |
                                      Py_TPFLAGS_IMMUTABLETYPE |
                                      Py_TPFLAGS_DISALLOW_INSTANTIATION,
                                  record_slots};

/* --- LaneConsumer -----------------------------------------------------------------------------*/

typedef struct {
    PyObject_HEAD
    Memory memory;
    uint64_t head;
    uint64_t taken;     /* the first record that was not taken yet */
    uint64_t tail;      /* the last known tail */
    uint64_t available; /* units between `taken` and `tail` */
    uint64_t refused;   /* a tail that makes no sense; its producer's next may */
    int has_refused;
    uint64_t delivered; /* by `deliver`, in this process */
    PyObject *finished; /* finished before those in front: begin -> (end, state) */
    PyObject *returned; /* a record that `deliver` left to `take` */
    PyObject *payload;  /* of the record in hand: whose handler `deliver` runs, or that raised */
    Header header;
    uint64_t begin;
    uint64_t offset;
    State *module;
} Consumer;

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
    self->finished = PyDict_New();
    if (self->finished == NULL ||
        memory_open(&self->memory, object, control, ring, ring_bytes) < 0) {
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

static int consumer_traverse(Consumer *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->finished);
    Py_VISIT(self->returned);
        return 0;
}

static int consumer_clear(Consumer *self)
{
    Py_CLEAR(self->finished);
    Py_CLEAR(self->returned);
    Py_CLEAR(self->payload);
    return 0;
}

static void consumer_dealloc(Consumer *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    consumer_clear(self);
    memory_close(&self->memory);
    type->tp_free(self);
    Py_DECREF(type);
}

/* How much lies between what was taken and `tail`; 0 if nothing can. */
static uint64_t units_before(Consumer *self, uint64_t tail)
{
    uint64_t capacity = self->memory.capacity;
    if ((tail & CURSOR_OFFSET_MASK) >= capacity)
        return 0;
    uint64_t before = self->taken >> CURSOR_OFFSET_BITS, after = tail >> CURSOR_OFFSET_BITS;
    uint64_t units = (tail - self->taken) & (capacity - 1);
    if (units == 0)
        units = capacity;
    return after > before && after - before <= units ? units : 0;
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

static void count(Consumer *self, int offset, uint64_t sequence, uint64_t records)
{
    /* See LaneConsumer._count in lane.py. */
    Word *word = word_at(&self->memory, offset);
    uint64_t counted = load(word);
    uint64_t head = load(word_at(&self->memory, LANE_HEAD)) >> CURSOR_OFFSET_BITS;
    uint64_t last_counted = ((counted >> 32) - head) & COUNT_MASK;
    uint64_t ahead = (sequence - head) & COUNT_MASK;
    if (counted == 0 || !(ahead <= last_counted && last_counted <= self->memory.capacity))
        store(word, (sequence & COUNT_MASK) << 32 | ((counted + records) & COUNT_MASK));
}

/* Move head over every finished record in front; 0, or -1 with an exception set. */
static int finish(Consumer *self, uint64_t begin, uint64_t end, int state)
{
    PyObject *key = PyLong_FromUnsignedLongLong(begin);
    PyObject *value = Py_BuildValue("(Ki)", (unsigned long long)end, state);
    int failed = key == NULL || value == NULL || PyDict_SetItem(self->finished, key, value) < 0;
    Py_XDECREF(key);
    Py_XDECREF(value);
    uint64_t head = self->head;
    while (!failed) {
        key = PyLong_FromUnsignedLongLong(head);
        if (key == NULL) {
            failed = 1;
            break;
        }
        value = PyDict_GetItemWithError(self->finished, key);
        if (value == NULL) {
            Py_DECREF(key);
            failed = PyErr_Occurred() != NULL;
            break;
        }
        head = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(value, 0));
        state = (int)PyLong_AsLong(PyTuple_GET_ITEM(value, 1));
        if (state == STATE_DEAD)
            count(self, LANE_DEAD, head >> CURSOR_OFFSET_BITS, 1);
        else if (state == STATE_FORWARDED)
            count(self, LANE_FORWARDED, head >> CURSOR_OFFSET_BITS, 1);
        failed = PyDict_DelItem(self->finished, key) < 0;
        Py_DECREF(key);
    }
    self->head = head;
    store(word_at(&self->memory, LANE_HEAD), head); /* SYNC POINT: gives room back */
    return failed ? -1 : 0;
}

/* Copy out the next record that is not finished: 1, 0 if there is none, -1 with an exception. */
static int take(Consumer *self, Header *header, uint64_t *begin, uint64_t *offset)
{
    Memory *memory = &self->memory;
    for (;;) {
        uint64_t cursor = *begin = self->taken;
        if (cursor == self->tail) {
            int more = look_for_more(self);
            if (more <= 0)
                return more;
        }
        *offset = cursor & CURSOR_OFFSET_MASK;
        memcpy(header, header_at(memory, *offset), sizeof *header); /* only this copy is used */
        if (header->kind == KIND_PAD) {
            uint64_t units = memory->capacity - *offset;
            if (*offset == 0 || header->length != units * UNIT - RECORD_HEADER_BYTES ||
                self->available <= units) {
                corrupt(self, "pad", cursor, header);
                return -1;
            }
            self->available -= units;
            cursor -= *offset;
            *offset = 0;
            memcpy(header, header_at(memory, 0), sizeof *header);
        }
        uint64_t units = units_of(header->length);
        uint64_t after = *offset + units;
        if (header->sequence != (cursor >> CURSOR_OFFSET_BITS) + 1 || after > memory->capacity ||
            header->length > memory->capacity * UNIT / 2 - RECORD_HEADER_BYTES ||
            units > self->available || header->kind <= KIND_PAD || header->kind > KIND_LAST) {
            corrupt(self, "record", cursor, header);
            return -1;
        }
        self->available -= units;
        uint64_t end = cursor + CURSOR_RECORD + units;
        if (after == memory->capacity)
            end -= after; /* the next record begins at the ring's start */
        self->taken = end;
        if ((header->state & STATE_MASK) < STATE_DONE)
            return 1;
        if (finish(self, *begin, end, (int)(header->state & STATE_MASK)) < 0)
            return -1;
    }
}

/* A record of what was taken last; `end` is where the next one begins. */
static Record *make_record(Consumer *self, const Header *header, uint64_t begin, uint64_t end,
                           uint64_t offset, PyObject *payload)
{
    PyTypeObject *type = self->module->record;
    Record *record = (Record *)type->tp_alloc(type, 0);
    if (record == NULL)
        return NULL;
    record->lane = Py_NewRef(self);
    record->header = *header;
    record->begin = begin;
    record->end = end;
    record->offset = offset;
    record->payload = Py_NewRef(payload);
    return record;
}

static PyObject *copy_payload(Consumer *self, const Header *header, uint64_t offset)
{
    const char *at = (const char *)header_at(&self->memory, offset) + RECORD_HEADER_BYTES;
    return PyBytes_FromStringAndSize(at, header->length);
}

/* The end of a record that `take` has checked. */
static uint64_t end_of(Consumer *self, const Header *header, uint64_t offset)
{
    uint64_t after = offset + units_of(header->length);
    return (header->sequence << CURSOR_OFFSET_BITS) +
           (after == self->memory.capacity ? 0 : after);
}

static PyObject *take_record(Consumer *self, const Header *header, uint64_t begin, uint64_t offset)
{
    PyObject *payload = copy_payload(self, header, offset);
    if (payload == NULL)
        return NULL;
    uint64_t end = end_of(self, header, offset);
    PyObject *record = (PyObject *)make_record(self, header, begin, end, offset, payload);
    Py_DECREF(payload);
    return record;
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
    Header header;
    uint64_t begin, offset;
    int found = take(self, &header, &begin, &offset);
    if (found < 0)
        return NULL;
    if (found == 0)
        Py_RETURN_NONE;
    return take_record(self, &header, begin, offset);
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

static inline void store_state(Consumer *self, uint64_t offset, uint64_t state)
{
    store((Word *)&header_at(&self->memory, offset)->state, state);
}

static uint64_t start(Consumer *self, const Header *header, uint64_t offset)
{
    uint64_t attempt = (header->state >> STATE_ATTEMPT_SHIFT) + 1;
    store_state(self, offset, STATE_STARTED | attempt << STATE_ATTEMPT_SHIFT);
    return attempt;
}

static PyObject *consumer_start(Consumer *self, PyObject *object)
{
    Record *record = own_record(self, object);
    if (record == NULL)
        return NULL;
    return PyLong_FromUnsignedLongLong(start(self, &record->header, record->offset));
}

static int done(Consumer *self, uint64_t begin, uint64_t end, uint64_t offset)
{
    store_state(self, offset, STATE_DONE);
    if (begin == self->head && PyDict_GET_SIZE(self->finished) == 0) {
        self->head = end;
        store(word_at(&self->memory, LANE_HEAD), end); /* SYNC POINT: gives room back */
        return 0;
    }
    return finish(self, begin, end, STATE_DONE);
}

static PyObject *consumer_done(Consumer *self, PyObject *object)
{
    Record *record = own_record(self, object);
    if (record == NULL || done(self, record->begin, record->end, record->offset) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *finish_as(Consumer *self, PyObject *object, int state)
{
    Record *record = own_record(self, object);
    if (record == NULL)
        return NULL;
    store_state(self, record->offset, (uint64_t)state);
    if (finish(self, record->begin, record->end, state) < 0)
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

static PyObject *consumer_has_records(Consumer *self, PyObject *unused)
{
    if (memory_check(&self->memory) < 0)
        return NULL;
    uint64_t tail = load(word_at(&self->memory, LANE_TAIL));
    return PyBool_FromLong(self->returned != NULL || is_news(self, tail));
}

static PyObject *consumer_skip_to_tail(Consumer *self, PyObject *unused)
{
    if (memory_check(&self->memory) < 0)
        return NULL;
    uint64_t tail = load(word_at(&self->memory, LANE_TAIL));
    if (tail != self->taken && units_before(self, tail) == 0) {
        self->refused = tail;
        self->has_refused = 1;
        tail = self->taken;
    }
    uint64_t lost = (tail >> CURSOR_OFFSET_BITS) - (self->taken >> CURSOR_OFFSET_BITS);
    if (lost)
        count(self, LANE_DEAD, tail >> CURSOR_OFFSET_BITS, lost);
    PyDict_Clear(self->finished);
    self->taken = self->tail = self->head = tail;
    self->available = 0;
    store(word_at(&self->memory, LANE_HEAD), tail);
    return PyLong_FromUnsignedLongLong(lost);
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
    memory_close(&self->memory);
    Py_RETURN_NONE;
}

/* Call handler(event, *data); `data` is what the payload decodes to. */
static PyObject *call_handler(PyObject *handler, PyObject *event, PyObject *data)
{
    PyObject *stack[1 + ARGUMENTS_ON_STACK];
    if (PyList_CheckExact(data) && PyList_GET_SIZE(data) <= ARGUMENTS_ON_STACK) {
        Py_ssize_t size = PyList_GET_SIZE(data);
        stack[0] = event;
        for (Py_ssize_t i = 0; i < size; i++)
            stack[1 + i] = PyList_GET_ITEM(data, i); /* `data` is ours alone and keeps them */
        return PyObject_Vectorcall(handler, stack, (size_t)size + 1, NULL);
    }
    PyObject *arguments = PySequence_Tuple(data);
    if (arguments == NULL)
        return NULL;
    PyObject *first = PyTuple_Pack(1, event);
    PyObject *all = first == NULL ? NULL : PySequence_Concat(first, arguments);
    PyObject *result = all == NULL ? NULL : PyObject_Call(handler, all, NULL);
    Py_XDECREF(all);
    Py_XDECREF(first);
    Py_DECREF(arguments);
    return result;
}

/* Run the plain job in hand; 0, or -1 with the handler's exception set and the job in hand. */
static int deliver_one(Consumer *self, PyObject *event, PyObject *decode)
{
    start(self, &self->header, self->offset);
    PyObject *payload = Py_NewRef(self->payload);
    PyObject *data = PyObject_CallOneArg(decode, payload);
    Py_DECREF(payload);
    PyObject *handler = data == NULL ? NULL : PyObject_GetAttr(event, self->module->str_handler);
    PyObject *result = handler == NULL ? NULL : call_handler(handler, event, data);
    Py_XDECREF(handler);
    Py_XDECREF(data);
    if (result == NULL)
        return -1;
    Py_DECREF(result);
    if (memory_check(&self->memory) < 0) /* the handler has closed the lane: nothing to mark */
        return -1;
    return done(self, self->begin, end_of(self, &self->header, self->offset), self->offset);
}

static int set_lane(State *names, PyObject *event, PyObject *lane)
{
    return event == NULL ? 0 : PyObject_SetAttr(event, names->str_lane, lane);
}

static int add_delivered(State *names, PyObject *event, Py_ssize_t number)
{
    if (event == NULL || number == 0)
        return 0;
    PyObject *before = PyObject_GetAttr(event, names->str_delivered);
    PyObject *more = before == NULL ? NULL : PyLong_FromSsize_t(number);
    PyObject *sum = more == NULL ? NULL : PyNumber_Add(before, more);
    int failed = sum == NULL || PyObject_SetAttr(event, names->str_delivered, sum) < 0;
    Py_XDECREF(sum);
    Py_XDECREF(more);
    Py_XDECREF(before);
    return failed ? -1 : 0;
}

/* Is it a new job for an event that is there and wants more than one?  -1 with an exception. */
static int is_plain(Consumer *self, const Header *header, PyObject *events, PyObject **event)
{
    if (header->kind != KIND_JOB || header->state != STATE_NEW)
        return 0;
    PyObject *key = PyLong_FromUnsignedLong(header->event_id);
    if (key == NULL)
        return -1;
    *event = PyDict_GetItemWithError(events, key); /* borrowed */
    Py_DECREF(key);
    if (*event == NULL)
        return PyErr_Occurred() ? -1 : 0;
    PyObject *once = PyObject_GetAttr(*event, self->module->str_once);
    if (once == NULL)
        return -1;
    int truth = PyObject_IsTrue(once);
    Py_DECREF(once);
    return truth < 0 ? -1 : !truth;
}

static PyObject *consumer_deliver(Consumer *self, PyObject *const *args, Py_ssize_t arguments)
{
    if (arguments != 4 || !PyDict_CheckExact(args[0]) || !PyByteArray_Check(args[3])) {
        PyErr_SetString(PyExc_TypeError, "deliver(events: dict, decode, budget, stopping: bytearray)");
        return NULL;
    }
    PyObject *events = args[0], *decode = args[1], *stopping = args[3];
    Py_ssize_t budget = PyLong_AsSsize_t(args[2]);
    if (budget < 0 && PyErr_Occurred())
        return NULL;
    Py_CLEAR(self->payload);
    Py_ssize_t delivered = 0, of_event = 0;
    PyObject *last = NULL; /* the event of the last jobs; `of_event` of them are not counted yet */
    int failed = 0;
    while (!failed && delivered < budget && self->returned == NULL &&
           PyByteArray_AS_STRING(stopping)[0] == 0) {
        uint64_t begin, offset;
        Header header;
        PyObject *event = NULL;
        int found = memory_check(&self->memory);
        if (found == 0)
            found = take(self, &header, &begin, &offset);
        if (found == 0)
            break;
        int plain = found < 0 ? -1 : is_plain(self, &header, events, &event);
        if (plain == 0)
            self->returned = take_record(self, &header, begin, offset);
        if (plain == 0 && self->returned != NULL)
            break;
        PyObject *payload = plain > 0 ? copy_payload(self, &header, offset) : NULL;
        failed = payload == NULL;
        if (failed)
            break;
        Py_XSETREF(self->payload, payload);
        self->header = header;
        self->begin = begin;
        self->offset = offset;
        if (event != last) {
            Py_INCREF(event);
            failed = add_delivered(self->module, last, of_event) < 0 ||
                     set_lane(self->module, last, Py_None) < 0 ||
                     set_lane(self->module, event, (PyObject *)self) < 0;
            of_event = 0;
            Py_XSETREF(last, event);
        }
        if (!failed)
            failed = deliver_one(self, last, decode) < 0;
        if (!failed) {
            delivered++;
            of_event++;
        }
    }
    self->delivered += (uint64_t)delivered;
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    if (type == NULL) {
        Py_CLEAR(self->payload);
        failed = set_lane(self->module, last, Py_None) < 0;
    }
    if (add_delivered(self->module, last, of_event) < 0)
        failed = 1;
    Py_XDECREF(last);
    if (type != NULL) {
        PyErr_Clear();
        PyErr_Restore(type, value, trace);
    }
    return failed ? NULL : PyLong_FromSsize_t(delivered);
}

static PyObject *consumer_get_in_hand(Consumer *self, void *unused)
{
    if (self->payload == NULL)
        Py_RETURN_NONE;
    return (PyObject *)make_record(self, &self->header, self->begin,
                                   end_of(self, &self->header, self->offset), self->offset,
                                   self->payload);
}

static PyObject *consumer_get_delivered(Consumer *self, void *unused)
{
    return PyLong_FromUnsignedLongLong(self->delivered);
}

static PyMethodDef consumer_methods[] = {
    {"has_records", (PyCFunction)consumer_has_records, METH_NOARGS, NULL},
    {"take", (PyCFunction)consumer_take, METH_NOARGS, NULL},
    {"start", (PyCFunction)consumer_start, METH_O, NULL},
    {"done", (PyCFunction)consumer_done, METH_O, NULL},
    {"dead", (PyCFunction)consumer_dead, METH_O, NULL},
    {"forwarded", (PyCFunction)consumer_forwarded, METH_O, NULL},
    {"skip_to_tail", (PyCFunction)consumer_skip_to_tail, METH_NOARGS, NULL},
    {"wants_post", (PyCFunction)consumer_wants_post, METH_NOARGS, NULL},
    {"deliver", (PyCFunction)(void (*)(void))consumer_deliver, METH_FASTCALL, NULL},
    {"close", (PyCFunction)consumer_close, METH_NOARGS, NULL},
    {NULL},
};

static PyGetSetDef consumer_getset[] = {
    {"in_hand", (getter)consumer_get_in_hand, NULL, NULL, NULL},
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

static PyType_Spec consumer_spec = {"aembus.shm._lane.LaneConsumer", sizeof(Consumer), 0,
                                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC |
                                        Py_TPFLAGS_IMMUTABLETYPE,
                                    consumer_slots};

/* --- Publisher --------------------------------------------------------------------------------*/

typedef struct {
    Producer *lane;   /* NULL: not open yet */
    PyObject *peer;   /* posted by its ring() */
    Py_buffer words;  /* the peer's inbox */
    Word *sleeping;
    uint32_t event_id;
} Destination;

typedef struct {
    PyObject_HEAD
    Py_buffer registry;
    Word *generation_word;
    uint64_t generation;
    uint64_t turn;
    Py_ssize_t groups;
    Py_ssize_t *sizes;        /* of each group */
    Destination **members;    /* of each group */
    Destination **chosen;     /* one of each group, while publishing */
} Publisher;

static void publisher_free_groups(Publisher *self)
{
    for (Py_ssize_t g = 0; g < self->groups; g++) {
        for (Py_ssize_t m = 0; self->members[g] != NULL && m < self->sizes[g]; m++) {
            Destination *member = &self->members[g][m];
            Py_CLEAR(member->lane);
            Py_CLEAR(member->peer);
            if (member->words.obj != NULL)
                PyBuffer_Release(&member->words);
        }
        PyMem_Free(self->members[g]);
    }
    PyMem_Free(self->members);
    PyMem_Free(self->sizes);
    PyMem_Free(self->chosen);
    self->groups = 0;
    self->members = NULL;
    self->sizes = NULL;
    self->chosen = NULL;
}

static void publisher_dealloc(Publisher *self)
{
    PyTypeObject *type = Py_TYPE(self);
    publisher_free_groups(self);
    if (self->registry.obj != NULL)
        PyBuffer_Release(&self->registry);
    type->tp_free(self);
    Py_DECREF(type);
}

static int word_in_buffer(Py_buffer *buffer, PyObject *object, Py_ssize_t offset, Word **word)
{
    if (PyObject_GetBuffer(object, buffer, PyBUF_WRITABLE) < 0)
        return -1;
    if (offset < 0 || offset % 8 != 0 || offset > buffer->len - 8 || ((uintptr_t)buffer->buf & 7)) {
        PyErr_Format(PyExc_ValueError, "no word there, offset=%zd, size=%zd", offset, buffer->len);
        return -1;
    }
    *word = (Word *)((char *)buffer->buf + offset);
    return 0;
}

static int read_destination(State *names, Destination *member, PyObject *item)
{
    PyObject *lane, *peer, *memory;
    Py_ssize_t offset;
    unsigned int event_id;
    if (!PyArg_ParseTuple(item, "OOOnI", &lane, &peer, &memory, &offset, &event_id))
        return -1;
    member->event_id = event_id;
    if (lane == Py_None)
        return 0;
    if (!Py_IS_TYPE(lane, names->producer)) {
        PyErr_SetString(PyExc_TypeError, "not a LaneProducer");
        return -1;
    }
    member->lane = (Producer *)Py_NewRef(lane);
    member->peer = Py_NewRef(peer);
    return word_in_buffer(&member->words, memory, offset, &member->sleeping);
}

static int read_groups(Publisher *self, PyObject *groups)
{
    Py_ssize_t count = PyList_GET_SIZE(groups);
    self->sizes = PyMem_Calloc((size_t)count + 1, sizeof *self->sizes);
    self->members = PyMem_Calloc((size_t)count + 1, sizeof *self->members);
    self->chosen = PyMem_Calloc((size_t)count + 1, sizeof *self->chosen);
    if (self->sizes == NULL || self->members == NULL || self->chosen == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    self->groups = count;
    State *names = state_of((PyObject *)self);
    for (Py_ssize_t g = 0; g < count; g++) {
        PyObject *group = PyList_GET_ITEM(groups, g);
        if (!PyList_CheckExact(group) || PyList_GET_SIZE(group) == 0) {
            PyErr_SetString(PyExc_TypeError, "a group is a list, and not empty");
            return -1;
        }
        self->members[g] = PyMem_Calloc((size_t)PyList_GET_SIZE(group), sizeof(Destination));
        if (self->members[g] == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        self->sizes[g] = PyList_GET_SIZE(group);
        for (Py_ssize_t m = 0; m < self->sizes[g]; m++)
            if (read_destination(names, &self->members[g][m], PyList_GET_ITEM(group, m)) < 0)
                return -1;
    }
    return 0;
}

static PyObject *publisher_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *registry, *groups;
    Py_ssize_t offset;
    unsigned long long generation, turn;
    if (!PyArg_ParseTuple(args, "OnKKO!", &registry, &offset, &generation, &turn, &PyList_Type,
                          &groups))
        return NULL;
    Publisher *self = (Publisher *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->generation = generation;
    self->turn = turn;
    if (word_in_buffer(&self->registry, registry, offset, &self->generation_word) < 0 ||
        read_groups(self, groups) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

/* Post a sleeper; -1 with the exception set if a signal handler raised in the middle. */
static int ring_sleeper(State *names, Destination *member)
{
    PyObject *result = PyObject_CallMethodNoArgs(member->peer, names->str_ring);
    if (result != NULL) {
        Py_DECREF(result);
        return 0;
    }
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    result = PyObject_CallMethodNoArgs(member->peer, names->str_ring); /* the job is announced */
    Py_XDECREF(result);
    PyErr_Clear();
    PyErr_Restore(type, value, trace);
    return -1;
}

/* publish(payload, key_hash or -1) -> how many jobs that made, or 0: leave it to Python. */
static PyObject *publisher_publish(Publisher *self, PyObject *const *args, Py_ssize_t arguments)
{
    if (arguments != 2 || !PyBytes_CheckExact(args[0])) {
        PyErr_SetString(PyExc_TypeError, "publish(payload: bytes, key_hash: int)");
        return NULL;
    }
    long long key = PyLong_AsLongLong(args[1]);
    if (key == -1 && PyErr_Occurred())
        return NULL;
    uint64_t chooser = key < 0 ? self->turn + 1 : (uint64_t)key;
    Py_ssize_t length = PyBytes_GET_SIZE(args[0]);
    Header fields = {.kind = KIND_JOB,
                     .key_hash = key < 0 ? 0 : (uint32_t)key,
                     .activated_ns = monotonic_ns()};
    /* Nothing between this look and the last commit gives up the GIL: who acknowledges a newer
     * generation knows that no activation under an older one is under way. */
    int stale = load(self->generation_word) != self->generation;
    Py_ssize_t claimed = 0;
    for (; !stale && claimed < self->groups; claimed++) {
        Destination *member = &self->members[claimed][chooser % (uint64_t)self->sizes[claimed]];
        Producer *lane = member->lane;
        if (lane == NULL || !lane->memory.open || (uint64_t)length > lane->payload_bytes_max)
            break;
        int again = 0; /* a second event of the same member: its lane has a claim of ours */
        for (Py_ssize_t g = 0; g < claimed; g++)
            again |= self->chosen[g]->lane == lane;
        if (!again && lane->claimed != lane->tail)
            break; /* another thread, or what this handler interrupted, is in the middle */
        fields.event_id = member->event_id;
        if (!claim(lane, PyBytes_AS_STRING(args[0]), (uint64_t)length, &fields))
            break;
        self->chosen[claimed] = member;
    }
    if (stale || claimed < self->groups || claimed == 0) {
        for (Py_ssize_t g = 0; g < claimed; g++)
            abort_claims(self->chosen[g]->lane);
        return PyLong_FromLong(0);
    }
    if (key < 0)
        self->turn = chooser;
    for (Py_ssize_t g = 0; g < claimed; g++)
        commit(self->chosen[g]->lane);
    atomic_thread_fence(memory_order_seq_cst); /* SYNC POINT: pairs with announce_sleep's */
    int failed = 0;
    State *names = NULL;
    for (Py_ssize_t g = 0; g < claimed; g++) {
        /* Chosen anew: what ring() runs may publish by this object and change `chosen`. */
        Destination *member = &self->members[g][chooser % (uint64_t)self->sizes[g]];
        if (load(member->sleeping) == 0)
            continue;
        if (names == NULL)
            names = state_of((PyObject *)self);
        PyObject *type, *value, *trace;
        PyErr_Fetch(&type, &value, &trace);
        if (ring_sleeper(names, member) < 0)
            failed = 1;
        if (type != NULL)
            PyErr_Restore(type, value, trace);
    }
    return failed ? NULL : PyLong_FromSsize_t(claimed);
}

static PyMethodDef publisher_methods[] = {
    {"publish", (PyCFunction)(void (*)(void))publisher_publish, METH_FASTCALL, NULL},
    {NULL},
};

static PyType_Slot publisher_slots[] = {
    {Py_tp_doc, "Publishes to the events of one point under one generation of the registry."},
    {Py_tp_new, publisher_new},
    {Py_tp_dealloc, publisher_dealloc},
    {Py_tp_methods, publisher_methods},
    {0, NULL},
};

static PyType_Spec publisher_spec = {"aembus.shm._lane.Publisher", sizeof(Publisher), 0,
                                     Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
                                     publisher_slots};

/* --- the module -------------------------------------------------------------------------------*/

static PyTypeObject *add_type(PyObject *module, PyType_Spec *spec)
{
    PyTypeObject *type = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL);
    if (type != NULL && PyModule_AddType(module, type) < 0)
        Py_CLEAR(type);
    return type;
}

static int add_number(PyObject *numbers, const char *name, unsigned long long number)
{
    PyObject *value = PyLong_FromUnsignedLongLong(number);
    int failed = value == NULL || PyDict_SetItemString(numbers, name, value) < 0;
    Py_XDECREF(value);
    return failed;
}

#define NUMBER(name) add_number(numbers, #name, (unsigned long long)(name))

static int add_layout(PyObject *module)
{
    PyObject *numbers = PyDict_New();
    if (numbers == NULL)
        return -1;
    int failed = NUMBER(LANE_TAIL) || NUMBER(LANE_ROOM_WANTED) || NUMBER(LANE_HEAD) ||
                 NUMBER(LANE_DEAD) || NUMBER(LANE_FORWARDED) || NUMBER(LANE_CONTROL_BYTES) ||
                 NUMBER(UNIT) || NUMBER(UNIT_SHIFT) || NUMBER(CURSOR_OFFSET_BITS) ||
                 NUMBER(CURSOR_OFFSET_MASK) || NUMBER(CURSOR_RECORD) ||
                 NUMBER(RECORD_HEADER_BYTES) || NUMBER(KIND_PAD) || NUMBER(KIND_JOB) ||
                 NUMBER(STATE_NEW) || NUMBER(STATE_STARTED) || NUMBER(STATE_DONE) ||
                 NUMBER(STATE_DEAD) || NUMBER(STATE_FORWARDED) || NUMBER(STATE_MASK) ||
                 NUMBER(STATE_ATTEMPT_SHIFT) || NUMBER(KIND_LAST) ||
                 PyModule_AddObjectRef(module, "LAYOUT", numbers) < 0;
    Py_DECREF(numbers);
    return failed ? -1 : 0;
}

static int module_exec(PyObject *module)
{
    State *state = PyModule_GetState(module);
    state->producer = add_type(module, &producer_spec);
    state->consumer = add_type(module, &consumer_spec);
    state->record = add_type(module, &record_spec);
    state->publisher = add_type(module, &publisher_spec);
    state->str_handler = PyUnicode_InternFromString("handler");
    state->str_lane = PyUnicode_InternFromString("lane");
    state->str_delivered = PyUnicode_InternFromString("delivered");
    state->str_once = PyUnicode_InternFromString("once");
    state->str_ring = PyUnicode_InternFromString("ring");
    PyObject *twin = PyImport_ImportModule("aembus.shm.lane");
    state->corrupt_lane = twin == NULL ? NULL : PyObject_GetAttrString(twin, "CorruptLane");
    Py_XDECREF(twin);
    if (!state->producer || !state->consumer || !state->record || !state->publisher ||
        !state->str_handler || !state->str_lane || !state->str_delivered || !state->str_once ||
        !state->str_ring || !state->corrupt_lane)
        return -1;
    if (PyModule_AddObjectRef(module, "CorruptLane", state->corrupt_lane) < 0 ||
        PyModule_AddStringConstant(module, "IMPLEMENTATION", "c") < 0)
        return -1;
    return add_layout(module);
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    State *state = PyModule_GetState(module);
    Py_VISIT(state->producer);
    Py_VISIT(state->consumer);
    Py_VISIT(state->record);
    Py_VISIT(state->publisher);
    Py_VISIT(state->corrupt_lane);
    return 0;
}

static int module_clear(PyObject *module)
{
    State *state = PyModule_GetState(module);
    Py_CLEAR(state->producer);
    Py_CLEAR(state->consumer);
    Py_CLEAR(state->record);
    Py_CLEAR(state->publisher);
    Py_CLEAR(state->corrupt_lane);
    Py_CLEAR(state->str_handler);
    Py_CLEAR(state->str_lane);
    Py_CLEAR(state->str_delivered);
    Py_CLEAR(state->str_once);
    Py_CLEAR(state->str_ring);
    return 0;
}

static void module_free(void *module) { module_clear((PyObject *)module); }

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

static struct PyModuleDef lane_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "aembus.shm._lane",
    .m_doc = "The lane in C; see aembus.shm.lane.",
    .m_size = sizeof(State),
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__lane(void) { return PyModuleDef_Init(&lane_module); }
