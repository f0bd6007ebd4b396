/* An empty module on the limited API: importing gatedrnn._C runs the registrations of bindings/. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", NULL, -1, NULL, NULL, NULL, NULL,
                                    NULL};

PyMODINIT_FUNC PyInit__C(void) { return PyModule_Create(&module); }
