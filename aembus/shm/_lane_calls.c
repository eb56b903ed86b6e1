/* Calls: answering them, and taking the answer to one. */

#include "_lane_calls.h"

#include "_lane_codec.h"

#include <sched.h>
#include <time.h>

#define CALL_BYTES_MAX 4096 /* on the stack; what is longer is not plain */
#define ANSWER_BYTES_MAX 4096
#define ANSWER_ITEMS 2 /* the result, and the event's name */

/* --- at the callee ----------------------------------------------------------------------------*/

int lane_is_plain_call(const Header *header, PyObject *payload)
{
    static const char nobody[CALL_CHAIN_BYTES];
    return header->kind == KIND_CALL && (header->flags & FLAG_WANTS_REPLY) &&
           PyBytes_GET_SIZE(payload) >= CALL_CHAIN_BYTES &&
           memcmp(PyBytes_AS_STRING(payload), nobody, CALL_CHAIN_BYTES) == 0;
}

/* The way to whoever called: a new reference, or NULL, perhaps with an exception set. */
static Publisher *find_publisher(Consumer *self, const Header *header, PyObject *publishers)
{
    PyObject *key = PyLong_FromUnsignedLong(header->origin_incarnation);
    if (key == NULL)
        return NULL;
    PyObject *found = PyDict_GetItemWithError(publishers, key);
    Py_DECREF(key);
    if (found == NULL || !Py_IS_TYPE(found, self->module->publisher))
        return NULL;
    return (Publisher *)Py_NewRef(found);
}

/* 1: it is sent, 0: leave it to Python, -1: it is sent, and an exception is set. */
static Py_ssize_t answer_plain(Publisher *publisher, uint64_t reply_id, PyObject *result,
                               PyObject *name)
{
    char buffer[ANSWER_BYTES_MAX];
    PyObject *items[] = {result, name};
    Py_ssize_t length = lane_encode(items, 2, buffer, sizeof buffer);
    if (length == NOT_PLAIN)
        return 0;
    return lane_publish_answer(publisher, buffer, (uint64_t)length, reply_id);
}

int lane_answer(Consumer *self, const Taken *taken, PyObject *payload, PyObject *result,
                PyObject *event, PyObject *publishers, PyObject *answer)
{
    Publisher *publisher = find_publisher(self, &taken->header, publishers);
    if (publisher == NULL && PyErr_Occurred())
        return -1;
    Py_ssize_t sent = 0;
    if (publisher != NULL) {
        PyObject *name = PyObject_GetAttr(event, self->module->str_name);
        sent = name == NULL ? -1 : answer_plain(publisher, taken->header.reply_id, result, name);
        Py_XDECREF(name);
        Py_DECREF(publisher);
    }
    if (sent != 0)
        return sent < 0 ? -1 : 0;
    PyObject *record = lane_make_record(self, taken, payload);
    PyObject *answered =
        record == NULL ? NULL : PyObject_CallFunctionObjArgs(answer, record, result, event, NULL);
    Py_XDECREF(record);
    if (answered == NULL)
        return -1;
    int unsent = answered == Py_False;
    Py_DECREF(answered);
    return unsent;
}

/* --- at the caller ----------------------------------------------------------------------------*/

static int64_t monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* Take and finish the answer to a call, as a tuple of flags and payload.
 *
 * Return 1; 0 if nothing is there; -1 if it is for others to take what is: another record, one that
 * cannot be followed, or any where the callee waits for room and is to be told. */
static int take_answer(Consumer *lane, uint64_t reply_id, PyObject **answer)
{
    if (!lane->memory.open || lane->returned != NULL ||
        load(word_at(&lane->memory, LANE_ROOM_WANTED)))
        return -1;
    Taken taken;
    int found = lane_take(lane, &taken);
    if (found <= 0)
        return found; /* what cannot be followed is found again */
    PyObject *payload = copy_payload(lane, &taken);
    if (payload == NULL)
        return -1;
    if (taken.header.kind != KIND_REPLY || taken.header.reply_id != reply_id) {
        lane->returned = lane_make_record(lane, &taken, payload);
        Py_DECREF(payload);
        return -1;
    }
    if (done(lane, &taken) < 0)
        Py_DECREF(payload);
    else
        *answer = Py_BuildValue("(BN)", taken.header.flags, payload);
    return *answer == NULL ? -1 : 1;
}

/* Say whether another thread has taken the answer. */
static int is_answered(State *names, PyObject *waiting)
{
    PyObject *answer = PyObject_GetAttr(waiting, names->str_answer);
    Py_XDECREF(answer);
    return answer != Py_None;
}

