/* Encoding plain data: see _lane_codec.h. */

#include "_lane_codec.h"

typedef struct {
    unsigned char *at;
    unsigned char *end;
} Output;

static inline int has_room(const Output *out, uint64_t size)
{
    return (uint64_t)(out->end - out->at) >= size;
}

/* Write a byte that says what follows, and a number of so many bytes, big-endian. */
static inline int put(Output *out, unsigned char what, uint64_t number, int size)
{
    if (!has_room(out, 1 + (uint64_t)size))
        return 0;
    *out->at++ = what;
    number = __builtin_bswap64(number) >> (64 - 8 * size) % 64;
    memcpy(out->at, &number, (size_t)size);
    out->at += size;
    return 1;
}

static inline int put_byte(Output *out, unsigned char byte) { return put(out, byte, 0, 0); }

static int encode_int(Output *out, PyObject *value)
{
    int overflow;
    long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
    if (overflow)
        return 0;
    uint64_t bits = (uint64_t)number;
    if (number >= -32 && number < 128)
        return put_byte(out, (unsigned char)number);
    if (number >= 0) {
        if (bits <= UINT8_MAX)
            return put(out, 0xcc, bits, 1);
        if (bits <= UINT16_MAX)
            return put(out, 0xcd, bits, 2);
        return bits <= UINT32_MAX ? put(out, 0xce, bits, 4) : put(out, 0xcf, bits, 8);
    }
    if (number >= INT8_MIN)
        return put(out, 0xd0, bits, 1);
    if (number >= INT16_MIN)
        return put(out, 0xd1, bits, 2);
    return number >= INT32_MIN ? put(out, 0xd2, bits, 4) : put(out, 0xd3, bits, 8);
}

static int encode_float(Output *out, PyObject *value)
{
    double number = PyFloat_AS_DOUBLE(value);
    uint64_t bits;
    memcpy(&bits, &number, sizeof bits);
    return put(out, 0xcb, bits, 8);
}

static inline int put_bytes(Output *out, const char *bytes, uint64_t size)
{
    if (!has_room(out, size))
        return 0;
    memcpy(out->at, bytes, size);
    out->at += size;
    return 1;
}

/* Write the head of something of `size`: in the first byte if it is below `small`, else after one
 * of three bytes, from `what` on, in 1, 2 or 4 bytes (without the first if `what1` is 0). */
static int put_size(Output *out, uint64_t size, unsigned char fixed, uint64_t small,
                    unsigned char what1, unsigned char what2)
{
    if (size < small)
        return put_byte(out, (unsigned char)(fixed | size));
    if (what1 != 0 && size <= UINT8_MAX)
        return put(out, what1, size, 1);
    if (size <= UINT16_MAX)
        return put(out, what2, size, 2);
    return size <= UINT32_MAX && put(out, (unsigned char)(what2 + 1), size, 4);
}

static int encode_str(Output *out, PyObject *value)
{
    Py_ssize_t size;
    const char *text = PyUnicode_AsUTF8AndSize(value, &size);
    if (text == NULL) {
        PyErr_Clear(); /* a lone surrogate: Python's way raises it again */
        return 0;
    }
    return put_size(out, (uint64_t)size, 0xa0, 32, 0xd9, 0xda) &&
           put_bytes(out, text, (uint64_t)size);
}

static int encode_bytes(Output *out, PyObject *value)
{
    uint64_t size = (uint64_t)PyBytes_GET_SIZE(value);
    return put_size(out, size, 0, 0, 0xc4, 0xc5) &&
           put_bytes(out, PyBytes_AS_STRING(value), size);
}

static int encode_value(Output *out, PyObject *value, int depth);

static int encode_items(Output *out, PyObject *const *items, Py_ssize_t count, int depth)
{
    if (depth > DEPTH_MAX || !put_size(out, (uint64_t)count, 0x90, 16, 0, 0xdc))
        return 0;
    for (Py_ssize_t i = 0; i < count; i++)
        if (!encode_value(out, items[i], depth))
            return 0;
    return 1;
}

static int encode_dict(Output *out, PyObject *value, int depth)
{
    if (depth > DEPTH_MAX || !put_size(out, (uint64_t)PyDict_GET_SIZE(value), 0x80, 16, 0, 0xde))
        return 0;
    Py_ssize_t position = 0;
    PyObject *key, *item;
    while (PyDict_Next(value, &position, &key, &item))
        if (!encode_value(out, key, depth) || !encode_value(out, item, depth))
            return 0;
    return 1;
}

/* 1, or 0 if the value is not plain or the buffer too small. */
static int encode_value(Output *out, PyObject *value, int depth)
{
    PyTypeObject *type = Py_TYPE(value);
    if (type == &PyLong_Type)
        return encode_int(out, value);
    if (type == &PyUnicode_Type)
        return encode_str(out, value);
    if (type == &PyBytes_Type)
        return encode_bytes(out, value);
    if (type == &PyFloat_Type)
        return encode_float(out, value);
    if (value == Py_None)
        return put_byte(out, 0xc0);
    if (type == &PyBool_Type)
        return put_byte(out, value == Py_True ? 0xc3 : 0xc2);
    if (type == &PyTuple_Type || type == &PyList_Type)
        return encode_items(out, PySequence_Fast_ITEMS(value), PySequence_Fast_GET_SIZE(value),
                            depth + 1);
    if (type == &PyDict_Type)
        return encode_dict(out, value, depth + 1);
    return 0;
}

Py_ssize_t lane_encode(PyObject *const *arguments, Py_ssize_t count, char *buffer, size_t size)
{
    Output out = {(unsigned char *)buffer, (unsigned char *)buffer + size};
    if (!encode_items(&out, arguments, count, 0))
        return NOT_PLAIN;
    return (char *)out.at - buffer;
}
