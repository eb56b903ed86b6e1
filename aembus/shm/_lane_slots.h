/* Reading an object's slots at their places, where asking by name would cost more than the rest. */

#ifndef AEMBUS_LANE_SLOTS_H
#define AEMBUS_LANE_SLOTS_H

#include "_lane.h"

#include <structmember.h>

/* Where the objects of a type keep the attribute `name`; 0: they must be asked for it by name. */
static inline Py_ssize_t lane_slot_offset(PyTypeObject *type, PyObject *name)
{
    if (type->tp_getattro != PyObject_GenericGetAttr ||
        type->tp_setattro != PyObject_GenericSetAttr)
        return 0;
    PyObject *found = PyObject_GetAttr((PyObject *)type, name);
    if (found == NULL) {
        PyErr_Clear(); /* it may still be in the object's own __dict__ */
        return 0;
    }
    Py_ssize_t offset = 0;
    if (Py_IS_TYPE(found, &PyMemberDescr_Type)) {
        PyMemberDescrObject *slot = (PyMemberDescrObject *)found;
        if (slot->d_member->type == T_OBJECT_EX && slot->d_member->flags == 0 &&
            PyType_IsSubtype(type, PyDescr_TYPE(slot)))
            offset = slot->d_member->offset;
    }
    Py_DECREF(found);
    return offset;
}

/* A new reference, or NULL with an exception set; `offset` may be 0. */
static inline PyObject *get_attribute(PyObject *object, Py_ssize_t offset, PyObject *name)
{
    PyObject *value = offset == 0 ? NULL : *(PyObject **)((char *)object + offset);
    return value == NULL ? PyObject_GetAttr(object, name) : Py_NewRef(value);
}

static inline int set_attribute(PyObject *object, Py_ssize_t offset, PyObject *name,
                                PyObject *value)
{
    if (offset == 0)
        return PyObject_SetAttr(object, name, value);
    PyObject **place = (PyObject **)((char *)object + offset);
    Py_XSETREF(*place, Py_NewRef(value));
    return 0;
}

#endif
