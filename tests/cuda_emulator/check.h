// What the checks of the kernels share (check_forward.cpp, check_backward.cpp, check_cell.cpp):
// cases, and arrays that know what a kernel has to leave in them. A check is a program:
//
//   check ORDER:SEED ...   every case in each of the emulator's schedules; returns 0, or 1 and says
//                          what is wrong first
//
// Everything that is not an input is NaN before a launch, gaps between rows and both sides of every
// array too, and must be the same bits after it unless it is an output. Oracles are of doubles.
// -DCHECKED=double (float, Half, Bfloat16) is the type under test; with -DPERSISTENT the kernels
// are those of persistent.h; besides, with -DSPLIT the ones whose operands are in two parts, with
// -DLATENCY those of latency.h, with -DGRID those of grid.h, with -DWAVE those of wavefront_loop.h,
// where a case's directions are layers.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "cuda_emulator.h"

#include "../../csrc/cuda/layer.h"
#include "../../csrc/grid.h"

// The linker's --wrap sends every launch here first.
inline int64_t launched_blocks;
extern "C" int __real__ZN13cuda_emulator6launchERKNS_6LaunchE(const cuda_emulator::Launch&);
extern "C" int __wrap__ZN13cuda_emulator6launchERKNS_6LaunchE(const cuda_emulator::Launch& launch) {
  launched_blocks += int64_t(launch.grid.x) * launch.grid.y * launch.grid.z;
  return __real__ZN13cuda_emulator6launchERKNS_6LaunchE(launch);
}

namespace gatedrnn {
namespace cuda {

template <class R>
int persistent_forward(const PersistentPlan&, const CudaForward<R>*, int, void*);
template <class R>
int persistent_backward(const PersistentPlan&, const CudaBackward<R>*, int, void*);
template <class R>
int grid_forward(const PersistentPlan&, const CudaForward<R>*, int, void*);
template <class R>
int grid_backward(const PersistentPlan&, const CudaBackward<R>*, int, void*);
int split_forward(const PersistentPlan&, const CudaForward<float>*, int, void*);
int split_backward(const PersistentPlan&, const CudaBackward<float>*, int, void*);
int latency_forward(const PersistentPlan&, const CudaForward<float>*, int, void*);
int latency_backward(const PersistentPlan&, const CudaBackward<float>*, int, void*);

}  // namespace cuda

#ifdef LATENCY
constexpr bool kLatency = true;
#else
constexpr bool kLatency = false;
#endif
#ifdef WAVE
constexpr bool kWave = true;
#else
constexpr bool kWave = false;
#endif
#if defined(LATENCY)
#define GATEDRNN_WALK(pass) cuda::latency_##pass
#elif defined(SPLIT)
#define GATEDRNN_WALK(pass) cuda::split_##pass
#elif defined(GRID)
#define GATEDRNN_WALK(pass) cuda::grid_##pass
#else
#define GATEDRNN_WALK(pass) cuda::persistent_##pass
#endif

using Real = CHECKED;
using Wide = Types<Real>::Wide;
using Grad = Types<Real>::Grad;

constexpr int64_t kStage = 128 / sizeof(Real), kPart = 16 / sizeof(Real);  // elements
constexpr int64_t kWideBatch = std::is_same_v<Real, double> ? 32 : 64;  // sequences of a wide tile
#ifdef __SANITIZE_ADDRESS__
constexpr int64_t kMargin = 0;  // ASan has its own
#else
constexpr int64_t kMargin = 64;
#endif
#ifdef __SANITIZE_THREAD__
constexpr bool kThreads = true;
#else
constexpr bool kThreads = false;
#endif

inline double number(double x) { return x; }
inline double number(Half x) { return cuda_emulator::half_to_float(x.bits); }
inline double number(Bfloat16 x) { return cuda_emulator::bfloat16_to_float(x.bits); }

template <class T>
T stored(double x) {
  if constexpr (std::is_same_v<T, Half>)
    return {cuda_emulator::float_to_half(float(x))};
  else if constexpr (std::is_same_v<T, Bfloat16>)
    return {cuda_emulator::float_to_bfloat16(float(x))};
  else
    return T(x);
}
template <class T>
double rounded(double x) {
  return number(stored<T>(x));
}

// As a product reads its operands: TF32 and scaled float16 keep ten bits; ties go away from zero,
// or to even.
inline double operand(double x, Product product) {
  if ((product != Product::tf32 && product != Product::half) || x == 0) return x;
  const int low = std::ilogb(x) - 10;
  const double bits = std::ldexp(x, -low);
  return std::ldexp(product == Product::half ? std::nearbyint(bits) : std::round(bits), low);
}

// A difference in the last bit, before an operand is rounded, may be one of the last bit kept.
inline double tolerance(Product product, int64_t T) {
  if (std::is_same_v<Real, Bfloat16>) return 1.5e-2;
  if (std::is_same_v<Real, Half>) return 3e-3;
  if ((product == Product::tf32 || product == Product::half) && T > 1) return 3e-3;
  return std::is_same_v<Real, float> ? 2e-5 : 1e-11;
}

inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// Between -size and size, neither near 0 nor near one another.
class Noise {
 public:
  double operator()(double size) {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    const double x = double(state_ >> 40) / double(1 << 24);
    return size * (x < 0.5 ? -1 + 1.8 * x : 0.1 + 1.8 * (x - 0.5));
  }

