/* Decoding plain data: see _lane_codec.h. */

#include "_lane_codec.h"

typedef struct {
    const unsigned char *at;
    const unsigned char *end;
} Input;

static inline int has_more(const Input *in, uint64_t size)
{
    return (uint64_t)(in->end - in->at) >= size;
}

/* Read a number of 1, 2, 4 or 8 bytes, big-endian; 0 if they are not there. */
static inline int get(Input *in, int size, uint64_t *number)
{
    if (!has_more(in, (uint64_t)size))
        return 0;
    uint64_t bytes = 0;
    memcpy(&bytes, in->at, (size_t)size);
    in->at += size;
    *number = __builtin_bswap64(bytes) >> (64 - 8 * size);
    return 1;
}

static PyObject *decode_value(Input *in, int depth);

static PyObject *decode_str(Input *in, uint64_t size)
{
    if (!has_more(in, size))
        return NULL;
    PyObject *text = PyUnicode_DecodeUTF8((const char *)in->at, (Py_ssize_t)size, NULL);
    if (text == NULL && PyErr_ExceptionMatches(PyExc_UnicodeDecodeError))
        PyErr_Clear();
    in->at += size;
    return text;
}

static PyObject *decode_bytes(Input *in, uint64_t size)
{
    if (!has_more(in, size))
        return NULL;
    PyObject *bytes = PyBytes_FromStringAndSize((const char *)in->at, (Py_ssize_t)size);
    in->at += size;
    return bytes;
}

static PyObject *decode_list(Input *in, uint64_t size, int depth)
{
    if (depth > DEPTH_MAX || !has_more(in, size)) /* each item takes a byte at least */
        return NULL;
    PyObject *list = PyList_New((Py_ssize_t)size);
    for (uint64_t i = 0; list != NULL && i < size; i++) {
        PyObject *item = decode_value(in, depth);
        if (item == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, (Py_ssize_t)i, item);
    }
    return list;
}

/* 1, 0 if that is not plain, perhaps with an exception set. */
static int decode_entry(Input *in, PyObject *dict, int depth)
{
    PyObject *key = decode_value(in, depth);
    if (key == NULL)
        return 0;
    if (PyUnicode_CheckExact(key))
        PyUnicode_InternInPlace(&key); /* as msgpack does: the names of fields come again */
    int set = 0;
    PyObject *value = NULL;
    if (!PyList_CheckExact(key) && !PyDict_CheckExact(key)) /* else they would have to be tuples */
        value = decode_value(in, depth);
    if (value != NULL)
        set = PyDict_SetItem(dict, key, value) == 0;
    Py_XDECREF(value);
    Py_DECREF(key);
    return set;
}

static PyObject *decode_map(Input *in, uint64_t size, int depth)
{
    if (depth > DEPTH_MAX || !has_more(in, 2 * size))
        return NULL;
    PyObject *dict = PyDict_New();
    for (uint64_t i = 0; dict != NULL && i < size; i++)
        if (!decode_entry(in, dict, depth))
            Py_CLEAR(dict);
    return dict;
}

static PyObject *decode_float(Input *in)
{
    uint64_t bits;
    double number;
    if (!get(in, 8, &bits))
        return NULL;
    memcpy(&number, &bits, sizeof number);
    return PyFloat_FromDouble(number);
}

static PyObject *decode_unsigned(Input *in, int size)
{
    uint64_t number;
    return get(in, size, &number) ? PyLong_FromUnsignedLongLong(number) : NULL;
}

static PyObject *decode_signed(Input *in, int size)
{
    uint64_t number;
    if (!get(in, size, &number))
        return NULL;
    int unused = 64 - 8 * size;
    return PyLong_FromLongLong((long long)(number << unused) >> unused);
}

/* A new reference; NULL if that is not plain, perhaps with an exception set. */
static PyObject *decode_value(Input *in, int depth)
{
    uint64_t size;
    if (!has_more(in, 1))
        return NULL;
    unsigned char what = *in->at++;
    if (what < 0x80 || what >= 0xe0)
        return PyLong_FromLong((signed char)what);
    if (what < 0x90)
        return decode_map(in, what & 0x0f, depth + 1);
    if (what < 0xa0)
        return decode_list(in, what & 0x0f, depth + 1);
    if (what < 0xc0)
        return decode_str(in, what & 0x1f);
    switch (what) {
    case 0xc0:
        return Py_NewRef(Py_None);
    case 0xc2:
        return Py_NewRef(Py_False);
    case 0xc3:
        return Py_NewRef(Py_True);
    case 0xc4:
    case 0xc5:
    case 0xc6:
        return get(in, 1 << (what - 0xc4), &size) ? decode_bytes(in, size) : NULL;
    case 0xcb:
        return decode_float(in);
    case 0xcc:
    case 0xcd:
    case 0xce:
    case 0xcf:
        return decode_unsigned(in, 1 << (what - 0xcc));
    case 0xd0:
    case 0xd1:
    case 0xd2:
    case 0xd3:
        return decode_signed(in, 1 << (what - 0xd0));
    case 0xd9:
    case 0xda:
    case 0xdb:
        return get(in, 1 << (what - 0xd9), &size) ? decode_str(in, size) : NULL;
    case 0xdc:
    case 0xdd:
        return get(in, 2 << (what - 0xdc), &size) ? decode_list(in, size, depth + 1) : NULL;
    case 0xde:
    case 0xdf:
        return get(in, 2 << (what - 0xde), &size) ? decode_map(in, size, depth + 1) : NULL;
    default: /* extension types, short floats, damage */
        return NULL;
    }
}

/* Read the head of the outermost array; NOT_PLAIN if it is none. */
static Py_ssize_t decode_count(Input *in)
{
    uint64_t count;
    if (!has_more(in, 1))
        return NOT_PLAIN;
    unsigned char what = *in->at++;
    if (what >= 0x90 && what < 0xa0)
        return what & 0x0f;
    return what == 0xdc && get(in, 2, &count) ? (Py_ssize_t)count : NOT_PLAIN;
}

Py_ssize_t lane_decode(PyObject *payload, Py_ssize_t skipped, PyObject **items, Py_ssize_t max)
{
    const unsigned char *bytes = (const unsigned char *)PyBytes_AS_STRING(payload);
    Input in = {bytes + skipped, bytes + PyBytes_GET_SIZE(payload)};
    Py_ssize_t count = decode_count(&in);
    if (count > max)
        return NOT_PLAIN;
    for (Py_ssize_t i = 0; i < count; i++) {
        items[i] = decode_value(&in, 0);
        if (items[i] == NULL || (i == count - 1 && in.at != in.end)) {
            for (Py_ssize_t j = i + (items[i] != NULL); j > 0; j--)
                Py_DECREF(items[j - 1]);
            return NOT_PLAIN;
        }
    }
    return count == 0 && in.at != in.end ? NOT_PLAIN : count;
}
