// The raw kernels on NumPy arrays, for the kernel tests and microbenchmarks: no dispatcher between
// the clock and the kernel, any instruction set, any partition, no torch. Never part of the wheel.
#include <omp.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "../cpu/driver.h"
#include "../cpu/layer.h"
#include "../cpu/step.h"

namespace py = pybind11;

namespace gatedrnn {
namespace {

template <class Real>
using Array = py::array_t<Real, py::array::c_style>;
template <class Real>
using Arrays = std::vector<Array<Real>>;
// In 16 bits numbers come and go as their bits.
template <class Stored>
using Element = std::conditional_t<sizeof(Stored) == 2, uint16_t, Stored>;

// The caller sets the number of OpenMP's threads just before it runs.
Parallel openmp(int threads) {
  return {threads, [](int64_t n, void (*body)(void*, int64_t, int64_t), void* context) {
#pragma omp parallel
            {
              const int64_t of = omp_get_num_threads(), me = omp_get_thread_num();
              if (n * me / of < n * (me + 1) / of) body(context, n * me / of, n * (me + 1) / of);
            }
          }};
}

const InstructionSet& set_of(const std::string& name) {
  const InstructionSet* set = name.empty() ? &instruction_set() : instruction_set(name.c_str());
  if (!set) throw py::value_error("this machine has no instruction set " + name);
  return *set;
}

Cell cell_of(const std::string& name) {
  if (name == "gru") return Cell::gru;
  if (name == "lstm") return Cell::lstm;
  throw py::value_error("cell must be gru or lstm, not " + name);
}

template <class Real>
Array<Real> zeros(std::vector<py::ssize_t> shape) {
  Array<Real> a(shape);
  std::fill_n(a.mutable_data(), a.size(), Real(0));
  return a;
}

void expect(bool condition, const char* what) {
  if (!condition) throw py::value_error(what);
}

// One direction of one layer with all of its buffers, so that forward() and backward() do nothing
// but compute.
template <class Stored>
class Layer {
  using Real = RealOf<Stored>;
  using Number = Element<Stored>;