 private:
  uint64_t state_ = 1;
};

// Of every fifth row, which kernels scale by its largest number, one number alone is left large: a
// scale that misses it leads beyond float16. `at(row, k)` is where a number lies.
template <class At>
void single_out(int64_t rows, int64_t width, At at) {
  for (int64_t row = 0; row < rows; row += 5)
    for (int64_t k = 0; k < width; ++k)
      if (auto& x = at(row, k); k != (3 * row / 5 + width - 1) % width)
        x = stored<std::remove_reference_t<decltype(x)>>(number(x) / (1 << 17));
}

struct Case {
  Cell cell;
  Tile tile;
  int directions;
  int64_t T, B, H, P;  // P: H where there is no projection
  bool packed, full;   // full: with what may be null
  int64_t padding;     // of rows
  PersistentPlan persistent = {};
  bool projected() const { return P != H; }
  int64_t gates() const { return cell == Cell::gru ? 3 : 4; }
  std::string name() const {
    const auto text = [](const char* name, int64_t x) { return name + std::to_string(x); };
    return std::string(cell == Cell::gru ? "gru" : "lstm") +
           (tile == Tile::wide ? " wide" : " narrow") + text(" D", directions) + text(" T", T) +
           text(" B", B) + text(" H", H) + text(" P", P) + (packed ? " packed" : "") +
           (full ? " full" : "") + text(" padding ", padding) +
           text(" persistent ", persistent.units) + text(" in ", persistent.cluster);
  }
  // Blocks of a launch for all sequences of a step, or of two, that `units` of each are for.
  int64_t blocks(std::initializer_list<int64_t> steps, int64_t units, int64_t units_of_wide) const {
    const bool is_wide = tile == Tile::wide;
    const auto of = offsets();
    int64_t batch = 0;
    for (const int64_t s : steps)
      for (const int64_t t : {s, directions == 2 ? T - 1 - s : s})
        if (s >= 0 && s < T) batch = std::max(batch, of[size_t(t) + 1] - of[size_t(t)]);
    const auto tiles = [](int64_t n, int64_t size) { return n / size + (n % size != 0); };
    return tiles(batch, is_wide ? kWideBatch : 16) * tiles(units, is_wide ? units_of_wide : 16) *
           directions;
  }
  // Of the packing of `rows` of weights, if that is done, and of the walk; upper layers have two
  // matrices, and the grid's exchange is seeded besides.
  int64_t persistent_blocks(int64_t rows, bool forward) const {
    const int64_t clusters = (B + persistent.sequences - 1) / persistent.sequences;
    if (!persistent.grid()) {
      const int64_t packs = kLatency ? 0 : kWave ? 2 * directions - 1 : directions;
      return packs * (rows / 16) + directions * clusters * persistent.cluster;
    }
    const int64_t seeds = (exchange_size(persistent, B, forward) / 4 + 255) / 256;
    return directions * (rows / 16 + seeds + clusters * GridShape::blocks(persistent.units));
  }
  // Active sequences end several at once, none, and all but one.
  std::vector<int64_t> offsets() const {
    std::vector<int64_t> of{0};
    for (int64_t t = 0; t < T; ++t)
      of.push_back(of.back() + (!packed || t == 0 ? B : t + 1 < T ? B - B / 3 : 1));
    return of;
  }
};

// Lays one of a case's arrays, or its rows or steps, one element off.
struct Skew {
  int array = -1, what = 0;
  enum { begin, row, step, dq, kinds };
  static constexpr int kAll = -2;
  int64_t of(int array_, int what_) const {
    return (array == array_ || array == kAll) && what == what_;
  }
};

class Checkable {
 public:
  virtual ~Checkable() = default;
  virtual void reset() = 0;
  virtual void check(double tolerance) const = 0;
};

// Rows of `width`, one a step and active sequence.
template <class T>
class Array : public Checkable {
 public:
  Rows<T> rows;

