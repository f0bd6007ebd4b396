// The module gatedrnn._C. To import it runs the registrations of bindings/; besides it has a cell's
// step as functions that pass by the dispatcher, whose boxing takes longer than the step of one
// sequence. Tensors come through DLPack's C interface, which torch.Tensor offers to extensions.
//
// The functions return None where there is anything to refuse or to convert, or where a mode, a
// transform or a tracer looks on: then the ops answer.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <new>

#include "torch.h"

#include "../cpu/step.h"

namespace gatedrnn {
namespace {

// DLPack's layout, as its specification lays it down for all of major version 1.
struct DlTensor {
  void* data;
  int32_t device_type, device_id, dim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *shape, *strides;
  uint64_t byte_offset;
};

struct DlExchange {
  uint32_t major, minor;
  void* older;
  void* managed[3];
  int (*borrow)(void* object, DlTensor* out);  // -1 with a Python exception set
  void* stream;
};

constexpr int32_t kDlCpu = 1;
constexpr uint8_t kDlFloat = 2;
constexpr int64_t kLongStep = 100000;  // multiply-adds

struct Torch {
  const DlExchange* exchange = nullptr;
  PyObject *tensor, *parameter;                            // classes
  PyObject *empty_like, *new_empty, *contiguous, *is_neg;  // functions of a tensor
  PyObject *requires_grad, *level;                         // attributes' names
  PyObject* forward_ad;                                    // its level is -1 outside
  PyObject* watchers[8];  // functions without arguments, false where nothing looks on
  int watcher_count = 0;
} torch_;

// Owns references, all that a call makes.
class References {
 public:
  ~References() {
    for (int k = 0; k < count_; ++k) Py_XDECREF(kept_[k]);
  }
  PyObject* keep(PyObject* object) { return kept_[count_++] = object; }

 private:
  PyObject* kept_[32];
  int count_ = 0;
};

// What ends a call early: the ops shall answer, or a Python exception is set.
enum class Stop { fall_back, error };

struct Array {
  PyObject* object = nullptr;
  DlTensor is{};
  bool dense = false;  // its strides are those of a new tensor

  explicit operator bool() const { return object != nullptr; }
  int64_t size(int d) const { return is.shape[d]; }
  template <class Real>
  Real* data() const {
    return object ? reinterpret_cast<Real*>(static_cast<char*>(is.data) + is.byte_offset) : nullptr;
  }
};

void borrow(PyObject* object, DlTensor& out) {
  if (torch_.exchange->borrow(object, &out) == 0) return;
  PyErr_Clear();  // a layout that has no pointer
  throw Stop::fall_back;
}

bool is_dense(const DlTensor& t, bool strictly) {
  int64_t stride = 1;
  for (int d = t.dim - 1; d >= 0; --d) {
    if (t.strides[d] != stride && (strictly || t.shape[d] > 1)) return false;
    stride *= t.shape[d];
  }
  return true;
}

// A tensor as it is, or a contiguous copy of it; nothing for None.
Array array_of(PyObject* object, References& references) {
  if (object == Py_None) return {};
  const auto type = reinterpret_cast<PyObject*>(Py_TYPE(object));
  if (type != torch_.tensor && type != torch_.parameter) throw Stop::fall_back;
  PyObject* negated = PyObject_CallFunctionObjArgs(torch_.is_neg, object, nullptr);
  if (references.keep(negated) != Py_False) {
    PyErr_Clear();
    throw Stop::fall_back;
  }
  Array array{object, {}, false};
  borrow(object, array.is);
  array.dense = is_dense(array.is, true);
  if (!array.dense && !is_dense(array.is, false)) {
    array.object =
        references.keep(PyObject_CallFunctionObjArgs(torch_.contiguous, object, nullptr));
    if (!array.object) throw Stop::error;
    borrow(array.object, array.is);
  }
  return array;
}

// Whether it has this shape, and dtype and device of `like`.
bool fits(const Array& array, const Array& like, std::initializer_list<int64_t> sizes) {
  const DlTensor& t = array.is;
  if (t.dim != int(sizes.size()) || t.bits != like.is.bits || t.code != kDlFloat ||
      t.device_type != kDlCpu || t.lanes != 1)
    return false;
  int64_t count = 1;
  for (int d = 0; d < t.dim; ++d) {
    if (t.shape[d] != sizes.begin()[d]) return false;
    count *= t.shape[d];
  }
  return t.data || count == 0;  // a tensor may promise zeros without having any
}

void require(bool condition) {
  if (!condition) throw Stop::fall_back;
}

PyObject* made(PyObject* object) {
  if (!object) throw Stop::error;
  return object;
}

// New tensors of dtype and device of another.
class Results {
 public:
  explicit Results(References& references) : references_(references) {}

