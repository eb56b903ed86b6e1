/* Publisher: one activation's way from the encoded payload to the lanes and the doorbells. */

#include "_lane_calls.h"

#include <time.h>

static uint64_t monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

/* --- making one -------------------------------------------------------------------------------*/

static int publisher_traverse(Publisher *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    for (Py_ssize_t g = 0; g < self->count; g++) {
        for (Py_ssize_t m = 0; m < self->groups[g].size; m++) {
            Py_VISIT(self->groups[g].members[m].lane);
            Py_VISIT(self->groups[g].members[m].peer);
        }
    }
    return 0;
}

/* Without groups it publishes nothing: what is still called then leaves all to Python. */
static int publisher_clear(Publisher *self)
{
    Group *groups = self->groups;
    Py_ssize_t count = self->count;
    self->groups = NULL;
    self->count = 0;
    for (Py_ssize_t g = 0; g < count; g++) {
        for (Py_ssize_t m = 0; m < groups[g].size; m++) {
            Destination *member = &groups[g].members[m];
            Py_XDECREF(member->lane);
            Py_XDECREF(member->peer);
            PyBuffer_Release(&member->words);
        }
        PyMem_Free(groups[g].members);
    }
    PyMem_Free(groups);
    return 0;
}

static void publisher_dealloc(Publisher *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    publisher_clear(self);
    PyBuffer_Release(&self->registry);
    type->tp_free(self);
    Py_DECREF(type);
}

static int read_destination(State *names, Destination *member, PyObject *item)
{
    if (!PyTuple_Check(item) || PyTuple_GET_SIZE(item) != 6) {
        PyErr_SetString(PyExc_TypeError, "not (lane, peer, memory, offset, event id, drops)");
        return -1;
    }
    PyObject *lane = PyTuple_GET_ITEM(item, 0);
    Py_ssize_t offset = PyLong_AsSsize_t(PyTuple_GET_ITEM(item, 3));
    uint64_t event_id;
    if ((offset == -1 && PyErr_Occurred()) ||
        read_number(PyTuple_GET_ITEM(item, 4), UINT32_MAX, &event_id) < 0)
        return -1;
    member->event_id = (uint32_t)event_id;
    member->drops = PyTuple_GET_ITEM(item, 5) == Py_True;
    if (lane == Py_None)
        return 0;
    if (!Py_IS_TYPE(lane, names->producer)) {
        PyErr_SetString(PyExc_TypeError, "not a LaneProducer");
        return -1;
    }
    member->lane = (Producer *)Py_NewRef(lane);
    member->peer = Py_NewRef(PyTuple_GET_ITEM(item, 1));
    return lane_word_in_buffer(&member->words, PyTuple_GET_ITEM(item, 2), offset,
                               &member->sleeping);
}

static int read_group(State *names, Group *group, PyObject *list)
{
    if (!PyList_CheckExact(list) || PyList_GET_SIZE(list) == 0) {
        PyErr_SetString(PyExc_TypeError, "a group is a list, and not empty");
        return -1;
    }
    PyObject *items = PyList_AsTuple(list); /* nobody changes it while buffers are asked for */
    if (items == NULL)
        return -1;
    Py_ssize_t size = PyTuple_GET_SIZE(items);
    int failed = 0;
    group->members = PyMem_Calloc((size_t)size, sizeof *group->members);
    if (group->members == NULL) {
        PyErr_NoMemory();
        failed = 1;
    } else {
        group->size = size;
    }
    for (Py_ssize_t m = 0; m < size && !failed; m++)
        failed = read_destination(names, &group->members[m], PyTuple_GET_ITEM(items, m)) < 0;
    Py_DECREF(items);
    return failed ? -1 : 0;
}

static int read_groups(Publisher *self, PyObject *list)
{
    PyObject *items = PyList_AsTuple(list);
    if (items == NULL)
        return -1;
    Py_ssize_t count = PyTuple_GET_SIZE(items);
    State *names = state_of((PyObject *)self);
    int failed = 0;
    self->groups = PyMem_Calloc((size_t)count, sizeof *self->groups);
    if (self->groups == NULL) {
        PyErr_NoMemory();
        failed = 1;
    } else {
        self->count = count;
    }
    for (Py_ssize_t g = 0; g < count && !failed; g++)
        failed = read_group(names, &self->groups[g], PyTuple_GET_ITEM(items, g)) < 0;
    Py_DECREF(items);
    return failed ? -1 : 0;
}

