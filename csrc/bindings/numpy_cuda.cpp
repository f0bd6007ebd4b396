// The CUDA kernels on NumPy arrays, run by the test suite's emulator: for kernel tests, which
// choose product and tile themselves and make all arrays, outputs and scratch too. Never part of
// the wheel.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <string>
#include <type_traits>
#include <vector>

#include "cuda_emulator.h"

#include "../cuda/layer.h"
#include "../grid.h"
#include "../measured.h"

namespace py = pybind11;

namespace gatedrnn {
namespace {

void expect(bool condition, const std::string& what) {
  if (!condition) throw py::value_error(what);
}

template <class Value>
Value named(const std::string& name, std::initializer_list<std::pair<const char*, Value>> values) {
  std::string names;
  for (const auto& [known, value] : values) {
    if (name == known) return value;
    names += std::string(" ") + known;
  }
  throw py::value_error("must be one of" + names + ", not " + name);
}

Cell cell_of(const std::string& name) {
  return named<Cell>(name, {{"gru", Cell::gru}, {"lstm", Cell::lstm}});
}

const char* name_of(Product product) {
  const char* names[] = {"fma", "tf32", "half", "bfloat16", "split"};
  return names[int(product)];
}

const char* name_of(Reason reason) {
  const char* names[] = {"predicted", "measured", "asked"};
  return names[int(reason)];
}

const char* name_of(Tile tile) { return tile == Tile::wide ? "wide" : "narrow"; }

// `persistent` is empty, or units, cluster (0: the grid) and sequences.
CudaPlan plan_of(const std::string& product, const std::string& tile,
                 const std::vector<int>& persistent) {
  const auto p = named<Product>(product, {{"fma", Product::fma},
                                          {"tf32", Product::tf32},
                                          {"half", Product::half},
                                          {"bfloat16", Product::bfloat16},
                                          {"split", Product::split}});
  const auto t = named<Tile>(tile, {{"narrow", Tile::narrow}, {"wide", Tile::wide}});
  CudaPlan plan{p, p, t, t, {}, {}, false};
  if (!persistent.empty()) {
    expect(persistent.size() == 3, "persistent must be units, cluster and sequences");
    plan.persistent_forward = {persistent[0], persistent[1], persistent[2]};
    plan.persistent_backward = plan.persistent_forward;
  }
  return plan;
}

// NumPy has no bfloat16: its bits go as uint16.
template <class Real>
py::dtype dtype_of() {
  if constexpr (std::is_same_v<Real, Half>)
    return py::dtype("float16");
  else if constexpr (std::is_same_v<Real, Bfloat16>)
    return py::dtype("uint16");
  else
    return py::dtype::of<Real>();
}

// The arrays of one call by name, as pointers of the type that layer.h gives their place. What is
// not there is null.
class Arrays {
 public:
  Arrays(const py::dict& arrays, const int64_t* offsets) : arrays_(arrays), offsets_(offsets) {}

  // Contiguous, of so many elements.
  template <class T>
  void flat(T*& p, const char* name, int64_t size) const {
    p = nullptr;
    if (!arrays_.contains(name)) return;
    const auto array = get<T>(name);
    expect(array.size() == size && array.flags() & py::array::c_style,
           std::string(name) + " must be contiguous, of " + std::to_string(size) + " elements");
    p = data<T>(array);
  }

  // (steps, batch, width) or, packed, (rows, width), with any strides but the last. A step stride
  // of 0 may have three dimensions though the others are packed.
  template <class T>
  void rows(Rows<T>& rows, const char* name, int64_t least_width) {
    rows = {};
    if (!arrays_.contains(name)) return;
    const auto array = get<T>(name);
    const int last = int(array.ndim()) - 1;
    expect(last == 2 || (last == 1 && offsets_), std::string(name) + " has the wrong rank");
    expect(array.shape(last) >= least_width, std::string(name) + " is too narrow");
    expect(array.strides(last) == array.itemsize(), std::string(name) + " has gaps in its rows");
    rows.data = data<T>(array);
    rows.row = array.strides(last - 1) / array.itemsize();
    rows.step = last == 2 ? array.strides(0) / array.itemsize() : 0;
    rows.offsets = last == 2 ? nullptr : offsets_;
  }

