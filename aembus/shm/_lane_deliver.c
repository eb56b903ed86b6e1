/* LaneConsumer.deliver: take, decode, call the handler, done, for as long as jobs are plain.
 *
 * A call is answered between the handler and done: a kill in between makes a dead letter of it, and
 * leaves no caller waiting.
 *
 * Whatever Python code it calls may do what it likes: close the lane, take events away, raise, or
 * call `deliver`.  So an event is held while it is used, what belongs to the job in hand is kept
 * in a local, and the lane is checked again before its memory is touched.
 */

#include "_lane_calls.h"
#include "_lane_codec.h"
#include "_lane_slots.h"

#define ARGUMENTS_ON_STACK 16

/* --- the attributes of an event ---------------------------------------------------------------*/

/* Where the objects of a type keep what each job needs; 0: they must be asked for it by name.
 *
 * The three look-ups are a tenth of the cost of a job, and an event has slots.
 */
typedef struct {
    PyTypeObject *type; /* a reference, or NULL */
    Py_ssize_t handler;
    Py_ssize_t once;
    Py_ssize_t delivered;
} Slots;

static void slots_of(Slots *slots, State *names, PyObject *event)
{
    PyTypeObject *type = Py_TYPE(event);
    if (slots->type == type)
        return;
    Py_INCREF(type);
    slots->handler = lane_slot_offset(type, names->str_handler);
    slots->once = lane_slot_offset(type, names->str_once);
    slots->delivered = lane_slot_offset(type, names->str_delivered);
    Py_XSETREF(slots->type, type);
}

/* --- one job after the other ------------------------------------------------------------------*/

/* What one call of `deliver` knows. */
typedef struct {
    PyObject *events;
    PyObject *decode;
    PyObject *publishers; /* of answers, by the caller's incarnation */
    PyObject *answer;     /* sends what they cannot; NULL: those without one are plain */
    int decodes_plain;    /* `decode` is codec.decode: what is plain it need not be asked for */
    PyObject *key;        /* of the last event in `events`, or NULL */
    uint32_t event_id;    /* the same as a number */
    PyObject *event;      /* of the last job, or NULL; its `lane` is ours */
    Slots slots;          /* of `event` */
    uint64_t run;         /* the Consumer.runs in which `delivered` was read, or 0 */
    Py_ssize_t delivered; /* what `event.delivered` is */
} Run;

/* One plain job; the references are ours. */
typedef struct {
    Taken taken;
    PyObject *payload;
    PyObject *event;
} Job;

static PyObject *call_handler(PyObject *handler, PyObject *event, PyObject *data)
{
    PyObject *arguments = PySequence_Tuple(data);
    PyObject *first = arguments == NULL ? NULL : PyTuple_Pack(1, event);
    PyObject *all = first == NULL ? NULL : PySequence_Concat(first, arguments);
    PyObject *result = all == NULL ? NULL : PyObject_Call(handler, all, NULL);
    Py_XDECREF(all);
    Py_XDECREF(first);
    Py_XDECREF(arguments);
    return result;
}