  // As large as `like`.
  template <class Real>
  Real* add(const Array& like) {
    if (like.dense)
      return put<Real>(PyObject_CallFunctionObjArgs(torch_.empty_like, like.object, nullptr));
    return like.is.dim == 1 ? add<Real>(like, {like.size(0)})
                            : add<Real>(like, {like.size(0), like.size(1)});
  }

  template <class Real>
  Real* add(const Array& like, std::initializer_list<int64_t> sizes) {
    const int64_t* n = sizes.begin();
    return put<Real>(
        sizes.size() == 1
            ? PyObject_CallFunction(torch_.new_empty, "O(L)", like.object, n[0])
            : PyObject_CallFunction(torch_.new_empty, "O(LL)", like.object, n[0], n[1]));
  }

  void add_none() { objects_[count_++] = Py_None; }

  PyObject* tuple() const {
    PyObject* all = made(PyTuple_New(count_));
    for (int k = 0; k < count_; ++k) {
      Py_INCREF(objects_[k]);
      PyTuple_SetItem(all, k, objects_[k]);
    }
    return all;
  }

 private:
  template <class Real>
  Real* put(PyObject* object) {
    Array array;
    array.object = objects_[count_++] = made(references_.keep(object));
    borrow(array.object, array.is);
    return array.template data<Real>();
  }

  References& references_;
  PyObject* objects_[8];
  int count_ = 0;
};

// What both directions are given.
struct Step {
  Cell cell;
  int64_t B, I, H, G;
  Array x, h, c, w_ih, w_hh;

