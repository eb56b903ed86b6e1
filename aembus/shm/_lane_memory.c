/* Opening and closing the memory of a lane, and refusing numbers. */

#include "_lane.h"

int lane_memory_open(Memory *memory, PyObject *object, Py_ssize_t control, Py_ssize_t ring,
                     Py_ssize_t ring_bytes)
{
    if (PyObject_GetBuffer(object, &memory->buffer, PyBUF_WRITABLE) < 0)
        return -1;
    Py_ssize_t size = memory->buffer.len;
    int fits = control >= 0 && control % UNIT == 0 && ring >= 0 && ring % UNIT == 0 &&
               ring_bytes >= 2 * UNIT && (ring_bytes & (ring_bytes - 1)) == 0 &&
               (uint64_t)ring_bytes <= (uint64_t)UNIT << CURSOR_OFFSET_BITS &&
               control <= size - LANE_CONTROL_BYTES && ring <= size - ring_bytes &&
               (uintptr_t)memory->buffer.buf % WORD == 0;
    if (!fits) {
        PyBuffer_Release(&memory->buffer);
        PyErr_Format(PyExc_ValueError,
                     "no lane fits there, size=%zd, control=%zd, ring=%zd, ring_bytes=%zd", size,
                     control, ring, ring_bytes);
        return -1;
    }
    memory->control = (char *)memory->buffer.buf + control;
    memory->ring = (char *)memory->buffer.buf + ring;
    memory->capacity = (uint64_t)ring_bytes >> UNIT_SHIFT;
    memory->open = 1;
    return 0;
}

void lane_memory_close(Memory *memory)
{
    if (memory->open) {
        memory->open = 0;
        PyBuffer_Release(&memory->buffer);
    }
}

int lane_word_in_buffer(Py_buffer *buffer, PyObject *object, Py_ssize_t offset, Word **word)
{
    if (PyObject_GetBuffer(object, buffer, PyBUF_WRITABLE) < 0)
        return -1;
    if (offset < 0 || offset % WORD != 0 || offset > buffer->len - WORD ||
        (uintptr_t)buffer->buf % WORD != 0) {
        PyErr_Format(PyExc_ValueError, "no word there, offset=%zd, size=%zd", offset, buffer->len);
        PyBuffer_Release(buffer);
        return -1;
    }
    *word = (Word *)((char *)buffer->buf + offset);
    return 0;
}

int lane_refuse_number(uint64_t number, uint64_t max)
{
    if (!PyErr_Occurred() && number > max)
        PyErr_Format(PyExc_OverflowError, "number is too large, number=%lu, max=%lu",
                     (unsigned long)number, (unsigned long)max);
    return PyErr_Occurred() ? -1 : 0;
}
