/* The lane in C: the twin of lane*.py, same names, same layout, same promises.
 *
 * Optional: built where a compiler is found.  `aembus.shm.lanes` chooses between the two.
 *
 * Everything in a function here runs under the GIL without giving it up, so to the other threads
 * and the signal handlers of the process it is one step.  Where a function does call Python code
 * (a handler, `decode`, an attribute of an event), the lane may be closed when that returns: look
 * again (memory_check) before the memory is touched.  What other processes see is ordered by C11
 * atomics: `tail` and `head` are released and acquired, and a seq_cst fence stands between storing
 * `tail` and reading `sleeping`.
 *
 * Beside the two ends of a lane it has the two inner loops that profiles showed to be the cost of
 * a job: Publisher.publish (pick, claim, commit, look whether to post) and LaneConsumer.deliver
 * (take, decode, call the handler, done); around them ActivationPoint.activate and codec.decode for
 * plain data.  Whatever is not the plain case they leave to Python.
 *
 * The whole API is used and not the limited one: calls by vectorcall are a third of the cost of a
 * job, and the limited API has them from 3.12 on only.
 *
 *     _lane.h            what all share: layout.py's numbers, words, the memory, the module's state
 *     _lane_memory.c     opening and closing the memory, refusing numbers
 *     _lane_producer.h   claim and commit, for LaneProducer (_lane_producer.c) and Publisher
 *                        (_lane_publisher.c, .h)
 *     _lane_codec.h      msgpack for plain data (_lane_encode.c, _lane_decode.c)
 *     _lane_short.c      activate and decode for plain data
 *     _lane_slots.h      an object's slots
 *     _lane_consumer.h   take and done, for LaneConsumer (_lane_consumer.c) and its `deliver`
 *                        (_lane_deliver.c) and `take_numbers` (_lane_numbers.c); Record
 *                        (_lane_record.c)
 *     _lane_calls.h      answering calls, and taking answers (_lane_calls.c)
 *     _lane_module.c     the module
 */

#ifndef AEMBUS_LANE_H
#define AEMBUS_LANE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#pragma GCC visibility push(hidden) /* of all names only PyInit__lane concerns anybody else */

/* --- points where tests kill the process; nothing at all in a normal build ----------------------*/

#ifdef AEMBUS_KILLPOINTS
void lane_killpoint(const char *name); /* tests/crash/points/killpoints.c */
#define KILLPOINT(name) lane_killpoint(name)
#else
#define KILLPOINT(name) ((void)0)
#endif

/* --- layout.py's numbers; the module has them as LAYOUT, and a test compares ------------------*/

enum {
    LANE_TAIL = 0,
    LANE_ROOM_WANTED = 8,
    LANE_DROPPED = 16,
    LANE_HEAD = 64,
    LANE_DEAD = 72,
    LANE_FORWARDED = 80,
    LANE_CONTROL_BYTES = 128,
    WORD = 8,
    UNIT = 64,
    UNIT_SHIFT = 6,
    CURSOR_OFFSET_BITS = 18,
    RECORD_HEADER_BYTES = 64,
    RECORD_STATE = 8,
    KIND_PAD = 1,
    KIND_JOB = 2,
    KIND_CALL = 4,
    KIND_REPLY = 5,
    KIND_LAST = 7, /* the kinds are all the numbers from KIND_PAD to this one */
    FLAG_WANTS_REPLY = 1,
    FLAG_NUMBERS = 16,
    BELL_NOT_FOR_NUMBERS = 4, /* in an inbox's `sleeping` */
    STATE_NEW = 1,
    STATE_STARTED = 2,
    STATE_HELD = 3,
    STATE_FAILED = 4,
    STATE_DONE = 5,
    STATE_DEAD = 6,
    STATE_FORWARDED = 7,
    STATE_MASK = 0xFF,
    STATE_ATTEMPT_SHIFT = 8,
    STATE_ATTEMPT_MAX = (1 << 24) - 1,
    STATE_FAILURE_SHIFT = 32,
    STATE_FAILURE_MAX = (1 << 24) - 1,
    STATE_SPARED_SHIFT = 56,
    STATE_SPARED_MAX = (1 << 8) - 1,
};

