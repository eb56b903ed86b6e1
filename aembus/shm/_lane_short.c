/* PlainActivate and PlainDecode: a Python function, and its short way in C for plain data.
 *
 * They are decorators.  Whatever is not plain is left to the function, which is also what tells
 * people about itself: signature, documentation, name.
 */

#include "_lane_codec.h"
#include "_lane_publisher.h"
#include "_lane_slots.h"

#define ENCODED_BYTES_MAX 8192 /* on the stack; what is longer is not plain */
#define ARGUMENTS_MAX 16
#define CRC32_POLYNOMIAL UINT32_C(0xEDB88320)

typedef struct {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    PyObject *function;
    State *module;
    /* Of PlainActivate: the names of the keyword arguments that the function takes; or NULL. */
    PyObject *key;
    PyObject *timeout;
    PyObject *ttl;
    /* And where the last caller's type and its route keep what is asked of them. */
    PyTypeObject *point_type;
    Py_ssize_t route;
    PyTypeObject *route_type;
    Py_ssize_t publisher;
} Short;

/* --- a key's hash, as codec.key_hash makes it -------------------------------------------------*/

static uint32_t crc32(const unsigned char *bytes, Py_ssize_t size)
{
    static uint32_t table[256]; /* made under the GIL */
    if (table[1] == 0) {
        for (uint32_t n = 0; n < 256; n++) {
            uint32_t rest = n;
            for (int bit = 0; bit < 8; bit++)
                rest = rest >> 1 ^ (rest & 1 ? CRC32_POLYNOMIAL : 0);
            table[n] = rest;
        }
    }
    uint32_t crc = UINT32_MAX;
    for (Py_ssize_t i = 0; i < size; i++)
        crc = crc >> 8 ^ table[(crc ^ bytes[i]) & 0xff];
    return ~crc;
}

/* 1, or 0 if the key is not plain. */
static int hash_key(PyObject *key, long long *hashed)
{
    Py_ssize_t size;
    if (PyUnicode_CheckExact(key)) {
        const char *text = PyUnicode_AsUTF8AndSize(key, &size);
        if (text == NULL) {
            PyErr_Clear();
            return 0;
        }
        *hashed = crc32((const unsigned char *)text, size);
        return 1;
    }
    if (PyBytes_CheckExact(key)) {
        *hashed = crc32((const unsigned char *)PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key));
        return 1;
    }
    return 0;
}

/* --- activate(self, *data, key=None, timeout=1.0, ttl=None), or with fewer of these -----------*/

/* Read the keyword arguments: 1, or 0 if they are not plain.
 *
 * A `timeout` matters only to the function, when there is no room.
 */
static int read_keywords(Short *self, PyObject *const *values, PyObject *keywords,
                         long long *hashed)
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(keywords); i++) {
        PyObject *keyword = PyTuple_GET_ITEM(keywords, i); /* interned, as the names are */
        if (keyword == self->key) {
            if (values[i] != Py_None && !hash_key(values[i], hashed))
                return 0;
        } else if (keyword != self->timeout && !(keyword == self->ttl && values[i] == Py_None)) {
            return 0;
        }
    }
    return 1;
}

/* The point's publisher: a new reference; NULL if it has none that is in C. */
static Publisher *find_publisher(Short *self, PyObject *point)
{
    State *names = self->module;
    if (Py_TYPE(point) != self->point_type) {
        self->route = lane_slot_offset(Py_TYPE(point), names->str_route);
        Py_XSETREF(self->point_type, (PyTypeObject *)Py_NewRef(Py_TYPE(point)));
    }
    PyObject *route = get_attribute(point, self->route, names->str_route);
    if (route != NULL && Py_TYPE(route) != self->route_type) {
        self->publisher = lane_slot_offset(Py_TYPE(route), names->str_publisher);
        Py_XSETREF(self->route_type, (PyTypeObject *)Py_NewRef(Py_TYPE(route)));
    }
    PyObject *publisher =
        route == NULL ? NULL : get_attribute(route, self->publisher, names->str_publisher);
    Py_XDECREF(route);
    if (publisher == NULL)
        PyErr_Clear(); /* the function will say what is wrong */
    else if (!Py_IS_TYPE(publisher, names->publisher))
        Py_CLEAR(publisher);
    return (Publisher *)publisher;
}

/* Return how many jobs that made; 0: nothing was done; -1 with an exception set. */
static Py_ssize_t activate(Short *self, PyObject *const *args, Py_ssize_t count,
                           PyObject *keywords)
{
    char buffer[ENCODED_BYTES_MAX];
    long long hashed = IN_TURN;
    if (count < 1 ||
        (keywords != NULL && !read_keywords(self, args + count, keywords, &hashed)))
        return 0;
    Publisher *publisher = find_publisher(self, args[0]);
    if (publisher == NULL)
        return 0;
    Py_ssize_t jobs = 0;
    Py_ssize_t length = lane_encode(args + 1, count - 1, buffer, sizeof buffer);
    if (length != NOT_PLAIN)
        jobs = lane_publish(publisher, buffer, (uint64_t)length, hashed);
    Py_DECREF(publisher);
    return jobs;
}

static PyObject *activate_vectorcall(Short *self, PyObject *const *args, size_t flags,
                                     PyObject *keywords)
{
    Py_ssize_t jobs = activate(self, args, PyVectorcall_NARGS(flags), keywords);
    if (jobs == 0)
        return PyObject_Vectorcall(self->function, args, flags, keywords);
    return jobs < 0 ? NULL : PyLong_FromSsize_t(jobs);
}