static PyObject *publisher_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *registry, *generation_object, *turn_object, *groups;
    Py_ssize_t offset;
    uint64_t generation, turn;
    unsigned char kind = KIND_JOB, flags = 0;
    unsigned int addressee = 0;
    if (!PyArg_ParseTuple(args, "OnOOO!|bbI", &registry, &offset, &generation_object, &turn_object,
                          &PyList_Type, &groups, &kind, &flags, &addressee) ||
        read_number(generation_object, UINT64_MAX, &generation) < 0 ||
        read_number(turn_object, UINT64_MAX, &turn) < 0)
        return NULL;
    Publisher *self = (Publisher *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->generation = generation;
    self->turn = turn;
    self->kind = kind;
    self->flags = flags;
    self->addressee = addressee;
    if (lane_word_in_buffer(&self->registry, registry, offset, &self->generation_word) < 0 ||
        read_groups(self, groups) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

/* --- publishing -------------------------------------------------------------------------------*/

static inline Destination *choose(const Group *group, uint64_t chooser)
{
    return &group->members[group->size == 1 ? 0 : chooser % (uint64_t)group->size];
}

/* Claim a record in the lane of one member of each group; return for how many groups it went well.
 *
 * A member that goes without is well, too.
 *
 * Python code that claims and has not committed yet is another thread, or what this handler
 * interrupted: it is in the middle, and its lane not for us.  A claim of our own there is for a
 * second event of the same member.
 */
static Py_ssize_t claim_all(Publisher *self, uint64_t chooser, const char *payload,
                            uint64_t length, Header *fields)
{
    Py_ssize_t g = 0;
    for (; g < self->count; g++) {
        Destination *member = choose(&self->groups[g], chooser);
        Producer *lane = member->lane;
        if (lane == NULL || !lane->memory.open || length > lane->payload_bytes_max)
            break;
        if (lane->claimed != lane->tail && lane->claimed_by != self)
            break;
        fields->event_id = member->event_id;
        if (claim(lane, payload, length, fields)) {
            lane->claimed_by = self;
            self->groups[g].chosen = member;
        } else if (member->drops) {
            self->groups[g].chosen = NULL;
        } else {
            break;
        }
    }
    return g;
}

/* Forget the claims of the first `groups` groups. */
static void abort_all(Publisher *self, Py_ssize_t groups)
{
    for (Py_ssize_t g = 0; g < groups; g++) {
        if (self->groups[g].chosen != NULL)
            abort_claims(self->groups[g].chosen->lane);
    }
}

static Py_ssize_t count_chosen(const Publisher *self)
{
    Py_ssize_t chosen = 0;
    for (Py_ssize_t g = 0; g < self->count; g++)
        chosen += self->groups[g].chosen != NULL;
    return chosen;
}

/* Commit every claim, then count what goes without. */
static void commit_all(Publisher *self, uint64_t chooser, Py_ssize_t jobs)
{
    for (Py_ssize_t g = 0; g < self->count; g++) {
        if (self->groups[g].chosen != NULL)
            commit(self->groups[g].chosen->lane);
    }
    for (Py_ssize_t g = 0; g < self->count && jobs < self->count; g++) {
        if (self->groups[g].chosen == NULL)
            count_dropped(choose(&self->groups[g], chooser)->lane);
    }
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

/* Post every sleeper, whatever goes wrong with one; -1 with the first exception set. */
static int ring_all(Publisher *self, uint64_t chooser)
{
    int failed = 0;
    State *names = NULL;
    for (Py_ssize_t g = 0; g < self->count; g++) {
        /* Chosen anew: what ring() runs may publish by this object and change `chosen`. */
        Destination *member = choose(&self->groups[g], chooser);
        uint64_t sleeping = load(member->sleeping);
        if (sleeping == 0 ||
            (sleeping & BELL_NOT_FOR_NUMBERS && self->flags & FLAG_NUMBERS))
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
    return failed ? -1 : 0;
}

/* Publish one record to each group; what is not in `fields` is added here. */
static Py_ssize_t publish_record(Publisher *self, const char *payload, uint64_t length,
                                 uint64_t chooser, int in_turn, Header *fields)
{
    fields->kind = self->kind;
    fields->flags = self->flags;
    fields->addressee = self->addressee;
    fields->activated_ns = monotonic_ns();
    /* Nothing between this look and the last commit gives up the GIL: who acknowledges a newer
     * generation knows that no activation under an older one is under way. */
    if (load(self->generation_word) != self->generation)
        return 0;
    Py_ssize_t claimed = claim_all(self, chooser, payload, length, fields);
    Py_ssize_t jobs = claimed < self->count ? 0 : count_chosen(self);
    if (jobs == 0) { /* if all go without, Python counts that */
        abort_all(self, claimed);
        return 0;
    }
    if (in_turn)
        self->turn = chooser;
    commit_all(self, chooser, jobs);
    KILLPOINT("publish: committed");
    atomic_thread_fence(memory_order_seq_cst); /* SYNC POINT: pairs with announce_sleep's */
    KILLPOINT("publish: fenced");
    return ring_all(self, chooser) < 0 ? -1 : jobs;
}

Py_ssize_t lane_publish(Publisher *self, const char *payload, uint64_t length, long long key_hash)
{
    Header fields = {.key_hash = key_hash < 0 ? 0 : (uint32_t)key_hash};
    uint64_t chooser = key_hash < 0 ? self->turn + 1 : (uint64_t)key_hash;
    return publish_record(self, payload, length, chooser, key_hash < 0, &fields);
}

/* publish(payload, key_hash or -1) -> how many jobs that made, or 0: leave it to Python. */
static PyObject *publisher_publish(Publisher *self, PyObject *const *args, Py_ssize_t arguments)
{
    if (arguments != 2) {
        PyErr_SetString(PyExc_TypeError, "publish(payload: bytes, key_hash: int)");
        return NULL;
    }
    long long key = PyLong_AsLongLong(args[1]);
    if (key == -1 && PyErr_Occurred())
        return NULL;
    if (!PyBytes_Check(args[0]) || key > UINT32_MAX)
        return PyLong_FromLong(0);
    Py_ssize_t jobs = lane_publish(self, PyBytes_AS_STRING(args[0]),
                                   (uint64_t)PyBytes_GET_SIZE(args[0]), key);
    return jobs < 0 ? NULL : PyLong_FromSsize_t(jobs);
}

/* publish_numbers(first, second) -> as publish; they travel in the header. */
static PyObject *publisher_publish_numbers(Publisher *self, PyObject *const *args,
                                           Py_ssize_t arguments)
{
    if (arguments != 2) {
        PyErr_SetString(PyExc_TypeError, "publish_numbers(first: int, second: int)");
        return NULL;
    }
    uint64_t first, second;
    if (read_number(args[0], UINT64_MAX, &first) < 0 ||
        read_number(args[1], UINT64_MAX, &second) < 0)
        return NULL;
    Header fields = {.reply_id = first, .deadline_ns = second};
    Py_ssize_t jobs = publish_record(self, "", 0, self->turn + 1, 1, &fields);
    return jobs < 0 ? NULL : PyLong_FromSsize_t(jobs);
}

Py_ssize_t lane_publish_call(Publisher *self, const char *payload, uint64_t length,
                             long long key_hash, uint64_t deadline_ns, uint64_t reply_id)
{
    if (self->count != 1 || key_hash > UINT32_MAX)
        return 0;
    Header fields = {.deadline_ns = deadline_ns,
                     .reply_id = reply_id,
                     .key_hash = key_hash < 0 ? 0 : (uint32_t)key_hash};
    uint64_t chooser = key_hash < 0 ? self->turn + 1 : (uint64_t)key_hash;
    const Group *group = &self->groups[0];
    Py_ssize_t place = choose(group, chooser) - group->members + 1;
    Py_ssize_t jobs = publish_record(self, payload, length, chooser, key_hash < 0, &fields);
    return jobs <= 0 ? jobs : place;
}

Py_ssize_t lane_publish_answer(Publisher *self, const char *payload, uint64_t length,
                               uint64_t reply_id)
{
    Header fields = {.reply_id = reply_id};
    return publish_record(self, payload, length, 0, 0, &fields);
}

/* --- the type ---------------------------------------------------------------------------------*/

static PyMethodDef publisher_methods[] = {
    {"publish", (PyCFunction)(void (*)(void))publisher_publish, METH_FASTCALL, NULL},
    {"call", (PyCFunction)(void (*)(void))lane_publisher_call, METH_FASTCALL, NULL},
    {"publish_numbers", (PyCFunction)(void (*)(void))publisher_publish_numbers, METH_FASTCALL,
     NULL},
    {NULL},
};

static PyType_Slot publisher_slots[] = {
    {Py_tp_doc, "Publishes to the events of one point under one generation of the registry."},
    {Py_tp_new, publisher_new},
    {Py_tp_traverse, publisher_traverse},
    {Py_tp_clear, publisher_clear},
    {Py_tp_dealloc, publisher_dealloc},
    {Py_tp_methods, publisher_methods},
    {0, NULL},
};

PyType_Spec lane_publisher_spec = {"aembus.shm._lane.Publisher", sizeof(Publisher), 0,
                                   Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC |
                                       Py_TPFLAGS_IMMUTABLETYPE,
                                   publisher_slots};
