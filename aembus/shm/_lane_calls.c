/* Calls: answering them, and taking the answer to one. */

#include "_lane_calls.h"

#include "_lane_codec.h"
#include "_lane_publisher.h"

#define ANSWER_BYTES_MAX 4096 /* on the stack; what is longer is not plain */

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
    PyObject *done =
        record == NULL ? NULL : PyObject_CallFunctionObjArgs(answer, record, result, event, NULL);
    Py_XDECREF(record);
    Py_XDECREF(done);
    return done == NULL ? -1 : 0;
}

/* --- at the caller ----------------------------------------------------------------------------*/

/* take_answer(reply_id) -> flags and payload of the answer to that call, finished, or None.
 *
 * None if something else is next, which is left to `take`. */
PyObject *lane_consumer_take_answer(Consumer *self, PyObject *reply_id_object)
{
    uint64_t reply_id;
    if (read_number(reply_id_object, UINT64_MAX, &reply_id) < 0 || memory_check(&self->memory) < 0)
        return NULL;
    if (self->returned != NULL)
        Py_RETURN_NONE;
    Taken taken;
    int found = lane_take(self, &taken);
    if (found < 0)
        PyErr_Clear(); /* it is found again at the next call */
    if (found <= 0)
        Py_RETURN_NONE;
    PyObject *payload = copy_payload(self, &taken);
    if (payload == NULL)
        return NULL;
    if (taken.header.kind != KIND_REPLY || taken.header.reply_id != reply_id) {
        self->returned = lane_make_record(self, &taken, payload);
        Py_DECREF(payload);
        return self->returned == NULL ? NULL : Py_NewRef(Py_None);
    }
    if (done(self, &taken) < 0) {
        Py_DECREF(payload);
        return NULL;
    }
    return Py_BuildValue("(BN)", taken.header.flags, payload);
}