  Step(PyObject* const* arguments, References& references)
      : x(array_of(arguments[0], references)),
        h(array_of(arguments[1], references)),
        c(array_of(arguments[2], references)),
        w_ih(array_of(arguments[3], references)),
        w_hh(array_of(arguments[4], references)) {
    require(x && h && w_ih && w_hh && x.is.dim == 2 && h.is.dim == 2);
    require(x.is.bits == 32 || x.is.bits == 64);
    cell = c ? Cell::lstm : Cell::gru;
    G = c ? 4 : 3;
    B = x.size(0);
    I = x.size(1);
    H = h.size(1);
    require(fits(x, x, {B, I}) && fits(h, x, {B, H}) && (!c || fits(c, x, {B, H})) &&
            fits(w_ih, x, {G * H, I}) && fits(w_hh, x, {G * H, H}));
  }
};

// Other Python threads may run meanwhile, if it takes longer than to let them.
template <class Run>
void without_lock(const Step& s, Run run) {
  if (s.B * s.G * s.H * (s.I + s.H) < kLongStep) return run();
  struct Released {
    PyThreadState* state = PyEval_SaveThread();
    ~Released() { PyEval_RestoreThread(state); }
  } released;
  run();
}

template <class Real>
PyObject* forward(const Step& s, const Array& b_ih, const Array& b_hh, bool train,
                  References& references) {
  Results results(references);
  CellForward<Real> p{};
  p.cell = s.cell;
  p.B = s.B;
  p.I = s.I;
  p.H = s.H;
  p.x = s.x.data<Real>();
  p.h = s.h.data<Real>();
  p.c = s.c.data<Real>();
  p.w_ih = s.w_ih.data<Real>();
  p.w_hh = s.w_hh.data<Real>();
  p.b_ih = b_ih.data<Real>();
  p.b_hh = b_hh.data<Real>();
  p.h_next = results.add<Real>(s.h);
  if (s.c) p.c_next = results.add<Real>(s.c);
  if (train) p.saved = results.add<Real>(s.h, {s.B, (s.c ? 5 : 4) * s.H});
  without_lock(s, [&] { cell_forward_cpu(instruction_set(), p, torch_threads()); });
  return results.tuple();
}

template <class Real>
PyObject* backward(const Step& s, const Array& saved, const Array& dh, const Array& dc, bool bias,
                   bool need_input, bool need_states, bool need_weights, References& references) {
  Results results(references);
  CellBackward<Real> p{};
  p.cell = s.cell;
  p.B = s.B;
  p.I = s.I;
  p.H = s.H;
  p.x = s.x.data<Real>();
  p.h = s.h.data<Real>();
  p.c = s.c.data<Real>();
  p.w_ih = s.w_ih.data<Real>();
  p.w_hh = s.w_hh.data<Real>();
  p.saved = saved.data<Real>();
  p.dh = dh.data<Real>();
  p.dc = dc.data<Real>();
  if (need_input)
    p.dx = results.add<Real>(s.x);
  else
    results.add_none();
  if (need_states) {
    p.dh_prev = results.add<Real>(s.h);
    if (s.c) p.dc_prev = results.add<Real>(s.c);
  } else {
    for (int missing = s.c ? 2 : 1; missing > 0; --missing) results.add_none();
  }
  if (need_weights) {
    p.dw_ih = results.add<Real>(s.w_ih);
    p.dw_hh = results.add<Real>(s.w_hh);
  }
  if (need_weights && bias) {
    p.db_ih = results.add<Real>(s.h, {s.G * s.H});
    p.db_hh = results.add<Real>(s.h, {s.G * s.H});
  }
  for (int missing = need_weights ? 0 : bias ? 4 : 2; missing > 0; --missing) results.add_none();
  without_lock(s, [&] { cell_backward_cpu(instruction_set(), p, torch_threads()); });
  return results.tuple();
}

bool is_watched() {
  for (int k = 0; k < torch_.watcher_count; ++k) {
    PyObject* found = made(PyObject_CallNoArgs(torch_.watchers[k]));
    const int is = PyObject_IsTrue(found);
    Py_DECREF(found);
    if (is) return true;
  }
  PyObject* level = made(PyObject_GetAttr(torch_.forward_ad, torch_.level));
  const long is = PyLong_AsLong(level);
  Py_DECREF(level);
  return is >= 0;
}

// Runs body(references), and turns what it throws into what Python expects.
template <class Body>
PyObject* answer(Body body) {
  if (!torch_.exchange) Py_RETURN_NONE;
  References references;
  try {
    require(!is_watched());
    return body(references);
  } catch (Stop stop) {
    if (stop == Stop::error) return nullptr;
    Py_RETURN_NONE;
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  }
}

bool needs_gradient(const Array& array) {
  if (!array) return false;
  PyObject* found = made(PyObject_GetAttr(array.object, torch_.requires_grad));
  Py_DECREF(found);
  return found == Py_True;
}

PyObject* cell_forward(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 8) return PyErr_Format(PyExc_TypeError, "cell_forward takes 8 arguments");
  return answer([&](References& references) {
    const Step s(arguments, references);
    const Array b_ih = array_of(arguments[5], references),
                b_hh = array_of(arguments[6], references);
    require(bool(b_ih) == bool(b_hh));
    require(!b_ih || (fits(b_ih, s.x, {s.G * s.H}) && fits(b_hh, s.x, {s.G * s.H})));
    bool train = false;
    if (arguments[7] == Py_True)
      for (const Array* a : {&s.w_ih, &s.w_hh, &b_ih, &b_hh, &s.h, &s.c, &s.x})
        train = train || needs_gradient(*a);
    return s.x.is.bits == 32 ? forward<float>(s, b_ih, b_hh, train, references)
                             : forward<double>(s, b_ih, b_hh, train, references);
  });
}

PyObject* cell_backward(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 12) return PyErr_Format(PyExc_TypeError, "cell_backward takes 12 arguments");
  return answer([&](References& references) {
    const Step s(arguments, references);
    const Array saved = array_of(arguments[5], references), dh = array_of(arguments[6], references),
                dc = array_of(arguments[7], references);
    require(saved && fits(saved, s.x, {s.B, (s.c ? 5 : 4) * s.H}));
    require((!dh || fits(dh, s.x, {s.B, s.H})) && (!dc || fits(dc, s.x, {s.B, s.H})));
    const auto flag = [&](int k) { return arguments[k] == Py_True; };
    const auto run = s.x.is.bits == 32 ? backward<float> : backward<double>;
    return run(s, saved, dh, dc, flag(8), flag(9), flag(10), flag(11), references);
  });
}

