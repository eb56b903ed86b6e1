/* Record: one taken record, as Python sees it. */

#include "_lane_consumer.h"

PyObject *lane_make_record(Consumer *self, const Taken *taken, PyObject *payload)
{
    PyTypeObject *type = self->module->record;
    Record *record = (Record *)type->tp_alloc(type, 0);
    if (record == NULL)
        return NULL;
    record->lane = Py_NewRef(self);
    record->payload = Py_NewRef(payload);
    record->taken = *taken;
    return (PyObject *)record;
}

/* No tp_clear: a cycle by way of `lane` is cut where the lane keeps what it returned. */
static int record_traverse(Record *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->lane);
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
    Header *h = &self->taken.header;
    return Py_BuildValue("(IBBHKKKKKIIII)", h->length, h->kind, h->flags, h->origin_slot,
                         (unsigned long long)h->state, (unsigned long long)h->sequence,
                         (unsigned long long)h->activated_ns, (unsigned long long)h->deadline_ns,
                         (unsigned long long)h->reply_id, h->origin_incarnation, h->addressee,
                         h->event_id, h->key_hash);
}

static PyObject *record_get_lane(Record *self, void *unused) { return Py_NewRef(self->lane); }

static PyObject *record_get_payload(Record *self, void *unused)
{
    return Py_NewRef(self->payload);
}

#define RECORD_NUMBER(name, expression)                                                            \
    static PyObject *record_get_##name(Record *self, void *unused)                                 \
    {                                                                                              \
        return PyLong_FromUnsignedLongLong(expression);                                            \
    }

RECORD_NUMBER(kind, self->taken.header.kind)
RECORD_NUMBER(flags, self->taken.header.flags)
RECORD_NUMBER(origin_slot, self->taken.header.origin_slot)
RECORD_NUMBER(attempts, state_attempts(self->taken.header.state))
RECORD_NUMBER(failures, state_failures(self->taken.header.state))
RECORD_NUMBER(sequence, self->taken.header.sequence)
RECORD_NUMBER(activated_ns, self->taken.header.activated_ns)
RECORD_NUMBER(deadline_ns, self->taken.header.deadline_ns)
RECORD_NUMBER(reply_id, self->taken.header.reply_id)
RECORD_NUMBER(origin_incarnation, self->taken.header.origin_incarnation)
RECORD_NUMBER(addressee, self->taken.header.addressee)
RECORD_NUMBER(event_id, self->taken.header.event_id)
RECORD_NUMBER(key_hash, self->taken.header.key_hash)
RECORD_NUMBER(begin, self->taken.begin)
RECORD_NUMBER(end, self->taken.end)

#define RECORD_GETTER(name) {#name, (getter)record_get_##name, NULL, NULL, NULL}

static PyGetSetDef record_getset[] = {
    RECORD_GETTER(lane),
    RECORD_GETTER(payload),
    RECORD_GETTER(header),
    RECORD_GETTER(kind),
    RECORD_GETTER(flags),
    RECORD_GETTER(origin_slot),
    RECORD_GETTER(attempts),
    RECORD_GETTER(failures),
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
    {Py_tp_dealloc, record_dealloc},
    {Py_tp_getset, record_getset},
    {0, NULL},
};

PyType_Spec lane_record_spec = {"aembus.shm._lane.Record", sizeof(Record), 0,
                                Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC |
                                    Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                                record_slots};