  Array(const char* name, int64_t steps, const std::vector<int64_t>& offsets, bool packed,
        int64_t width, int64_t padding, bool flat, const Skew& skew, int index)
      : name_(name), steps_(steps), width_(width), offsets_(offsets) {
    rows.row = width + (flat ? 0 : padding + skew.of(index, Skew::row));
    rows.step = flat ? 0 : (active(0) + 1) * rows.row + skew.of(index, Skew::step);
    rows.offsets = packed ? offsets_.data() : nullptr;
    const int64_t begin = kMargin + skew.of(index, Skew::begin);
    size_ = rows.at(steps - 1, active(steps - 1) - 1) - rows.data + width + begin + kMargin;
    memory_.reset(static_cast<T*>(std::malloc(size_t(size_) * sizeof(T))));
    std::memset(memory_.get(), 0xff, size_t(size_) * sizeof(T));
    rows.data = memory_.get() + begin;
    expected_.assign(size_t(size_), kSame);
  }

  void fill(Noise& noise, double size, double centre = 0) {
    visit([&](T& x) { x = stored<T>(centre + noise(size)); });
  }
  void scratch() {
    visit([&](T& x) { expected_[size_t(&x - memory_.get())] = kAny; });
  }
  double operator()(int64_t t, int64_t b, int64_t u) const { return number(rows.at(t, b)[u]); }
  double operator()(int64_t b, int64_t u) const { return (*this)(0, b, u); }
  // Returns the number as it is stored.
  double expect(int64_t t, int64_t b, int64_t u, double x) {
    expected_[size_t(rows.at(t, b) + u - memory_.get())] = x;
    return rounded<T>(x);
  }

  // The first time, what is there is what every launch begins with.
  void reset() override {
    if (initial_.empty()) initial_.assign(memory_.get(), memory_.get() + size_);
    std::memcpy(memory_.get(), initial_.data(), size_t(size_) * sizeof(T));
  }
  void check(double tolerance) const override {
    for (int64_t i = 0; i < size_; ++i) {
      const double wanted = expected_[size_t(i)], is = number(memory_[i]);
      if (wanted == kAny) continue;
      const bool same = !std::memcmp(&memory_[i], &initial_[size_t(i)], sizeof(T));
      if (std::isnan(wanted) ? same : std::abs(is - wanted) <= tolerance * (1 + std::abs(wanted)))
        continue;
      char text[200];
      std::snprintf(text, sizeof text, "%s[%ld] is %g, not %g", name_, long(i), is, wanted);
      throw std::runtime_error(text);
    }
  }