// Takes a reference to an object, or to what an object has by this name.
PyObject* held(PyObject* object, const char* name = nullptr) {
  if (name) return made(PyObject_GetAttrString(object, name));
  Py_INCREF(object);
  return object;
}

PyObject* serve(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 6) return PyErr_Format(PyExc_TypeError, "serve takes 6 arguments");
  const auto exchange =
      static_cast<const DlExchange*>(PyCapsule_GetPointer(arguments[2], "dlpack_exchange_api"));
  if (!exchange) return nullptr;
  if (exchange->major != 1 || !exchange->borrow) Py_RETURN_FALSE;
  const Py_ssize_t watchers = PyTuple_Size(arguments[5]);
  if (watchers < 0) return nullptr;
  if (watchers > 8) return PyErr_Format(PyExc_ValueError, "serve takes up to 8 watchers");
  try {
    torch_.tensor = held(arguments[0]);
    torch_.parameter = held(arguments[1]);
    torch_.new_empty = held(torch_.tensor, "new_empty");
    torch_.contiguous = held(torch_.tensor, "contiguous");
    torch_.is_neg = held(torch_.tensor, "is_neg");
    torch_.empty_like = held(arguments[3]);
    torch_.forward_ad = held(arguments[4]);
    torch_.requires_grad = made(PyUnicode_InternFromString("requires_grad"));
    torch_.level = made(PyUnicode_InternFromString("_current_level"));
    for (int k = 0; k < watchers; ++k)
      torch_.watchers[k] = held(made(PyTuple_GetItem(arguments[5], k)));
  } catch (Stop) {
    return nullptr;
  }
  torch_.watcher_count = int(watchers);
  torch_.exchange = exchange;
  Py_RETURN_TRUE;
}

template <class Function>
PyMethodDef method(const char* name, Function function, const char* text) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)),
          METH_FASTCALL, text};
}

PyMethodDef methods[] = {
    method("serve", serve,
           "serve(Tensor, Parameter, capsule of DLPack's C interface, torch.empty_like, "
           "torch.autograd.forward_ad, functions that tell who looks on): what the others need"),
    method("cell_forward", cell_forward,
           "cell_forward(x, h, c, w_ih, w_hh, b_ih, b_hh, grad) -> (h', c' if LSTM, saved if a "
           "gradient is needed) or None"),
    method("cell_backward", cell_backward,
           "cell_backward(x, h, c, w_ih, w_hh, saved, dh, dc, bias, need_input, need_weights) -> "
           "the gradients of x, h, c if LSTM, and of the weights; or None"),
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace
}  // namespace gatedrnn

PyMODINIT_FUNC PyInit__C(void) { return PyModule_Create(&gatedrnn::module); }