 public:
  Layer(const std::string& cell, Array<Number> x, Array<Number> h0, std::optional<Array<Number>> c0,
        Arrays<Number> weights, bool reverse, std::optional<std::vector<int64_t>> batch_sizes,
        const std::string& isa, int threads, const std::string& partition, bool train,
        std::optional<int64_t> chunk, std::optional<int64_t> ahead,
        std::optional<bool> narrow_panels, int64_t recompute)
      : set_(set_of(isa)), parallel_(openmp(threads)), x_(x), h0_(h0), weights_(weights) {
    const bool lstm = cell_of(cell) == Cell::lstm;
    const int G = lstm ? 4 : 3;
    expect(weights.size() >= 4 && weights.size() <= 5,
           "weights must be w_ih, w_hh, b_ih, b_hh and perhaps w_hr");
    expect(h0.ndim() == 2 && x.ndim() == (batch_sizes ? 2 : 3), "x or h0 has the wrong rank");
    Forward<Real, Stored>& f = forward_;
    f.cell = cell_of(cell);
    f.B = h0.shape(0);
    f.P = h0.shape(1);
    f.H = weights[0].shape(0) / G;
    f.I = x.shape(x.ndim() - 1);
    f.reverse = reverse;
    if (batch_sizes) {
      offsets_.assign(1, 0);
      for (int64_t b : *batch_sizes) offsets_.push_back(offsets_.back() + b);
      f.offsets = offsets_.data();
      f.T = int64_t(batch_sizes->size());
      expect(offsets_.back() == x.shape(0) && batch_sizes->at(0) == f.B,
             "batch_sizes do not fit x");
    } else {
      f.T = x.shape(0);
      expect(x.shape(1) == f.B, "x and h0 have different batch sizes");
    }
    expect(weights[0].size() == G * f.H * f.I && weights[1].size() == G * f.H * f.P &&
               weights[2].size() == G * f.H && weights[3].size() == G * f.H &&
               (weights.size() == 4 ? f.P == f.H : weights[4].size() == f.P * f.H),
           "the weights do not fit x and h0");
    const auto rows = [&](int64_t width) {
      return batch_sizes ? std::vector<py::ssize_t>{x.shape(0), width}
                         : std::vector<py::ssize_t>{f.T, f.B, width};
    };
    const int64_t kept = gates_kept<Stored>(f.cell) * f.H;
    y = zeros<Number>(rows(f.P));
    hn = zeros<Number>({f.B, f.P});
    gates = zeros<Number>(train ? rows(kept) : std::vector<py::ssize_t>{0});
    c = zeros<Real>(!lstm   ? std::vector<py::ssize_t>{0}
                    : train ? rows(f.H)
                            : std::vector<py::ssize_t>{f.B, f.H});
    cn = zeros<Number>(lstm ? std::vector<py::ssize_t>{f.B, f.H} : std::vector<py::ssize_t>{0});
    f.x = at(stored(x), f.I);
    f.w_ih = stored(weights[0]);
    f.w_hh = stored(weights[1]);
    f.b_ih = stored(weights[2]);
    f.b_hh = stored(weights[3]);
    if (weights.size() == 5) f.w_hr = stored(weights_[4]);
    f.h0 = stored(h0);
    f.y = at(writable(y), f.P);
    f.hn = writable(hn);
    if (train) f.gates = at(writable(gates), kept);
    f.gates_from = std::min(recompute, f.T);
    if (lstm) {
      c0_ = c0 ? *c0 : zeros<Number>({f.B, f.H});
      f.c0 = stored(c0_);
      f.cn = writable(cn);
      f.c = train ? at(c.mutable_data(), f.H) : Rows<Real>{c.mutable_data(), 0, f.H, nullptr};
    }
    const bool pairs = std::is_same_v<Stored, Bfloat16> && set_.pairs;
    plan_ = plan_cpu({f.T, f.B, f.I, f.H, f.P, G, 1, int(sizeof(Stored)), threads,
                      kernels_of<Real>(set_).registers, pairs});
    if (partition == "rows") {
      plan_.parts = 1;
      plan_.block = std::min<int64_t>(64, (f.B + threads - 1) / threads);
    } else if (partition == "units") {
      plan_.parts = threads;
      plan_.block = f.B;
    } else if (partition == "groups") {
      plan_.parts = (threads + 1) / 2;
      plan_.block = (f.B + 1) / 2;
    } else {
      expect(partition == "plan", "partition must be plan, rows, units or groups");
    }
    if (partition != "plan") plan_.threads = threads;
    if (chunk) plan_.chunk = *chunk;
    if (ahead) plan_.ahead = *ahead;
    if (narrow_panels) plan_.narrow_panels = *narrow_panels;
    workspace_.resize(forward_workspace(set_, plan_, &f, 1));
    if (train) prepare_backward(rows(f.I));
  }

  void forward() {
    omp_set_num_threads(parallel_.threads);
    layer_forward_cpu(set_, plan_, &forward_, 1, workspace_.data(), parallel_);
  }

  void backward(Array<Number> dy, Array<Number> dhn, std::optional<Array<Number>> dcn) {
    expect(gates.size() > 0, "backward needs train=True");
    expect(dy.size() == y.size() && dhn.size() == hn.size(), "a cotangent has the wrong size");
    backward_.dy = at(stored(dy), forward_.P);
    backward_.dhn = stored(dhn);
    backward_.dcn = dcn ? stored(*dcn) : nullptr;
    omp_set_num_threads(parallel_.threads);
    layer_backward_cpu(set_, plan_, &backward_, 1, backward_workspace_.data(), parallel_);
  }

  Array<Number> y, hn, cn, gates, dx, dh0, dc0, dw_ih, dw_hh, db_ih, db_hh, dw_hr;
  Array<Real> c;