 private:
  static constexpr double kSame = NAN, kAny = INFINITY;
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };

  int64_t active(int64_t t) const { return offsets_[size_t(t) + 1] - offsets_[size_t(t)]; }
  template <class Visit>
  void visit(Visit each) {
    for (int64_t t = 0; t < steps_; ++t)
      for (int64_t b = 0; b < active(t); ++b)
        for (int64_t u = 0; u < width_; ++u) each(rows.at(t, b)[u]);
  }

  const char* name_;
  int64_t steps_, width_, size_;
  const std::vector<int64_t> offsets_;
  std::unique_ptr<T[], Free> memory_;
  std::vector<T> initial_;
  std::vector<double> expected_;
};

// All arrays of a case.
class Arrays {
 public:
  Noise noise;

  Arrays(const Case& of, Skew skew) : case_(of), skew_(skew), offsets_(of.offsets()) {}
  // One row a sequence, or of weights.
  template <class T>
  Array<T>& flat(const char* name, int64_t rows, int64_t width) {
    return add<T>(name, 1, {0, rows}, false, width, true, skew_);
  }
  // What a kernel gets to work with: NaN, but not all ones; never skewed.
  Array<float>& scratch(const char* name, int64_t size) {
    auto& array = add<float>(name, 1, {0, 1}, false, size, true, {});
    array.fill(noise, NAN);
    array.scratch();
    return array;
  }
  // One row a step and sequence; `steps` is 1 where one step's buffer serves all.
  template <class T>
  Array<T>& rows(const char* name, int64_t width, bool every_step = true) {
    if (every_step) return add<T>(name, case_.T, offsets_, case_.packed, width, false, skew_);
    auto& one = add<T>(name, 1, {0, case_.B}, false, width, false, skew_);
    one.rows.step = 0;
    return one;
  }
  void reset() {
    for (auto& array : arrays_) array->reset();
  }
  void check(double tolerance) const {
    for (auto& array : arrays_) array->check(tolerance);
  }
  int count() const { return int(arrays_.size()); }
  const int64_t* offsets() const { return case_.packed ? offsets_.data() : nullptr; }

 private:
  template <class T>
  Array<T>& add(const char* name, int64_t steps, const std::vector<int64_t>& offsets, bool packed,
                int64_t width, bool flat, const Skew& skew) {
    auto array = std::make_unique<Array<T>>(name, steps, offsets, packed, width,
                                            case_.padding * (1 + count() % 5), flat, skew, count());
    auto& result = *array;
    arrays_.push_back(std::move(array));
    return result;
  }

  const Case case_;
  const Skew skew_;
  const std::vector<int64_t> offsets_;
  std::vector<std::unique_ptr<Checkable>> arrays_;
};

// A case laid out: what to launch, and what it has to leave.
struct Prepared {
  Arrays arrays;
  int64_t launches, blocks;
  std::function<int(const CudaPlan&)> launch;
};

inline void run(Prepared& prepared, const Case& of, Product product) {
  prepared.arrays.reset();
  const int64_t before = cuda_launches(), blocks_before = launched_blocks;
  const CudaPlan plan{product, product, of.tile, of.tile, of.persistent, of.persistent, false};
  if (const int error = prepared.launch(plan)) throw std::runtime_error(cuda_error_text(error));
  if (cuda_launches() - before != prepared.launches)
    throw std::runtime_error("the number of launches");
  if (launched_blocks - blocks_before != prepared.blocks)
    throw std::runtime_error("the number of blocks");
  prepared.arrays.check(tolerance(product, of.T));
}

#if defined(LATENCY)
inline std::vector<Product> products(bool) { return {Product::fma}; }
#elif defined(SPLIT)
inline std::vector<Product> products(bool) { return {Product::split}; }
#elif defined(PERSISTENT)
inline std::vector<Product> products(bool) {
  return {std::is_same_v<Real, Bfloat16> ? Product::bfloat16 : Product::half};
}
#else
inline std::vector<Product> products(bool forward) {
  if (std::is_same_v<Real, double>) return {Product::fma};
  if (std::is_same_v<Real, float>) return {Product::fma, Product::tf32};
  if (std::is_same_v<Real, Bfloat16>) return {Product::bfloat16};
  return {forward ? Product::half : Product::tf32};
}
#endif

