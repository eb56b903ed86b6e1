/* The module aembus.shm._lane. */

#include "_lane.h"

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
    int failed = NUMBER(LANE_TAIL) || NUMBER(LANE_ROOM_WANTED) ||
                 NUMBER(LANE_DROPPED) || NUMBER(LANE_HEAD) ||
                 NUMBER(LANE_DEAD) || NUMBER(LANE_FORWARDED) || NUMBER(LANE_CONTROL_BYTES) ||
                 NUMBER(WORD) || NUMBER(UNIT) || NUMBER(UNIT_SHIFT) ||
                 NUMBER(CURSOR_OFFSET_BITS) || NUMBER(CURSOR_OFFSET_MASK) ||
                 NUMBER(CURSOR_RECORD) || NUMBER(CURSOR_COUNT_MAX) ||
                 NUMBER(RECORD_HEADER_BYTES) || NUMBER(RECORD_STATE) || NUMBER(KIND_PAD) ||
                 NUMBER(KIND_JOB) || NUMBER(KIND_CALL) || NUMBER(KIND_REPLY) ||
                 NUMBER(KIND_LAST) || NUMBER(FLAG_WANTS_REPLY) || NUMBER(FLAG_NUMBERS) ||
                 NUMBER(BELL_NOT_FOR_NUMBERS) || NUMBER(STATE_NEW) ||
                 NUMBER(STATE_STARTED) || NUMBER(STATE_HELD) || NUMBER(STATE_FAILED) || NUMBER(STATE_DONE) ||
                 NUMBER(STATE_DEAD) || NUMBER(STATE_FORWARDED) || NUMBER(STATE_MASK) ||
                 NUMBER(STATE_ATTEMPT_SHIFT) || NUMBER(STATE_ATTEMPT_MAX) ||
                 NUMBER(STATE_FAILURE_SHIFT) || NUMBER(STATE_FAILURE_MAX) ||
                 NUMBER(STATE_SPARED_SHIFT) || NUMBER(STATE_SPARED_MAX) ||
                 PyModule_AddObjectRef(module, "LAYOUT", numbers) < 0;
    Py_DECREF(numbers);
    return failed ? -1 : 0;
}

static int add_types(PyObject *module, State *state)
{
    int added = (state->producer = add_type(module, &lane_producer_spec)) != NULL &&
                (state->consumer = add_type(module, &lane_consumer_spec)) != NULL &&
                (state->record = add_type(module, &lane_record_spec)) != NULL &&
                (state->publisher = add_type(module, &lane_publisher_spec)) != NULL &&
                (state->plain_activate = add_type(module, &lane_plain_activate_spec)) != NULL &&
                (state->plain_decode = add_type(module, &lane_plain_decode_spec)) != NULL;
    return added ? 0 : -1;
}

static int make_names(State *state)
{
    int made = (state->str_handler = PyUnicode_InternFromString("handler")) != NULL &&
               (state->str_lane = PyUnicode_InternFromString("lane")) != NULL &&
               (state->str_delivered = PyUnicode_InternFromString("delivered")) != NULL &&
               (state->str_once = PyUnicode_InternFromString("once")) != NULL &&
               (state->str_ring = PyUnicode_InternFromString("ring")) != NULL &&
               (state->str_key = PyUnicode_InternFromString("key")) != NULL &&
               (state->str_timeout = PyUnicode_InternFromString("timeout")) != NULL &&
               (state->str_ttl = PyUnicode_InternFromString("ttl")) != NULL &&
               (state->str_route = PyUnicode_InternFromString("_route")) != NULL &&
               (state->str_publisher = PyUnicode_InternFromString("publisher")) != NULL &&
               (state->str_name = PyUnicode_InternFromString("name")) != NULL &&
               (state->str_answer = PyUnicode_InternFromString("answer")) != NULL;
    return made ? 0 : -1;
}

/* One exception for both lanes, so that whoever reads either catches it. */
static int add_exception(PyObject *module, State *state)
{
    PyObject *twin = PyImport_ImportModule("aembus.shm.lane");
    state->corrupt_lane = twin == NULL ? NULL : PyObject_GetAttrString(twin, "CorruptLane");
    Py_XDECREF(twin);
    if (state->corrupt_lane == NULL)
        return -1;
    return PyModule_AddObjectRef(module, "CorruptLane", state->corrupt_lane);
}

static int module_exec(PyObject *module)
{
    State *state = PyModule_GetState(module);
    if (add_types(module, state) < 0 || make_names(state) < 0 ||
        add_exception(module, state) < 0 || add_layout(module) < 0)
        return -1;
    return PyModule_AddStringConstant(module, "IMPLEMENTATION", "c");
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    State *state = PyModule_GetState(module);
    Py_VISIT(state->producer);
    Py_VISIT(state->consumer);
    Py_VISIT(state->record);
    Py_VISIT(state->publisher);
    Py_VISIT(state->plain_activate);
    Py_VISIT(state->plain_decode);
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
    Py_CLEAR(state->plain_activate);
    Py_CLEAR(state->plain_decode);
    Py_CLEAR(state->corrupt_lane);
    Py_CLEAR(state->str_handler);
    Py_CLEAR(state->str_lane);
    Py_CLEAR(state->str_delivered);
    Py_CLEAR(state->str_once);
    Py_CLEAR(state->str_ring);
    Py_CLEAR(state->str_key);
    Py_CLEAR(state->str_timeout);
    Py_CLEAR(state->str_ttl);
    Py_CLEAR(state->str_route);
    Py_CLEAR(state->str_publisher);
    Py_CLEAR(state->str_name);
    Py_CLEAR(state->str_answer);
    return 0;
}

static void module_free(void *module) { module_clear((PyObject *)module); }

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

struct PyModuleDef lane_module = {
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
