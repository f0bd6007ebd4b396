// Products of bfloat16 by the processor's own instruction: to each lane of a sum of floats it adds
// two products, of a pair of neighbouring k, exact before they are added (but numbers below the
// smallest normal one count as 0). So panels hold pairs, and half the instructions and half the
// bytes do what floats take. Included inside the namespace of an instruction set.
//
//              panel [K/2][G][W]
//         k, k+1 |w0 w1|w0 w1| ..     a lane: a unit's two weights
//   m  | a0 a1 | acc[m][g] += a0 * w0 + a1 * w1
#pragma once

inline Vec<float> all(Bfloat16Pair a) {
  return reinterpret_cast<Vec<float>>(Uint32{} + __builtin_bit_cast(uint32_t, a));
}

inline Vec<float> add_dots(Vec<float> sum, Vec<float> a, Vec<float> w) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(w));
}

inline Bfloat16Pair pair_at(const Bfloat16* a) {
  Bfloat16Pair pair;
  __builtin_memcpy(&pair, a, sizeof pair);
  return pair;
}

// As in product.h a sum is cut into blocks. Few sums would wait for each other, as an instruction
// takes 6 cycles: then several blocks are summed side by side, and added up in their order.
constexpr int64_t kPairBlock = kBlock / 2;
template <int sums>
constexpr int kSideBySide = sums <= 4    ? 4
                            : sums <= 12 ? 2
                                         : 1;

// tile.v[to[g]][m] += for `count` blocks of `block` pairs from k0 on, a(m, k) those of row m.
template <int M, int G, int S, int count, class Pair>
static inline void add_blocks(Tile<float>& tile, const int* to, Pair a, int64_t k0, int64_t block,
                              const Bfloat16Pair* panel) {
  constexpr int W = Simd<float>::width;
  Vec<float> acc[count][M][G] = {};
  for (int64_t k = k0; k < k0 + block; ++k)
#pragma GCC unroll 4
    for (int n = 0; n < count; ++n) {
      const Bfloat16Pair* row = panel + (k + n * block) * S * W;
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g)
        if (M > kLoadBound) __builtin_prefetch(row + (kAhead * S + g) * W);
      Vec<float> w[G];
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) __builtin_memcpy(&w[g], row + g * W, sizeof w[g]);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const Vec<float> am = all(a(m, k + n * block));
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) acc[n][m][g] = add_dots(acc[n][m][g], am, w[g]);
      }
    }
#pragma GCC unroll 4
  for (int n = 0; n < count; ++n)
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) tile.v[to[g]][m] += acc[n][m][g];
}

template <int M, int G, int S, class Pair>
static inline void add_pairs(Tile<float>& tile, const int* to, Pair a, int64_t pairs,
                             const Bfloat16Pair* panel) {
  constexpr int count = kSideBySide<M * G>;
  int64_t k = 0;
  for (; k + count * kPairBlock <= pairs; k += count * kPairBlock)
    add_blocks<M, G, S, count>(tile, to, a, k, kPairBlock, panel);
  for (; k < pairs; k += kPairBlock)
    add_blocks<M, G, S, 1>(tile, to, a, k, min_of(kPairBlock, pairs - k), panel);
}

// The overloads of product_rows (product.h): K numbers, of which an odd last one has no partner;
// or K pairs.
template <int M, int G, Layout layout, int S>
static void product_rows(Tile<float>& tile, const int* to, const Bfloat16* a, int64_t lda,
                         int64_t K, const Bfloat16Pair* panel) {
  static_assert(layout == by_row);
  const auto pair = [&](int m, int64_t k) { return pair_at(a + m * lda + 2 * k); };
  const auto last = [&](int m, int64_t k) { return Bfloat16Pair{a[m * lda + 2 * k], {0}}; };
  add_pairs<M, G, S>(tile, to, pair, K / 2, panel);
  if (K % 2) add_blocks<M, G, S, 1>(tile, to, last, K / 2, 1, panel);
}

template <int M, int G, Layout layout, int S>
static void product_rows(Tile<float>& tile, const int* to, const Bfloat16Pair* a, int64_t lda,
                         int64_t K, const Bfloat16Pair* panel) {
  static_assert(layout == transposed);
  add_pairs<M, G, S>(tile, to, [&](int m, int64_t k) { return a[k * lda + m]; }, K, panel);
}

