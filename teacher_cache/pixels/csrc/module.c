/* teacher_cache.pixels._native: the functions of native.h on buffers, without the interpreter's lock. */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <string.h>

#include "native.h"

/* The uint8 pixels [height, width, 3] behind an object; the caller releases the view. */
static int pixels_of(PyObject *object, Py_buffer *view, int writable) {
    int flags = PyBUF_C_CONTIGUOUS | (writable ? PyBUF_WRITABLE : 0);
    if (PyObject_GetBuffer(object, view, flags) < 0) return 0;
    if (view->itemsize == 1 && view->ndim == 3 && view->shape[2] == CHANNELS &&
        view->shape[0] > 0 && view->shape[1] > 0 && view->shape[0] <= 1 << 24 &&
        view->shape[1] <= 1 << 24)
        return 1;
    PyBuffer_Release(view);
    PyErr_SetString(PyExc_ValueError, "expected contiguous uint8 pixels [height, width, 3]");
    return 0;
}

static PyObject *finished(int result) {
    if (result < 0) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *py_resize_crop(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *image_object, *out_object;
    Py_buffer image, out;
    Box crop;
    int filter, flip, result = -1;
    if (!PyArg_ParseTuple(args, "OO(iiii)ip", &image_object, &out_object, &crop.left, &crop.top,
                          &crop.right, &crop.bottom, &filter, &flip))
        return NULL;
    if (!pixels_of(image_object, &image, 0)) return NULL;
    if (!pixels_of(out_object, &out, 1)) {
        PyBuffer_Release(&image);
        return NULL;
    }
    int height = (int)image.shape[0], width = (int)image.shape[1], size = (int)out.shape[0];
    int inside = 0 <= crop.left && crop.left < crop.right && crop.right <= width && 0 <= crop.top &&
                 crop.top < crop.bottom && crop.bottom <= height;
    int sound = inside && out.shape[0] == out.shape[1] && size <= 1 << 16 && 0 <= filter &&
                filter < FILTERS;
    if (sound) {
        Py_BEGIN_ALLOW_THREADS
        result = resize_crop(image.buf, width, crop, out.buf, size, filter, flip);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&image);
    PyBuffer_Release(&out);
    if (sound) return finished(result);
    PyErr_Format(PyExc_ValueError, "crop (%d, %d, %d, %d) or filter %d does not fit %d x %d pixels",
                 crop.left, crop.top, crop.right, crop.bottom, filter, width, height);
    return NULL;
}

static PyObject *py_affine(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *object;
    Py_buffer view;
    double m[6];
    unsigned char fill[CHANNELS];
    int result;
    if (!PyArg_ParseTuple(args, "O(dddddd)(bbb)", &object, &m[0], &m[1], &m[2], &m[3], &m[4], &m[5],
                          &fill[0], &fill[1], &fill[2]))
        return NULL;
    if (!pixels_of(object, &view, 1)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    result = affine(view.buf, (int)view.shape[1], (int)view.shape[0], m, fill);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&view);
    return finished(result);
}

enum Tone { INVERT, POSTERIZE, SOLARIZE, SOLARIZE_ADD, BRIGHTNESS, CONTRAST, COLOR, SHARPNESS,
            AUTOCONTRAST, EQUALIZE };

/* In place, whatever the argument means to it. */
static PyObject *toned(PyObject *args, enum Tone tone) {
    PyObject *object;
    Py_buffer view;
    double amount = 0;
    int result = 0;
    if (!PyArg_ParseTuple(args, "O|d", &object, &amount)) return NULL;
    if (!pixels_of(object, &view, 1)) return NULL;
    int height = (int)view.shape[0], width = (int)view.shape[1], whole = (int)amount;
    size_t count = (size_t)height * (size_t)width, bytes = count * CHANNELS;
    uint8_t *pixels = view.buf;
    if (tone == POSTERIZE) whole = whole < 1 ? 1 : whole > 8 ? 8 : whole;
    if (tone == SOLARIZE) whole = whole < 0 ? 0 : whole > 256 ? 256 : whole;
    if (tone == SOLARIZE_ADD) whole = whole < 0 ? 0 : whole > 128 ? 128 : whole;
    Py_BEGIN_ALLOW_THREADS
    switch (tone) {
        case INVERT: invert(pixels, bytes); break;
        case POSTERIZE: posterize(pixels, bytes, whole); break;
        case SOLARIZE: solarize(pixels, bytes, whole); break;
        case SOLARIZE_ADD: solarize_add(pixels, bytes, whole); break;
        case BRIGHTNESS: brightness(pixels, bytes, (float)amount); break;
        case CONTRAST: contrast(pixels, count, (float)amount); break;
        case COLOR: color(pixels, count, (float)amount); break;
        case SHARPNESS: result = sharpness(pixels, width, height, (float)amount); break;
        case AUTOCONTRAST: autocontrast(pixels, count); break;
        case EQUALIZE: equalize(pixels, count); break;
    }
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&view);
    return finished(result);
}