 private:
  template <class T>
  py::array get(const char* name) const {
    using Real = std::remove_const_t<T>;
    const py::handle value = arrays_[name];
    expect(py::isinstance<py::array>(value), std::string(name) + " must be an array");
    auto array = py::reinterpret_borrow<py::array>(value);
    expect(array.dtype().equal(dtype_of<Real>()), std::string(name) + " has the wrong dtype");
    return array;
  }

  template <class T>
  static T* data(py::array array) {
    if constexpr (std::is_const_v<T>)
      return static_cast<T*>(array.data());
    else
      return static_cast<T*>(array.mutable_data());
  }

  py::dict arrays_;
  const int64_t* offsets_;
};

// A direction: its sizes by their letters, "reverse", perhaps "offsets", and its arrays.
struct Direction {
  explicit Direction(const py::dict& d) {
    if (d.contains("offsets")) offsets = d["offsets"].cast<std::vector<int64_t>>();
    const auto size = [&](const char* name) { return d[name].cast<int64_t>(); };
    sizes = {size("T"),
             size("B"),
             d.contains("I") ? size("I") : 0,
             size("H"),
             size("P"),
             offsets.empty() ? nullptr : &offsets[0],
             d["reverse"].cast<bool>()};
    expect(offsets.empty() || int64_t(offsets.size()) == sizes.T + 1, "offsets must be T + 1");
  }
  std::vector<int64_t> offsets;
  Sizes sizes;
};

Uneven uneven_of(const Arrays& a, const Sizes& sizes) {
  Uneven uneven{};
  a.flat(uneven.lengths, "lengths", sizes.B);
  a.flat(uneven.order, "order", sizes.B);
  a.flat(uneven.places, "places", sizes.T + sizes.B);
  return uneven;
}

template <class Real>
CudaForward<Real> forward_of(Cell cell, const py::dict& d, const Direction& direction,
                             const CudaPlan& plan, int matrices = 1) {
  CudaForward<Real> p{};
  static_cast<Sizes&>(p) = direction.sizes;
  p.cell = cell;
  const int64_t G = cell == Cell::gru ? 3 : 4, B = p.B, H = p.H, P = p.P;
  Arrays a(d, p.offsets);
  a.rows(p.projected, "projected", G * H);
  a.rows(p.x, "x", p.I);
  a.flat(p.w_ih, "w_ih", G * H * p.I);
  a.flat(p.w_hh, "w_hh", G * H * P);
  a.flat(p.b_ih, "b_ih", G * H);
  a.flat(p.b_hh, "b_hh", G * H);
  a.flat(p.w_hr, "w_hr", P * H);
  a.flat(p.h0, "h0", B * P);
  a.flat(p.c0, "c0", B * H);
  a.rows(p.y, "y", P);
  a.flat(p.hn, "hn", B * P);
  a.flat(p.cn, "cn", B * H);
  a.rows(p.gates, "gates", G * H);
  a.rows(p.c, "c", H);
  a.flat(p.carry, "carry", B * H);
  a.rows(p.hidden, "hidden", H);
  a.flat(p.packed, "packed", matrices * scratch_size(int(G), plan, B, true));
  p.uneven = uneven_of(a, p);
  return p;
}

template <class Real>
CudaBackward<Real> backward_of(Cell cell, const py::dict& d, const Direction& direction,
                               const CudaPlan& plan) {
  CudaBackward<Real> p{};
  static_cast<Sizes&>(p) = direction.sizes;
  p.cell = cell;
  const int64_t G = cell == Cell::gru ? 3 : 4, B = p.B, H = p.H, P = p.P;
  Arrays a(d, p.offsets);
  a.flat(p.w_hh, "w_hh", G * H * P);
  a.flat(p.w_hh_t, "w_hh_t", P * G * H);
  a.flat(p.w_hr_t, "w_hr_t", H * P);
  a.flat(p.h0, "h0", B * P);
  a.flat(p.c0, "c0", B * H);
  a.rows(p.y, "y", P);
  a.rows(p.gates, "gates", G * H);
  a.rows(p.c, "c", H);
  a.rows(p.dy, "dy", P);
  a.flat(p.dhn, "dhn", B * P);
  a.flat(p.dcn, "dcn", B * H);
  a.rows(p.dc, "dc", H);
  p.dq = cell == Cell::gru ? d["dq"].cast<int64_t>() : 0;
  a.rows(p.dgates, "dgates", cell == Cell::gru ? p.dq + H : 4 * H);
  a.rows(p.dh, "dh", P);
  a.rows(p.hidden, "hidden", H);
  a.rows(p.previous, "previous", P);
  a.flat(p.carry_h, "carry_h", B * H);
  a.flat(p.carry_c, "carry_c", B * H);
  a.flat(p.dh0, "dh0", B * P);
  a.flat(p.dc0, "dc0", B * H);
  a.flat(p.packed, "packed", scratch_size(int(G), plan, B, false));
  p.uneven = uneven_of(a, p);
  return p;
}

void check(int error) {
  if (error) throw std::runtime_error(cuda_error_text(error));
}

template <class Real>
void layer_forward(const std::string& cell, const std::vector<py::dict>& directions,
                   const std::string& product, const std::string& tile,
                   const std::vector<int>& persistent) {
  const CudaPlan plan = plan_of(product, tile, persistent);
  const std::vector<Direction> sizes(directions.begin(), directions.end());
  std::vector<CudaForward<Real>> p;
  for (size_t d = 0; d < directions.size(); ++d)
    p.push_back(forward_of<Real>(cell_of(cell), directions[d], sizes[d], plan));
  check(layer_forward_cuda(plan, p.data(), int(p.size()), nullptr));
}

template <class Real>
void layer_backward(const std::string& cell, const std::vector<py::dict>& directions,
                    const std::string& product, const std::string& tile,
                    const std::vector<int>& persistent) {
  const CudaPlan plan = plan_of(product, tile, persistent);
  const std::vector<Direction> sizes(directions.begin(), directions.end());
  std::vector<CudaBackward<Real>> p;
  for (size_t d = 0; d < directions.size(); ++d)
    p.push_back(backward_of<Real>(cell_of(cell), directions[d], sizes[d], plan));
  check(layer_backward_cuda(plan, p.data(), int(p.size()), nullptr));
}

template <class Real>
void stack_forward(const std::string& cell, const std::vector<py::dict>& layers,
                   const std::string& product, const std::vector<int>& persistent,
                   const py::dict& arrays) {
  const CudaPlan plan = plan_of(product, "narrow", persistent);
  const PersistentPlan& walk = plan.persistent_forward;
  const std::vector<Direction> sizes(layers.begin(), layers.end());
  std::vector<CudaForward<Real>> p;
  for (size_t l = 0; l < layers.size(); ++l)
    p.push_back(forward_of<Real>(cell_of(cell), layers[l], sizes[l], plan, 2));
  float* exchange = nullptr;
  const int64_t T = p[0].T, B = p[0].B;
  Arrays(arrays, nullptr)
      .flat(exchange, "exchange",
            stack_exchange_size(walk.units, walk.sequences, int(p.size()), T, B));
  check(stack_forward_cuda(walk, p.data(), int(p.size()), exchange, nullptr));
}

template <class Real>
void cell_forward(const std::string& cell, int64_t B, int64_t H, const py::dict& arrays) {
  CudaCellForward<Real> p{};
  p.cell = cell_of(cell);
  p.B = B;
  p.H = H;
  const int64_t G = p.cell == Cell::gru ? 3 : 4;
  Arrays a(arrays, nullptr);
  a.flat(p.gates_x, "gates_x", B * G * H);
  a.flat(p.gates_h, "gates_h", B * G * H);
  a.flat(p.h, "h", B * H);
  a.flat(p.c, "c", B * H);
  a.flat(p.h_next, "h_next", B * H);
  a.flat(p.c_next, "c_next", B * H);
  a.flat(p.saved, "saved", B * (G + 1) * H);
  check(cell_forward_cuda(p, nullptr));
}

template <class Real>
void cell_backward(const std::string& cell, int64_t B, int64_t H, const py::dict& arrays) {
  CudaCellBackward<Real> p{};
  p.cell = cell_of(cell);
  p.B = B;
  p.H = H;
  const int64_t G = p.cell == Cell::gru ? 3 : 4;
  Arrays a(arrays, nullptr);
  a.flat(p.saved, "saved", B * (G + 1) * H);
  a.flat(p.h, "h", B * H);
  a.flat(p.c, "c", B * H);
  a.flat(p.dh, "dh", B * H);
  a.flat(p.dc, "dc", B * H);
  a.flat(p.dgates_x, "dgates_x", B * G * H);
  a.flat(p.dgates_h, "dgates_h", B * G * H);
  a.flat(p.dh_prev, "dh_prev", B * H);
  a.flat(p.dc_prev, "dc_prev", B * H);
  check(cell_backward_cuda(p, nullptr));
}

template <class Real>
void define(py::module_& m, const char* type) {
  using py::arg;
  const std::string of = std::string("_") + type;
  m.def(("layer_forward" + of).c_str(), &layer_forward<Real>, arg("cell"), arg("directions"),
        arg("product"), arg("tile"), arg("persistent") = std::vector<int>());
  m.def(("layer_backward" + of).c_str(), &layer_backward<Real>, arg("cell"), arg("directions"),
        arg("product"), arg("tile"), arg("persistent") = std::vector<int>());
  if constexpr (!std::is_same_v<Real, double>)
    m.def(("stack_forward" + of).c_str(), &stack_forward<Real>, arg("cell"), arg("layers"),
          arg("product"), arg("persistent"), arg("arrays"));
  m.def(("cell_forward" + of).c_str(), &cell_forward<Real>, arg("cell"), arg("B"), arg("H"),
        arg("arrays"));
  m.def(("cell_backward" + of).c_str(), &cell_backward<Real>, arg("cell"), arg("B"), arg("H"),
        arg("arrays"));
}

Type type_of(const std::string& name) {
  return named<Type>(name, {{"float32", Type::float32},
                            {"float64", Type::float64},
                            {"float16", Type::float16},
                            {"bfloat16", Type::bfloat16}});
}

KernelChoice kernel_choice(const std::string& name) {
  return named<KernelChoice>(name, {{"any", KernelChoice::any},
                                    {"step", KernelChoice::step},
                                    {"persistent", KernelChoice::persistent},
                                    {"grid", KernelChoice::grid},
                                    {"wavefront", KernelChoice::wavefront}});
}

// Each a tuple in the order of Measurement's members.
std::vector<Measurement> measured_of(const py::list& rows) {
  std::vector<Measurement> found;
  for (const py::handle row : rows) {
    const auto at = py::cast<py::tuple>(row);
    const auto number = [&](int k) { return at[size_t(k)].cast<int64_t>(); };
    found.push_back({int(number(0)), int(number(1)), int(number(2)),
                     type_of(at[3].cast<std::string>()), at[4].cast<bool>(), at[5].cast<bool>(),
                     int(number(6)), number(7), number(8), number(9),
                     kernel_choice(at[10].cast<std::string>()), at[11].cast<double>()});
  }
  return found;
}

py::dict plan(int64_t T, int64_t B, int64_t I, int64_t H, int64_t P, int gates, int directions,
              const std::string& type, bool tf32, bool packed, int architecture,
              int multiprocessors, const std::vector<int>& clusters, const std::string& kernels,
              const py::list& measurements) {
  CudaProblem problem{
      T, B, I, H, P, gates, directions, type_of(type), tf32, packed, architecture, multiprocessors,
      {}};
  expect(clusters.empty() || clusters.size() == 4, "clusters must be four numbers");
  std::copy(clusters.begin(), clusters.end(), problem.clusters.fit);
  problem.kernels = kernel_choice(kernels);
  const std::vector<Measurement> measured = measured_of(measurements);
  const CudaPlan plan = plan_cuda_measured(problem, measured);
  const auto list = [](const PersistentPlan& p) {
    return std::vector<int>{p.units, p.cluster, p.sequences};
  };
  return py::dict(
      py::arg("forward") = name_of(plan.forward), py::arg("backward") = name_of(plan.backward),
      py::arg("forward_tile") = name_of(plan.forward_tile),
      py::arg("backward_tile") = name_of(plan.backward_tile), py::arg("projects") = plan.projects,
      py::arg("persistent_forward") = list(plan.persistent_forward),
      py::arg("persistent_backward") = list(plan.persistent_backward),
      py::arg("forward_reason") = name_of(plan.forward_reason),
      py::arg("backward_reason") = name_of(plan.backward_reason));
}

PYBIND11_MODULE(gatedrnn_cuda_kernels, m) {
  using py::arg;
  m.doc() = "gatedrnn's CUDA kernels on NumPy arrays, emulated";
  define<float>(m, "float32");
  define<double>(m, "float64");
  define<Half>(m, "float16");
  define<Bfloat16>(m, "bfloat16");
  m.def("plan", &plan, arg("T"), arg("B"), arg("I"), arg("H"), arg("P"), arg("gates"),
        arg("directions"), arg("type"), arg("tf32"), arg("packed"), arg("architecture"),
        arg("multiprocessors"), arg("clusters") = std::vector<int>(), arg("kernels") = "any",
        arg("measurements") = py::list());
  m.def(
      "scratch_size",
      [](const std::string& product, int gates, const std::vector<int>& persistent, int64_t B,
         bool forward) {
        return scratch_size(gates, plan_of(product, "wide", persistent), B, forward);
      },
      arg("product"), arg("gates"), arg("persistent"), arg("B"), arg("forward"));
  m.def(
      "stack_exchange_size",
      [](const std::vector<int>& persistent, int layers, int64_t T, int64_t B) {
        return stack_exchange_size(persistent[0], persistent[2], layers, T, B);
      },
      arg("persistent"), arg("layers"), arg("T"), arg("B"));
  m.def(
      "plan_stack",
      [](int64_t T, int64_t B, int64_t I, int64_t H, int gates, int layers, const std::string& type,
         bool tf32, int architecture, int multiprocessors, const std::vector<int>& clusters,
         const std::string& kernels, const py::list& measurements) {
        CudaProblem problem{
            T, B, I, H, H, gates, 1, type_of(type), tf32, false, architecture, multiprocessors, {}};
        std::copy(clusters.begin(), clusters.end(), problem.clusters.fit);
        problem.kernels = kernel_choice(kernels);
        const std::vector<Measurement> measured = measured_of(measurements);
        const auto [p, reason] = plan_stack_measured(problem, layers, measured);
        return std::pair(std::vector<int>{p.units, p.cluster, p.sequences}, name_of(reason));
      },
      arg("T"), arg("B"), arg("I"), arg("H"), arg("gates"), arg("layers"), arg("type"), arg("tf32"),
      arg("architecture"), arg("multiprocessors"), arg("clusters") = std::vector<int>(),
      arg("kernels") = "any", arg("measurements") = py::list());
  m.def("launches", &cuda_launches);
  m.def("set_schedule", &cuda_emulator::set_schedule, arg("order"), arg("seed"));
  m.def("set_multiprocessors", &cuda_emulator::set_multiprocessors, arg("count"));
}

}  // namespace
}  // namespace gatedrnn