 private:
  static const Stored* stored(const Array<Number>& a) {
    return reinterpret_cast<const Stored*>(a.data());
  }
  static Stored* writable(Array<Number>& a) { return reinterpret_cast<Stored*>(a.mutable_data()); }

  template <class Data>
  Rows<Data> at(Data* data, int64_t width) const {
    return {data, forward_.B * width, width, forward_.offsets};
  }

  void prepare_backward(std::vector<py::ssize_t> input_rows) {
    const Forward<Real, Stored>& f = forward_;
    Backward<Real, Stored>& b = backward_;
    static_cast<Sizes&>(b) = f;
    b.cell = f.cell;
    b.x = f.x;
    b.w_ih = f.w_ih;
    b.w_hh = f.w_hh;
    b.w_hr = f.w_hr;
    b.h0 = f.h0;
    b.c0 = f.c0;
    b.y = at(stored(y), f.P);
    b.gates = at(stored(gates), f.gates.row);
    b.gates_from = f.gates_from;
    b.b_ih = f.b_ih;
    b.b_hh = f.b_hh;
    b.c = at<const Real>(c.data(), f.H);
    const auto like = [](const Array<Number>& a) {
      return zeros<Number>(std::vector<py::ssize_t>(a.shape(), a.shape() + a.ndim()));
    };
    const auto gradient = [&](Array<Number>& to, const Array<Number>& of) {
      to = like(of);
      return writable(to);
    };
    dx = zeros<Number>(input_rows);
    b.dx = at(writable(dx), f.I);
    b.dh0 = gradient(dh0, h0_);
    dc0 = zeros<Number>({f.B, f.H});
    b.dc0 = writable(dc0);
    b.dw_ih = gradient(dw_ih, weights_[0]);
    b.dw_hh = gradient(dw_hh, weights_[1]);
    b.db_ih = gradient(db_ih, weights_[2]);
    b.db_hh = gradient(db_hh, weights_[3]);
    if (f.w_hr) b.dw_hr = gradient(dw_hr, weights_[4]);
    backward_workspace_.resize(backward_workspace(set_, plan_, &b, 1));
  }

  const InstructionSet& set_;
  Parallel parallel_;
  Array<Number> x_, h0_, c0_;
  Arrays<Number> weights_;
  std::vector<int64_t> offsets_;
  Forward<Real, Stored> forward_{};
  Backward<Real, Stored> backward_{};
  Plan plan_{};
  std::vector<Real> workspace_, backward_workspace_;
};

// A cell's step from raw weights.
template <class Real>
class Step {
 public:
  Step(const std::string& cell, Array<Real> x, Array<Real> h, std::optional<Array<Real>> c,
       Arrays<Real> weights, const std::string& isa, int threads)
      : set_(set_of(isa)), parallel_(openmp(threads)), x_(x), h_(h), weights_(weights) {
    const bool lstm = cell_of(cell) == Cell::lstm;
    const int64_t G = lstm ? 4 : 3;
    CellForward<Real>& p = params_;
    p.cell = cell_of(cell);
    p.B = x.shape(0);
    p.I = x.shape(1);
    p.H = h.shape(1);
    expect(weights.size() == 4 && weights[0].size() == G * p.H * p.I &&
               weights[1].size() == G * p.H * p.H && weights[2].size() == G * p.H &&
               weights[3].size() == G * p.H && h.shape(0) == p.B,
           "the weights do not fit x and h");
    p.x = x.data();
    p.h = h.data();
    p.w_ih = weights[0].data();
    p.w_hh = weights[1].data();
    p.b_ih = weights[2].data();
    p.b_hh = weights[3].data();
    h_next = zeros<Real>({p.B, p.H});
    p.h_next = h_next.mutable_data();
    c_next = zeros<Real>({p.B, p.H});
    saved = zeros<Real>({p.B, (lstm ? 5 : 4) * p.H});
    p.saved = saved.mutable_data();
    if (lstm) {
      c_ = c ? *c : zeros<Real>({p.B, p.H});
      p.c = c_.data();
      p.c_next = c_next.mutable_data();
    }
  }