// Of the shapes that cuda_mutations.py puts into grid.h and persistent.h. The grid's: one tile a
// warp and several, in registers and in shared memory; more of them than are read ahead. The
// clusters': lone blocks and clusters, sums over k shared by one, two and four warps; the
// wavefront's of two layers and three. Of all partial tiles, several tiles, groups and clusters.
inline std::vector<Case> persistent_cases() {
  constexpr Cell gru = Cell::gru, lstm = Cell::lstm;
  constexpr Tile narrow = Tile::narrow;
#if defined(GRID)
  return {
      {gru, narrow, 1, 5, 9, 61, 61, false, true, 1, {64, 0, 8}},
      {gru, narrow, 2, 3, 20, 30, 30, false, true, 2, {32, 0, 16}},
      {gru, narrow, 1, 3, 3, 251, 251, false, true, 2, {256, 0, 8}},
      {gru, narrow, 1, 1, 1, 64, 64, false, false, 0, {64, 0, 24}},
      {lstm, narrow, 2, 3, 17, 34, 34, false, true, 2, {64, 0, 24}},
      {lstm, narrow, 1, 5, 4, 95, 95, false, false, 1, {96, 0, 8}},
      {lstm, narrow, 1, 4, 17, 27, 27, false, true, 3, {32, 0, 16}},
  };
#elif defined(WAVE)
  return {
      {gru, narrow, 2, 7, 19, 61, 61, false, true, 1, {64, 2, 16}},
      {gru, narrow, 3, 4, 9, 50, 50, false, true, 2, {64, 2, 8}},
      {lstm, narrow, 3, 6, 12, 27, 27, false, true, 3, {32, 1, 8}},
      {lstm, narrow, 2, 3, 35, 63, 63, false, true, 1, {64, 2, 32}},
      {lstm, narrow, 4, 2, 3, 32, 32, false, false, 2, {32, 1, 8}},
  };
#elif defined(LATENCY)
  return {
      {gru, narrow, 1, 5, 1, 61, 61, false, true, 1, {64, 1, 1}},
      {gru, narrow, 2, 4, 2, 101, 101, false, true, 2, {128, 4, 1}},
      {gru, narrow, 1, 1, 1, 128, 128, false, false, 0, {128, 4, 1}},
      {gru, narrow, 1, 2, 1, 400, 400, false, true, 0, {512, 16, 1}},
      {lstm, narrow, 2, 3, 2, 50, 50, false, true, 2, {64, 1, 1}},
      {lstm, narrow, 1, 5, 1, 127, 127, false, true, 1, {128, 4, 1}},
      {lstm, narrow, 1, 3, 1, 128, 128, false, false, 0, {128, 4, 1}},
  };
#elif defined(SPLIT)
  return {
      {gru, narrow, 1, 5, 9, 61, 61, false, true, 1, {64, 2, 8}},
      {gru, narrow, 2, 3, 20, 50, 50, false, true, 2, {64, 2, 16}},
      {lstm, narrow, 2, 3, 17, 34, 34, false, true, 2, {64, 4, 32}},
      {lstm, narrow, 1, 4, 17, 27, 27, false, true, 3, {32, 1, 16}},
      {lstm, narrow, 1, 2, 3, 32, 32, false, false, 2, {32, 1, 8}},
  };
#endif
  return {
      {gru, narrow, 1, 5, 9, 61, 61, false, true, 1, {64, 2, 8}},
      {gru, narrow, 2, 3, 20, 50, 50, true, true, 2, {64, 2, 16}},
      {gru, narrow, 1, 4, 19, 101, 101, false, true, 2, {128, 4, 32}},
      {gru, narrow, 1, 1, 1, 64, 64, false, false, 0, {64, 2, 24}},
      {lstm, narrow, 2, 3, 17, 34, 34, true, true, 2, {64, 4, 24}},
      {lstm, narrow, 1, 5, 4, 63, 63, false, false, 1, {64, 4, 8}},
      {lstm, narrow, 1, 4, 17, 27, 27, false, true, 3, {32, 1, 16}},
      {lstm, narrow, 1, 2, 3, 32, 32, false, false, 2, {32, 1, 8}},
  };
}
inline std::vector<Case> persistent_skewed() {
#if defined(GRID)
  return {{Cell::gru, Tile::narrow, 1, 2, 2, 20, 20, false, true, 2, {32, 0, 8}},
          {Cell::lstm, Tile::narrow, 1, 2, 2, 20, 20, false, true, 2, {32, 0, 8}}};
#elif defined(WAVE)
  return {{Cell::gru, Tile::narrow, 2, 2, 2, 20, 20, false, true, 2, {64, 2, 8}},
          {Cell::lstm, Tile::narrow, 2, 2, 2, 20, 20, false, true, 2, {32, 1, 8}}};
#elif defined(LATENCY)
  return {{Cell::gru, Tile::narrow, 1, 2, 1, 20, 20, false, true, 2, {64, 1, 1}},
          {Cell::lstm, Tile::narrow, 1, 2, 1, 20, 20, false, true, 2, {64, 1, 1}}};
#endif
  return {{Cell::gru, Tile::narrow, 1, 2, 2, 20, 20, false, true, 2, {64, 2, 8}},
          {Cell::lstm, Tile::narrow, 1, 2, 2, 20, 20, false, true, 2, {32, 1, 8}}};
}