/* --- decode(payload) --------------------------------------------------------------------------*/

static PyObject *decode_vectorcall(Short *self, PyObject *const *args, size_t flags,
                                   PyObject *keywords)
{
    if (PyVectorcall_NARGS(flags) == 1 && keywords == NULL && PyBytes_CheckExact(args[0])) {
        PyObject *items[ARGUMENTS_MAX];
        Py_ssize_t count = lane_decode(args[0], 0, items, ARGUMENTS_MAX);
        if (count >= 0) {
            PyObject *list = PyList_New(count);
            for (Py_ssize_t i = 0; i < count; i++) {
                if (list != NULL)
                    PyList_SET_ITEM(list, i, items[i]);
                else
                    Py_DECREF(items[i]);
            }
            return list;
        }
        if (PyErr_Occurred())
            return NULL;
    }
    return PyObject_Vectorcall(self->function, args, flags, keywords);
}

/* --- the types --------------------------------------------------------------------------------*/

static PyObject *short_new(PyTypeObject *type, PyObject *args, vectorcallfunc vectorcall)
{
    PyObject *function;
    if (!PyArg_ParseTuple(args, "O", &function))
        return NULL;
    Short *self = (Short *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->vectorcall = vectorcall;
        self->function = Py_NewRef(function);
        self->module = state_of((PyObject *)self);
    }
    return (PyObject *)self;
}

/* `name` if it is among the function's keyword arguments that need not be given, else NULL. */
static PyObject *find_keyword(PyObject *defaults, PyObject *name)
{
    return PyDict_Check(defaults) && PyDict_GetItemWithError(defaults, name) != NULL ? name : NULL;
}

static PyObject *activate_new(PyTypeObject *type, PyObject *args, PyObject *unused)
{
    PyObject *made =
        short_new(type, args, (vectorcallfunc)(void (*)(void))activate_vectorcall);
    if (made == NULL)
        return NULL;
    Short *self = (Short *)made;
    PyObject *defaults = PyObject_GetAttrString(self->function, "__kwdefaults__");
    if (defaults != NULL) {
        self->key = find_keyword(defaults, self->module->str_key);
        self->timeout = find_keyword(defaults, self->module->str_timeout);
        self->ttl = find_keyword(defaults, self->module->str_ttl);
        Py_DECREF(defaults);
    }
    PyErr_Clear(); /* it is no function of Python's: no keyword is plain */
    return made;
}

static PyObject *decode_new(PyTypeObject *type, PyObject *args, PyObject *unused)
{
    return short_new(type, args, (vectorcallfunc)(void (*)(void))decode_vectorcall);
}

static int short_traverse(Short *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->function);
    Py_VISIT(self->point_type);
    Py_VISIT(self->route_type);
    return 0;
}

static int short_clear(Short *self)
{
    Py_CLEAR(self->function);
    Py_CLEAR(self->point_type);
    Py_CLEAR(self->route_type);
    return 0;
}

static void short_dealloc(Short *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    short_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

/* As a function: a method when it is asked for by an instance. */
static PyObject *short_descr_get(PyObject *self, PyObject *instance, PyObject *owner)
{
    return instance == NULL ? Py_NewRef(self) : PyMethod_New(self, instance);
}

static PyObject *short_get(Short *self, void *name)
{
    return PyObject_GetAttrString(self->function, name);
}

static PyObject *short_get_wrapped(Short *self, void *unused) { return Py_NewRef(self->function); }

static PyObject *short_repr(Short *self) { return PyObject_Repr(self->function); }

#define OF_FUNCTION(name) {name, (getter)short_get, NULL, NULL, name}

static PyGetSetDef short_getset[] = {
    {"__wrapped__", (getter)short_get_wrapped, NULL, NULL, NULL},
    OF_FUNCTION("__doc__"),
    OF_FUNCTION("__name__"),
    OF_FUNCTION("__qualname__"),
    OF_FUNCTION("__module__"),
    OF_FUNCTION("__annotations__"),
    {NULL},
};

static PyMemberDef short_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Short, vectorcall), READONLY, NULL},
    {NULL},
};

#define SHORT_SLOTS(new)                                                                           \
    {                                                                                              \
        {Py_tp_new, new}, {Py_tp_traverse, short_traverse}, {Py_tp_clear, short_clear},            \
            {Py_tp_dealloc, short_dealloc}, {Py_tp_call, PyVectorcall_Call},                       \
            {Py_tp_descr_get, short_descr_get}, {Py_tp_getset, short_getset},                      \
            {Py_tp_members, short_members}, {Py_tp_repr, short_repr}, {0, NULL},                   \
    }

#define SHORT_FLAGS                                                                                \
    (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |                          \
     Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_METHOD_DESCRIPTOR)

static PyType_Slot activate_slots[] = SHORT_SLOTS(activate_new);
static PyType_Slot decode_slots[] = SHORT_SLOTS(decode_new);

PyType_Spec lane_plain_activate_spec = {"aembus.shm._lane.PlainActivate", sizeof(Short), 0,
                                        SHORT_FLAGS, activate_slots};
PyType_Spec lane_plain_decode_spec = {"aembus.shm._lane.PlainDecode", sizeof(Short), 0,
                                      SHORT_FLAGS, decode_slots};