#define CURSOR_OFFSET_MASK ((UINT64_C(1) << CURSOR_OFFSET_BITS) - 1)
#define CURSOR_RECORD (UINT64_C(1) << CURSOR_OFFSET_BITS)
#define CURSOR_COUNT_MAX (UINT64_MAX >> CURSOR_OFFSET_BITS)

static inline uint64_t state_attempts(uint64_t state)
{
    return state >> STATE_ATTEMPT_SHIFT & STATE_ATTEMPT_MAX;
}

static inline uint64_t state_failures(uint64_t state)
{
    return state >> STATE_FAILURE_SHIFT & STATE_FAILURE_MAX;
}

/* The deaths that do not count, where they stand in a state word. */
static inline uint64_t state_spared_bits(uint64_t state)
{
    return state & (uint64_t)STATE_SPARED_MAX << STATE_SPARED_SHIFT;
}

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
_Static_assert(offsetof(Header, state) == RECORD_STATE, "state is the second word");
_Static_assert(sizeof(_Atomic uint64_t) == WORD, "a word is stored in one piece");

/* --- words ------------------------------------------------------------------------------------*/

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

/* --- the memory that both ends use ------------------------------------------------------------*/

/* No tp_traverse visits a buffer's owner: CPython before 3.12.7 crashes when it clears a memoryview
 * whose buffer somebody still has (gh-77894), and one that is not visited is never cleared. */
typedef struct {
    Py_buffer buffer;
    int open;
    char *control;
    char *ring;
    uint64_t capacity; /* in units, a power of two */
} Memory;

/* 0, or -1 with an exception set. */
int lane_memory_open(Memory *memory, PyObject *object, Py_ssize_t control, Py_ssize_t ring,
                     Py_ssize_t ring_bytes);
void lane_memory_close(Memory *memory);

/* Get a writable buffer and the address of the word in it; -1 with an exception set. */
int lane_word_in_buffer(Py_buffer *buffer, PyObject *object, Py_ssize_t offset, Word **word);

_Static_assert(sizeof(long) == WORD, "one call reads any number that goes into a word");

/* Set the exception for a number that was read and is not from 0 to `max`, if it is not; -1 then. */
int lane_refuse_number(uint64_t number, uint64_t max);

/* Read an int from 0 to `max`; -1 with an exception set. */
static inline int read_number(PyObject *object, uint64_t max, uint64_t *number)
{
    *number = PyLong_AsUnsignedLong(object); /* UINT64_MAX may be an exception */
    return *number <= max && *number != UINT64_MAX ? 0 : lane_refuse_number(*number, max);
}

static inline int memory_check(Memory *memory)
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

static inline uint64_t payload_bytes_max(Memory *memory)
{
    return memory->capacity * UNIT / 2 - RECORD_HEADER_BYTES;
}

/* --- the module -------------------------------------------------------------------------------*/

typedef struct {
    PyTypeObject *producer;
    PyTypeObject *consumer;
    PyTypeObject *record;
    PyTypeObject *publisher;
    PyTypeObject *plain_activate;
    PyTypeObject *plain_decode;
    PyObject *corrupt_lane;
    PyObject *str_handler;
    PyObject *str_lane;
    PyObject *str_delivered;
    PyObject *str_once;
    PyObject *str_ring;
    PyObject *str_key;
    PyObject *str_timeout;
    PyObject *str_ttl;
    PyObject *str_route;
    PyObject *str_publisher;
    PyObject *str_name;
    PyObject *str_answer;
} State;

extern struct PyModuleDef lane_module;

extern PyType_Spec lane_producer_spec;
extern PyType_Spec lane_consumer_spec;
extern PyType_Spec lane_record_spec;
extern PyType_Spec lane_publisher_spec;
extern PyType_Spec lane_plain_activate_spec;
extern PyType_Spec lane_plain_decode_spec;

static inline State *state_of(PyObject *self)
{
    return PyModule_GetState(PyType_GetModuleByDef(Py_TYPE(self), &lane_module));
}

#pragma GCC visibility pop

#endif