// Lanes of pairs, from numbers that were widened.
inline Vec<float> pairs_of(Vec<float> even, Vec<float> odd) {
  return reinterpret_cast<Vec<float>>(reinterpret_cast<Uint32>(even) >> 16 |
                                      reinterpret_cast<Uint32>(odd));
}

inline void store(Bfloat16Pair* p, Vec<float> pairs) { __builtin_memcpy(p, &pairs, sizeof pairs); }

// pack_rows and pack_columns (pack.h) of pairs, which in a row of w lie side by side already.
static inline void pack_row_pairs(const Bfloat16* w, int64_t K, int G, int64_t units,
                                  int64_t gate_stride, int64_t panel_stride, Bfloat16Pair* panels,
                                  int64_t panel0, int64_t panel1) {
  constexpr int W = Simd<float>::width;
  const int64_t rows = rows_of_panel<Bfloat16Pair>(K);
  const bool gates = panel_stride == W;
  for (int64_t j = panel0; j < panel1; ++j)
    for (int g = 0; g < G; ++g) {
      Bfloat16Pair* panel = panels + (j * rows * G + g) * W;
      const int64_t first = j * panel_stride + g * gate_stride;
      const int64_t left = units - j * panel_stride - (gates ? 0 : g * W);
      for (int64_t k = 0; k < K; k += 2 * W) {
        Vec<float> v[W];
        for (int m = 0; m < W; ++m) {
          v[m] = Vec<float>{};
          if (m < left)
            __builtin_memcpy(&v[m], w + (first + m) * K + k, size_t(2 * min_of(2 * W, K - k)));
        }
        transpose<float>(v);
        for (int m = 0; m < W && k / 2 + m < rows; ++m) store(panel + (k / 2 + m) * G * W, v[m]);
      }
    }
}

// A vector of the pairs of rows that lie one under the other; of an odd number the last has none.
static inline Vec<float> column_pairs(const Bfloat16* even, const Bfloat16* odd, int64_t n) {
  return n > 0 ? pairs_of(load(even, n), odd ? load(odd, n) : Vec<float>{}) : Vec<float>{};
}

static inline void pack_column_pairs(const Bfloat16* w, int64_t K, int64_t N, Bfloat16Pair* panels,
                                     int64_t panel_rows, int64_t panel0, int64_t panel1) {
  constexpr int W = Simd<float>::width, span = 4 * W;
  const int64_t rows = rows_of_panel<Bfloat16Pair>(panel_rows);
  for (int64_t j = panel0; j < panel1; ++j)
    for (int64_t k = 0; k < K; k += 2)
      for (int64_t column = j * span; column < (j + 1) * span; column += W) {
        const Bfloat16* even = w + k * N + column;
        store(panels + (j * rows + k / 2) * span + column % span,
              column_pairs(even, k + 1 < K ? even + N : nullptr, N - column));
      }
}

// An outer sum's factors (gemm.h), both packed; the left one's rows are kSumColumns apart.
static inline void pack_right(const OuterSum<float, Bfloat16, Bfloat16Pair>& p, int64_t k0,
                              int64_t rows, int64_t n0, int64_t n1, Bfloat16Pair* panels) {
  constexpr int W = Simd<float>::width, span = 4 * W;
  for (int64_t k = 0; k < rows; k += 2) {
    const Bfloat16 *even = p.b[k0 + k], *odd = k + 1 < rows ? p.b[k0 + k + 1] : nullptr;
    for (int64_t n = 0; n < panels_of(n1 - n0, span) * span; n += W)
      store(panels + (n / span * kSumChunk / 2 + k / 2) * span + n % span,
            column_pairs(even + n0 + n, odd ? odd + n0 + n : nullptr, n1 - n0 - n));
  }
}

static inline const Bfloat16Pair* left_factor(const OuterSum<float, Bfloat16, Bfloat16Pair>& p,
                                              int64_t k0, int64_t rows, int64_t m0, int64_t m1,
                                              Bfloat16Pair* scratch) {
  constexpr int W = Simd<float>::width;
  for (int64_t k = 0; k < rows; k += 2)
    for (int64_t m = m0; m < m1; m += W) {
      const Bfloat16* even = p.a + (k0 + k) * p.a_row + m;
      store(scratch + k / 2 * kSumColumns + m - m0,
            column_pairs(even, k + 1 < rows ? even + p.a_row : nullptr, m1 - m));
    }
  return scratch;
}