// The persistent kernels' scratch, of all directions.
inline std::shared_ptr<std::vector<float>> scratch_of(const Case& of, bool forward) {
  const Product product = products(true)[0];
  const CudaPlan plan{product, product, of.tile, of.tile, of.persistent, of.persistent, false};
  const int64_t size = scratch_size(int(of.gates()), plan, of.B, forward);
  return std::make_shared<std::vector<float>>(size_t(of.directions * size), NAN);
}

inline std::shared_ptr<std::vector<int64_t>> places_of(const Case& of) {
  return std::make_shared<std::vector<int64_t>>(size_t(of.T + of.B), int64_t(1) << 60);
}

// Every case in every schedule, and the small one with every array skewed, each in its turn.
template <class Prepare>
int check_all(const std::vector<Case>& cases, const std::vector<Case>& small, Prepare prepare,
              const std::vector<Product>& products, int count, char** schedules) {
  std::string now;
  try {
    struct One {
      const Case& of;
      const Product product;
      std::unique_ptr<Prepared> prepared;
    };
    std::vector<One> all;
    for (const Case& of : cases)
      for (const Product product : products) all.push_back({of, product, prepare(of, {}, product)});
    for (int i = 1; i < count; ++i) {
      const std::string schedule = schedules[i];
      const size_t colon = schedule.find(':');
      cuda_emulator::set_schedule(schedule.substr(0, colon),
                                  std::stoul(schedule.substr(colon + 1)));
      for (One& one : all) {
        now = schedule + " " + one.of.name();
        run(*one.prepared, one.of, one.product);
      }
      if (i > 1 || kThreads) continue;  // alignment is nothing between threads
      for (const Case& of : small)
        for (const Product product : products)
          for (Skew skew{Skew::kAll, 0}; skew.array < prepare(of, {}, product)->arrays.count();
               ++skew.array)
            for (skew.what = 0; skew.what < Skew::kinds; ++skew.what) {
              now = schedule + " skewed " + of.name() + " array " + std::to_string(skew.array);
              run(*prepare(of, skew, product), of, product);
            }
    }
  } catch (const std::exception& error) {
    std::printf("%s: %s\n", now.c_str(), error.what());
    return 1;
  }
  return 0;
}

}  // namespace gatedrnn