#define TONE(name, tone) \
    static PyObject *py_##name(PyObject *self, PyObject *args) { (void)self; return toned(args, tone); }
TONE(invert, INVERT)
TONE(posterize, POSTERIZE)
TONE(solarize, SOLARIZE)
TONE(solarize_add, SOLARIZE_ADD)
TONE(brightness, BRIGHTNESS)
TONE(contrast, CONTRAST)
TONE(color, COLOR)
TONE(sharpness, SHARPNESS)
TONE(autocontrast, AUTOCONTRAST)
TONE(equalize, EQUALIZE)

static PyObject *py_jpeg_size(PyObject *self, PyObject *args) {
    (void)self;
    Py_buffer data;
    int width = 0, height = 0;
    if (!PyArg_ParseTuple(args, "y*", &data)) return NULL;
    int plain = jpeg_size(data.buf, (size_t)data.len, &width, &height);
    PyBuffer_Release(&data);
    if (!plain) Py_RETURN_NONE;
    return Py_BuildValue("(ii)", width, height);
}

static PyObject *py_jpeg_decode(PyObject *self, PyObject *args) {
    (void)self;
    Py_buffer data, out;
    PyObject *out_object;
    Box part = {0};
    int plain;
    if (!PyArg_ParseTuple(args, "y*Oii", &data, &out_object, &part.left, &part.top)) return NULL;
    if (!pixels_of(out_object, &out, 1)) {
        PyBuffer_Release(&data);
        return NULL;
    }
    enum { FAR = 1 << 20 };
    part.left = part.left > FAR ? FAR : part.left;
    part.top = part.top > FAR ? FAR : part.top;
    part.right = part.left + (int)out.shape[1];
    part.bottom = part.top + (int)out.shape[0];
    Py_BEGIN_ALLOW_THREADS
    plain = jpeg_decode(data.buf, (size_t)data.len, part, out.buf);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&out);
    PyBuffer_Release(&data);
    return PyBool_FromLong(plain);
}

static PyMethodDef methods[] = {
    {"resize_crop", py_resize_crop, METH_VARARGS, "(image, out, box, filter, flip)"},
    {"affine", py_affine, METH_VARARGS, "(pixels, matrix, fill)"},
    {"invert", py_invert, METH_VARARGS, "(pixels)"},
    {"posterize", py_posterize, METH_VARARGS, "(pixels, bits)"},
    {"solarize", py_solarize, METH_VARARGS, "(pixels, threshold)"},
    {"solarize_add", py_solarize_add, METH_VARARGS, "(pixels, added)"},
    {"brightness", py_brightness, METH_VARARGS, "(pixels, factor)"},
    {"contrast", py_contrast, METH_VARARGS, "(pixels, factor)"},
    {"color", py_color, METH_VARARGS, "(pixels, factor)"},
    {"sharpness", py_sharpness, METH_VARARGS, "(pixels, factor)"},
    {"autocontrast", py_autocontrast, METH_VARARGS, "(pixels)"},
    {"equalize", py_equalize, METH_VARARGS, "(pixels)"},
    {"jpeg_size", py_jpeg_size, METH_VARARGS, "(data) -> (width, height), or None if not plain"},
    {"jpeg_decode", py_jpeg_decode, METH_VARARGS, "(data, out, left, top) -> done, else not plain"},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_native", .m_size = 0,
                                    .m_methods = methods};

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&module); }