/* Call handler(event, *data); `data` is what the payload decodes to behind what is skipped. */
static PyObject *call_with_payload(Run *run, PyObject *handler, PyObject *event, PyObject *payload,
                                   Py_ssize_t skipped)
{
    if (run->decodes_plain) {
        PyObject *stack[2 + ARGUMENTS_ON_STACK]; /* the first is for the callee to use */
        Py_ssize_t count = lane_decode(payload, skipped, stack + 2, ARGUMENTS_ON_STACK);
        if (count >= 0) {
            stack[1] = event;
            PyObject *result = PyObject_Vectorcall(
                handler, stack + 1, ((size_t)count + 1) | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
            for (Py_ssize_t i = 0; i < count; i++)
                Py_DECREF(stack[2 + i]);
            return result;
        }
        if (PyErr_Occurred())
            return NULL;
    }
    PyObject *rest = skipped == 0 ? Py_NewRef(payload)
                                  : PyBytes_FromStringAndSize(PyBytes_AS_STRING(payload) + skipped,
                                                              PyBytes_GET_SIZE(payload) - skipped);
    PyObject *data = rest == NULL ? NULL : PyObject_CallOneArg(run->decode, rest);
    PyObject *result = data == NULL ? NULL : call_handler(handler, event, data);
    Py_XDECREF(rest);
    Py_XDECREF(data);
    return result;
}

/* Look an event up: a new reference, or NULL, perhaps with an exception set. */
static PyObject *look_up(Run *run, uint32_t event_id)
{
    if (run->key == NULL || run->event_id != event_id) {
        Py_XSETREF(run->key, PyLong_FromUnsignedLong(event_id));
        run->event_id = event_id;
        if (run->key == NULL)
            return NULL;
    }
    return Py_XNewRef(PyDict_GetItemWithError(run->events, run->key));
}

/* Whether a record that is no job is plain: where calls are answered those that are to be, and
 * elsewhere, in a host of services, those that are not. */
static int is_plain_call(const Run *run, const Header *header, PyObject *payload)
{
    if (run->answer != NULL)
        return lane_is_plain_call(header, payload);
    return header->kind == KIND_CALL && header->flags == 0;
}

/* Find the event of a plain job: 1 and a new reference, 0 if it is not plain, -1 with an exception.
 *
 * Plain is a new job, or a new call where calls are, for an event that is there and wants more than
 * one.
 */
static int find_event(Consumer *self, Run *run, const Header *header, PyObject *payload,
                      PyObject **event)
{
    if (header->state != STATE_NEW)
        return 0;
    if (header->kind != KIND_JOB && !is_plain_call(run, header, payload))
        return 0;
    PyObject *found = look_up(run, header->event_id);
    if (found == NULL)
        return PyErr_Occurred() ? -1 : 0;
    Py_ssize_t slot = found == run->event ? run->slots.once : 0;
    PyObject *once = get_attribute(found, slot, self->module->str_once);
    int truth = once == NULL ? -1 : PyObject_IsTrue(once);
    Py_XDECREF(once);
    if (truth == 0) {
        *event = found;
        return 1;
    }
    Py_DECREF(found);
    return truth < 0 ? -1 : 0;
}

/* Take the next job: 1 if it is plain, and in hand now; 0 if there is none, or the record was left
 * to `take`; -1 with an exception set. */
static int take_plain(Consumer *self, Run *run, Job *job)
{
    if (memory_check(&self->memory) < 0)
        return -1;
    int found = lane_take(self, &job->taken);
    if (found <= 0)
        return found;
    PyObject *payload = copy_payload(self, &job->taken);
    if (payload == NULL)
        return -1;
    int plain = find_event(self, run, &job->taken.header, payload, &job->event);
    if (plain > 0) {
        job->payload = payload;
        self->in_hand = job->taken;
        Py_XSETREF(self->payload, Py_NewRef(payload));
        return 1;
    }
    if (plain == 0) {
        self->returned = lane_make_record(self, &job->taken, payload);
        if (self->returned == NULL)
            plain = -1;
    }
    Py_DECREF(payload);
    return plain;
}

/* Turn from the last job's event to another one; 0, or -1 with an exception set. */
static int turn_to(Consumer *self, Run *run, PyObject *event)
{
    PyObject *name = self->module->str_lane;
    if (run->event != NULL && PyObject_SetAttr(run->event, name, Py_None) < 0)
        return -1;
    slots_of(&run->slots, self->module, event);
    Py_XSETREF(run->event, Py_NewRef(event));
    run->run = 0;
    return PyObject_SetAttr(event, name, (PyObject *)self);
}

/* Read how many jobs the event has had; 0, or -1 with an exception set. */
static int read_delivered(Consumer *self, Run *run)
{
    PyObject *delivered = PyObject_GetAttr(run->event, self->module->str_delivered);
    if (delivered == NULL)
        return -1;
    run->delivered = PyLong_AsSsize_t(delivered);
    run->run = self->runs;
    Py_DECREF(delivered);
    return run->delivered == -1 && PyErr_Occurred() ? -1 : 0;
}

/* Add one to the event's jobs; 0, or -1 with an exception set. */
static int count_delivered(Consumer *self, Run *run)
{
    /* Once for the event, and once more if the handler has called `deliver`, which counted too. */
    if (run->run != self->runs && read_delivered(self, run) < 0)
        return -1;
    PyObject *delivered = PyLong_FromSsize_t(++run->delivered);
    if (delivered == NULL)
        return -1;
    int failed = set_attribute(run->event, run->slots.delivered, self->module->str_delivered,
                               delivered);
    Py_DECREF(delivered);
    return failed;
}

/* Answer the call in hand; as lane_answer. */
static int answer_call(Consumer *self, Run *run, const Job *job, PyObject *result)
{
    int unsent = lane_answer(self, &job->taken, job->payload, result, job->event, run->publishers,
                             run->answer);
    KILLPOINT("deliver: answered");
    return unsent;
}

/* Run the job in hand; 0, or -1 with an exception set, and if its handler raised still in hand. */
static int run_job(Consumer *self, Run *run, const Job *job)
{
    if (memory_check(&self->memory) < 0)
        return -1;
    start(self, &job->taken);
    if (job->event != run->event && turn_to(self, run, job->event) < 0)
        return -1;
    PyObject *name = self->module->str_handler;
    PyObject *handler = get_attribute(job->event, run->slots.handler, name);
    if (handler == NULL)
        return -1;
    int is_call = job->taken.header.kind != KIND_JOB && run->answer != NULL;
    PyObject *result = call_with_payload(run, handler, job->event, job->payload,
                                         is_call ? CALL_CHAIN_BYTES : 0);
    Py_DECREF(handler);
    if (result == NULL)
        return -1;
    KILLPOINT("deliver: handler returned");
    Py_CLEAR(self->payload);
    int unfinished = self->held == job->taken.begin; /* its handler holds it */
    if (is_call && !unfinished)
        unfinished =
            memory_check(&self->memory) < 0 ? -1 : answer_call(self, run, job, result);
    Py_DECREF(result);
    if (unfinished)
        return unfinished < 0 ? -1 : 0;
    if (memory_check(&self->memory) < 0) /* its handler has closed the lane, or its result has */
        return -1;
    if (done(self, &job->taken) < 0)
        return -1;
    return count_delivered(self, run);
}

PyObject *lane_consumer_deliver(Consumer *self, PyObject *const *args, Py_ssize_t arguments)
{
    if ((arguments != 4 && arguments != 6) || !PyDict_CheckExact(args[0]) ||
        !PyByteArray_Check(args[3]) || (arguments == 6 && !PyDict_CheckExact(args[4]))) {
        PyErr_SetString(PyExc_TypeError, "deliver(events: dict, decode, budget, "
                                         "stopping: bytearray, publishers: dict, answer)");
        return NULL;
    }
    Py_ssize_t budget = PyLong_AsSsize_t(args[2]);
    if (budget == -1 && PyErr_Occurred())
        return NULL;
    Run run = {.events = args[0],
               .decode = args[1],
               .publishers = arguments == 6 ? args[4] : NULL,
               .answer = arguments == 6 ? args[5] : NULL,
               .decodes_plain = Py_IS_TYPE(args[1], self->module->plain_decode)};
    PyObject *stopping = args[3];
    self->runs++;
    Py_CLEAR(self->payload);
    Py_ssize_t delivered = 0;
    int found = 1;
    while (delivered < budget && self->returned == NULL &&
           PyByteArray_AS_STRING(stopping)[0] == 0) {
        Job job;
        found = take_plain(self, &run, &job);
        if (found <= 0)
            break;
        found = run_job(self, &run, &job);
        Py_DECREF(job.payload);
        Py_DECREF(job.event);
        if (found < 0)
            break;
        delivered++;
    }
    self->delivered += (uint64_t)delivered;
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    int failed = 0;
    if (run.event != NULL && self->payload == NULL) /* else its handler has raised */
        failed = PyObject_SetAttr(run.event, self->module->str_lane, Py_None) < 0;
    Py_XDECREF(run.event);
    Py_XDECREF(run.key);
    Py_XDECREF(run.slots.type);
    if (type != NULL) {
        PyErr_Clear();
        PyErr_Restore(type, value, trace);
        failed = 1;
    }
    return failed ? NULL : PyLong_FromSsize_t(delivered);
}

PyObject *lane_consumer_get_in_hand(Consumer *self, void *unused)
{
    if (self->payload == NULL)
        Py_RETURN_NONE;
    Taken taken = self->in_hand;
    taken.header.state = STATE_STARTED | 1 << STATE_ATTEMPT_SHIFT; /* it was new */
    return lane_make_record(self, &taken, self->payload);
}