  void forward() {
    omp_set_num_threads(parallel_.threads);
    cell_forward_cpu(set_, params_, parallel_);
  }

  Array<Real> h_next, c_next, saved;

 private:
  const InstructionSet& set_;
  Parallel parallel_;
  Array<Real> x_, h_, c_;
  Arrays<Real> weights_;
  CellForward<Real> params_{};
};

template <class Real>
Array<Real> apply(void (*function)(const Real*, Real*, int64_t), Array<Real> x) {
  Array<Real> y = zeros<Real>({x.size()});
  function(x.data(), y.mutable_data(), x.size());
  return y;
}

// a w^T.
template <class Real>
Array<Real> multiply(Array<Real> a, Array<Real> w, const std::string& isa, int threads) {
  const int64_t rows = a.shape(0), K = a.shape(1), N = w.shape(0);
  expect(w.shape(1) == K && rows > 0, "a and w do not fit");
  Array<Real> c = zeros<Real>({rows, N});
  const int64_t W = kernels_of<Real>(set_of(isa)).width, panels = ceil_div(N, 4 * W);
  std::vector<Real> packed(size_t(panels * K * 4 * W));
  layer_kernels_of<Real, Real, Real>(set_of(isa))
      .pack_rows(w.data(), K, 4, N, W, 4 * W, packed.data(), 0, panels);
  omp_set_num_threads(threads);
  multiply_by_all(whole_kernels_of<Real, Real, Real>(set_of(isa)),
                  {rows, K, N, a.data(), K, packed.data(), c.mutable_data(), N, false}, W, threads,
                  openmp(threads));
  return c;
}

// The gradients of w, of the bias and of a (with `direct` added) from that of a w^T.
template <class Real>
py::tuple product_backward(Array<Real> d, Array<Real> w, Array<Real> a, Array<Real> direct,
                           bool few, const std::string& isa, int threads) {
  const int64_t B = d.shape(0), N = d.shape(1), K = w.shape(1);
  expect(a.shape(0) == B && a.shape(1) == K && w.shape(0) == N && direct.size() == a.size(),
         "the arrays do not fit");
  Array<Real> da = zeros<Real>({B, K}), dw = zeros<Real>({N, K}), db = zeros<Real>({N});
  omp_set_num_threads(threads);
  product_backward_cpu<Real>(set_of(isa),
                             {B, N, K, d.data(), w.data(), a.data(), direct.data(),
                              da.mutable_data(), dw.mutable_data(), db.mutable_data(), nullptr},
                             few, openmp(threads));
  return py::make_tuple(dw, db, da);
}

template <class Run>
double seconds(Run run) {
  const auto begin = std::chrono::steady_clock::now();
  run();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// Floating-point operations a second of all threads together: the best of `repeats` short runs.
template <class Real>
double peak_flops(const std::string& isa, int threads, int repeats) {
  const Kernels<Real>& k = kernels_of<Real>(set_of(isa));
  const Parallel parallel = openmp(threads);
  omp_set_num_threads(threads);
  double best = 0;
  for (int n = 0; n < repeats; ++n) {
    double operations = 0;
    const double time = seconds([&] {
      std::vector<double> done(threads);
      parallel(threads, [&](int64_t begin, int64_t) { done[begin] = k.multiply_adds(1 << 20); });
      for (double d : done) operations += 2 * d;
    });
    best = std::max(best, operations / time);
  }
  return best;
}

// Bytes a second that all threads together read, each from a buffer of its own of `bytes`.
double read_bandwidth(int64_t bytes, const std::string& isa, int threads, int repeats) {
  const Kernels<float>& k = kernels_of<float>(set_of(isa));
  const Parallel parallel = openmp(threads);
  omp_set_num_threads(threads);
  const int64_t span = 8 * k.width, n = bytes / int64_t(sizeof(float)) / span * span;
  std::vector<std::vector<float>> buffers(threads, std::vector<float>(n));
  const int64_t passes = std::max<int64_t>(1, (int64_t(64) << 20) / bytes);
  double best = 0;
  for (int repeat = 0; repeat < repeats; ++repeat) {
    const double time = seconds([&] {
      parallel(threads,
               [&](int64_t begin, int64_t) { k.read_all(buffers[begin].data(), n, passes); });
    });
    best = std::max(best, double(n) * sizeof(float) * passes * threads / time);
  }
  return best;
}

template <class Stored>
void define_layer(py::module_& m, const char* name) {
  using py::arg;
  using Number = Element<Stored>;
  py::class_<Layer<Stored>>(m, name)
      .def(py::init<const std::string&, Array<Number>, Array<Number>, std::optional<Array<Number>>,
                    Arrays<Number>, bool, std::optional<std::vector<int64_t>>, const std::string&,
                    int, const std::string&, bool, std::optional<int64_t>, std::optional<int64_t>,
                    std::optional<bool>, bool>(),
           arg("cell"), arg("x").noconvert(), arg("h0").noconvert(), arg("c0"), arg("weights"),
           arg("reverse") = false, arg("batch_sizes") = py::none(), arg("isa") = "",
           arg("threads") = 1, arg("partition") = "plan", arg("train") = true,
           arg("chunk") = py::none(), arg("ahead") = py::none(), arg("narrow_panels") = py::none(),
           arg("recompute") = 0)
      .def("forward", &Layer<Stored>::forward)
      .def("backward", &Layer<Stored>::backward, arg("dy").noconvert(), arg("dhn").noconvert(),
           arg("dcn") = py::none())
      .def_readonly("y", &Layer<Stored>::y)
      .def_readonly("hn", &Layer<Stored>::hn)
      .def_readonly("cn", &Layer<Stored>::cn)
      .def_readonly("gates", &Layer<Stored>::gates)
      .def_readonly("c", &Layer<Stored>::c)
      .def_readonly("dx", &Layer<Stored>::dx)
      .def_readonly("dh0", &Layer<Stored>::dh0)
      .def_readonly("dc0", &Layer<Stored>::dc0)
      .def_readonly("dw_ih", &Layer<Stored>::dw_ih)
      .def_readonly("dw_hh", &Layer<Stored>::dw_hh)
      .def_readonly("db_ih", &Layer<Stored>::db_ih)
      .def_readonly("db_hh", &Layer<Stored>::db_hh)
      .def_readonly("dw_hr", &Layer<Stored>::dw_hr);
}

// Between numbers and what is stored of them.
template <class Stored>
void define_storage(py::module_& m, const char* name) {
  using py::arg;
  m.def((std::string("widen_") + name).c_str(),
        [](Array<uint16_t> x, const std::string& isa) {
          Array<float> y = zeros<float>({x.size()});
          storage_kernels_of<float, Stored>(set_of(isa))
              .widen(reinterpret_cast<const Stored*>(x.data()), y.mutable_data(), x.size());
          return y;
        },
        arg("x").noconvert(), arg("isa") = "");
  m.def((std::string("narrow_") + name).c_str(),
        [](Array<float> x, const std::string& isa) {
          Array<uint16_t> y = zeros<uint16_t>({x.size()});
          storage_kernels_of<float, Stored>(set_of(isa))
              .narrow(x.data(), reinterpret_cast<Stored*>(y.mutable_data()), x.size());
          return y;
        },
        arg("x").noconvert(), arg("isa") = "");
}

template <class Real>
void define(py::module_& m, const char* suffix) {
  using py::arg;
  const std::string s(suffix);
  py::class_<Step<Real>>(m, ("Step" + s).c_str())
      .def(py::init<const std::string&, Array<Real>, Array<Real>, std::optional<Array<Real>>,
                    Arrays<Real>, const std::string&, int>(),
           arg("cell"), arg("x").noconvert(), arg("h").noconvert(), arg("c"), arg("weights"),
           arg("isa") = "", arg("threads") = 1)
      .def("forward", &Step<Real>::forward)
      .def_readonly("h_next", &Step<Real>::h_next)
      .def_readonly("c_next", &Step<Real>::c_next)
      .def_readonly("saved", &Step<Real>::saved);
  m.def(
      "sigmoid",
      [](Array<Real> x, const std::string& isa) {
        return apply(kernels_of<Real>(set_of(isa)).sigmoid, x);
      },
      arg("x").noconvert(), arg("isa") = "");
  m.def(
      "tanh",
      [](Array<Real> x, const std::string& isa) {
        return apply(kernels_of<Real>(set_of(isa)).tanh, x);
      },
      arg("x").noconvert(), arg("isa") = "");
  m.def("multiply", &multiply<Real>, arg("a").noconvert(), arg("w").noconvert(), arg("isa") = "",
        arg("threads") = 1);
  m.def("product_backward", &product_backward<Real>, arg("d").noconvert(), arg("w").noconvert(),
        arg("a").noconvert(), arg("direct").noconvert(), arg("few"), arg("isa") = "",
        arg("threads") = 1);
  m.def(("peak_flops" + s).c_str(), &peak_flops<Real>, arg("isa") = "", arg("threads") = 1,
        arg("repeats") = 20);
}

PYBIND11_MODULE(gatedrnn_kernels, m) {
  m.doc() = "gatedrnn's raw CPU kernels on NumPy arrays";
  define_layer<float>(m, "Layer32");
  define_layer<double>(m, "Layer64");
  define_layer<Half>(m, "LayerFloat16");
  define_layer<Bfloat16>(m, "LayerBfloat16");
  define_storage<Half>(m, "float16");
  define_storage<Bfloat16>(m, "bfloat16");
  define<float>(m, "32");
  define<double>(m, "64");
  // That this machine has: sets of their own, and those that add pairs of bfloat16 to another.
  const auto sets = [](std::initializer_list<const char*> all) {
    std::vector<std::string> names;
    for (const char* name : all)
      if (instruction_set(name)) names.push_back(name);
    return names;
  };
  m.def("instruction_sets", [=] { return sets({"avx512", "avx2", "baseline"}); });
  m.def("pair_sets", [=] { return sets({"avx512bf16"}); });
  m.def("read_bandwidth", &read_bandwidth, py::arg("bytes"), py::arg("isa") = "",
        py::arg("threads") = 1, py::arg("repeats") = 20);
  m.def(
      "cell_plan",
      [](int64_t B, int64_t I, int64_t H, int gates, int width, int threads) {
        const CellPlan plan = plan_cell({B, I, H, gates, width, threads});
        return py::dict(py::arg("threads") = plan.threads,
                        py::arg("backward_threads") = plan.backward_threads,
                        py::arg("packed") = plan.packed, py::arg("by_rows") = plan.by_rows,
                        py::arg("few") = plan.few);
      },
      py::arg("B"), py::arg("I"), py::arg("H"), py::arg("gates"), py::arg("width") = 16,
      py::arg("threads") = 1);
  m.def(
      "plan",
      [](int64_t T, int64_t B, int64_t I, int64_t H, int64_t P, int gates, int directions,
         int element, int threads, int registers, bool pairs) {
        const Plan plan =
            plan_cpu({T, B, I, H, P, gates, directions, element, threads, registers, pairs});
        return py::dict(py::arg("block") = plan.block, py::arg("parts") = plan.parts,
                        py::arg("threads") = plan.threads, py::arg("chunk") = plan.chunk,
                        py::arg("ahead") = plan.ahead,
                        py::arg("narrow_panels") = plan.narrow_panels,
                        py::arg("pairs") = plan.pairs);
      },
      py::arg("T"), py::arg("B"), py::arg("I"), py::arg("H"), py::arg("P"), py::arg("gates"),
      py::arg("directions") = 1, py::arg("element") = 4, py::arg("threads") = 1,
      py::arg("registers") = 32, py::arg("pairs") = false);
}

}  // namespace
}  // namespace gatedrnn