/* Look for the answer for a moment, as aembus.looking does; NULL without an exception: in vain. */
static PyObject *look(State *names, Consumer *lane, PyObject *waiting, uint64_t reply_id,
                      int64_t moment_ns)
{
    PyObject *answer = NULL;
    int64_t until = monotonic_ns() + moment_ns;
    while (take_answer(lane, reply_id, &answer) == 0 && monotonic_ns() < until) {
        Py_BEGIN_ALLOW_THREADS;
        sched_yield();
        Py_END_ALLOW_THREADS;
        if (PyErr_CheckSignals() < 0 || is_answered(names, waiting))
            break;
    }
    return answer;
}

/* The result that an answer brings, in a tuple of one; flags and payload where it is not plain. */
static PyObject *open_answer(PyObject *answer)
{
    PyObject *payload = PyTuple_GET_ITEM(answer, 1);
    PyObject *items[ANSWER_ITEMS];
    if (PyLong_AsLong(PyTuple_GET_ITEM(answer, 0)) != 0)
        return answer;
    Py_ssize_t count = lane_decode(payload, 0, items, ANSWER_ITEMS);
    if (count < 0 && !PyErr_Occurred())
        return answer;
    Py_DECREF(answer);
    PyObject *result = count > 0 ? PyTuple_Pack(1, items[0]) : NULL;
    for (Py_ssize_t i = 0; i < count; i++)
        Py_DECREF(items[i]);
    if (count == 0)
        PyErr_SetString(PyExc_ValueError, "an answer without a result");
    return result;
}

/* What call() was given. */
typedef struct {
    PyObject *data;
    long long key_hash;
    uint64_t deadline_ns;
    uint64_t reply_id;
    PyObject *waiting;
    PyObject *lanes;
    uint64_t moment_ns;
} Call;

static int read_call(Call *call, PyObject *const *args, Py_ssize_t arguments)
{
    if (arguments != 7 || !PyTuple_CheckExact(args[0]) || !PyList_CheckExact(args[5])) {
        PyErr_SetString(PyExc_TypeError, "call(data: tuple, key_hash, deadline_ns, reply_id, "
                                         "waiting, lanes: list, moment_ns)");
        return -1;
    }
    *call = (Call){.data = args[0],
                   .key_hash = PyLong_AsLongLong(args[1]),
                   .waiting = args[4],
                   .lanes = args[5]};
    if ((call->key_hash == -1 && PyErr_Occurred()) ||
        read_number(args[2], UINT64_MAX, &call->deadline_ns) < 0 ||
        read_number(args[3], UINT64_MAX, &call->reply_id) < 0)
        return -1;
    return read_number(args[6], INT64_MAX / 2, &call->moment_ns);
}

/* Publish it: its place, 0 if nothing was published, -1 with an exception set. */
static Py_ssize_t publish(Publisher *self, const Call *call)
{
    char buffer[CALL_CHAIN_BYTES + CALL_BYTES_MAX] = {0}; /* nobody waits: a chain of none */
    Py_ssize_t length =
        lane_encode(PySequence_Fast_ITEMS(call->data), PyTuple_GET_SIZE(call->data),
                    buffer + CALL_CHAIN_BYTES, CALL_BYTES_MAX);
    if (length == NOT_PLAIN)
        return 0;
    return lane_publish_call(self, buffer, (uint64_t)(CALL_CHAIN_BYTES + length), call->key_hash,
                             call->deadline_ns, call->reply_id);
}

/* Look in the lane of who got it; what comes through is as of `look`. */
static PyObject *look_in_lane(State *names, const Call *call, Py_ssize_t place)
{
    if (call->moment_ns == 0 || place > PyList_GET_SIZE(call->lanes))
        return NULL;
    PyObject *lane = PyList_GET_ITEM(call->lanes, place - 1);
    if (!Py_IS_TYPE(lane, names->consumer))
        return NULL;
    Py_INCREF(lane);
    PyObject *answer = look(names, (Consumer *)lane, call->waiting, call->reply_id,
                            (int64_t)call->moment_ns);
    Py_DECREF(lane);
    if (answer == NULL && PyErr_Occurred() && PyErr_ExceptionMatches(names->corrupt_lane))
        PyErr_Clear(); /* whoever takes it next finds it again */
    return answer;
}

PyObject *lane_publisher_call(Publisher *self, PyObject *const *args, Py_ssize_t arguments)
{
    Call call;
    if (read_call(&call, args, arguments) < 0)
        return NULL;
    Py_ssize_t place = publish(self, &call);
    if (place < 0)
        return NULL;
    PyObject *answer = place == 0 ? NULL : look_in_lane(state_of((PyObject *)self), &call, place);
    if (answer != NULL)
        return open_answer(answer);
    return PyErr_Occurred() ? NULL : PyLong_FromSsize_t(place);
}
