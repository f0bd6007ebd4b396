// What a warp's tensor-core instructions compute, and the 16-bit formats. Included by
// cuda_emulator.cpp only.
#pragma once

#include "block.h"

namespace cuda_emulator {

namespace {

// Without branches, so that the compiler may convert several at a time.
inline uint32_t pick(bool first, uint32_t a, uint32_t b) {
  return b ^ ((a ^ b) & -uint32_t(first));
}

inline float widen(uint32_t half) {
  const uint32_t sign = (half & 0x8000) << 16, rest = half & 0x7fff;
  const uint32_t normal = (rest << 13) + 0x38000000;  // the exponents' offsets differ by 112
  const uint32_t special = rest << 13 | 0x7f800000;
  // A subnormal half is what is left of 2^-14 (1 + its fraction), which floats hold exactly.
  const float fraction = std::bit_cast<float>(normal + 0x00800000) - 0x1p-14f;
  const uint32_t small = pick(rest < 0x400, std::bit_cast<uint32_t>(fraction), normal);
  return std::bit_cast<float>(sign | pick(rest >= 0x7c00, special, small));
}

}  // namespace

float half_to_float(uint16_t bits) { return widen(bits); }

uint16_t float_to_half(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x), sign = bits >> 16 & 0x8000;
  const uint32_t rest = bits & 0x7fffffff;
  if (rest > 0x7f800000) return 0x7fff;          // the NaN that CUDA gives
  if (rest >= 0x47800000) return sign | 0x7c00;  // from 65520 on the rounding below does it
  if (rest < 0x38800000) {  // below 2^-14: adding 0.5 leaves a sum whose last bit is 2^-24
    const float sum = std::bit_cast<float>(rest) + 0.5f;
    return sign | uint16_t(std::bit_cast<uint32_t>(sum) - 0x3f000000);
  }
  const uint32_t even = rest >> 13 & 1;
  return sign | uint16_t((rest - 0x38000000 + 0xfff + even) >> 13);
}

float bfloat16_to_float(uint16_t bits) { return std::bit_cast<float>(uint32_t(bits) << 16); }

uint16_t float_to_bfloat16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

namespace {

struct Product {
  float* c;
  const uint32_t* a;
  const uint32_t* b;
};

struct Tf32 {
  static constexpr int count = 1;  // elements of a register
  // The hardware reads the first 19 bits.
  static float get(uint32_t word, int) { return std::bit_cast<float>(word & 0xffffe000); }
};
struct HalfPair {
  static constexpr int count = 2;
  static float get(uint32_t word, int i) { return widen(word >> 16 * i); }
};
struct Bfloat16Pair {
  static constexpr int count = 2;
  static float get(uint32_t word, int i) { return bfloat16_to_float(uint16_t(word >> 16 * i)); }
};

// c (16 x 8) += a (16 x K) b (K x 8). Lane 4 g + t holds rows g and g + 8 of a and c, column g of
// b; along K (and c's columns) the elements are dealt to t by the word. The loops over 8 and 16 are
// the compiler's to vectorize: most of what the emulator does, it does here.
template <class Format, int K>
void multiply(Lanes lanes, const char* name) {
  using Quad = float __attribute__((vector_size(16), may_alias));
  constexpr int count = Format::count, words = K / count;
  uint32_t a_words[words][16], b_words[words][8];
  for (int lane = 0; lane < 32; ++lane) {
    if (!lanes[lane]) fail(std::string(name) + ": not all 32 lanes take part");
    const auto& mine = *static_cast<const Product*>(lanes[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int group = 0; group < words / 4; ++group) {
      a_words[group * 4 + t][g] = mine.a[2 * group];
      a_words[group * 4 + t][g + 8] = mine.a[2 * group + 1];
      b_words[group * 4 + t][g] = mine.b[group];
    }
  }
  float a[K][16];
  alignas(Quad) float b[K][8], c[16][8];
  for (int word = 0; word < words; ++word)
    for (int i = 0; i < count; ++i) {
      for (int m = 0; m < 16; ++m) a[word * count + i][m] = Format::get(a_words[word][m], i);
      for (int n = 0; n < 8; ++n) b[word * count + i][n] = Format::get(b_words[word][n], i);
    }
  for (int m = 0; m < 16; ++m) {
    Quad left = {}, right = {};
    for (int k = 0; k < K; ++k) {
      left += a[k][m] * *reinterpret_cast<const Quad*>(b[k]);
      right += a[k][m] * *reinterpret_cast<const Quad*>(b[k] + 4);
    }
    *reinterpret_cast<Quad*>(c[m]) = left;
    *reinterpret_cast<Quad*>(c[m] + 4) = right;
  }
  for (int lane = 0; lane < 32; ++lane) {
    float* mine = static_cast<const Product*>(lanes[lane])->c;
    const float* sums = c[lane / 4] + lane % 4 * 2;
    mine[0] += sums[0];
    mine[1] += sums[1];
    mine[2] += sums[8 * 8];
    mine[3] += sums[8 * 8 + 1];
  }
}

struct MatrixRow {
  uint32_t* r;
  const unsigned char* row;
};

void load_matrices(Lanes lanes, const char* name) {
  for (void* lane : lanes)
    if (!lane) fail(std::string(name) + ": not all 32 lanes take part");
  for (int lane = 0; lane < 32; ++lane)
    for (int j = 0; j < 4; ++j) {
      const unsigned char* row = static_cast<const MatrixRow*>(lanes[8 * j + lane / 4])->row;
      std::memcpy(static_cast<const MatrixRow*>(lanes[lane])->r + j, row + lane % 4 * 4, 4);
    }
}

}  // namespace

namespace device {

uint32_t to_tf32(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const bool finite = (bits & 0x7f800000) != 0x7f800000;
  return (finite ? bits + 0x1000 : bits | (bits & 0x1fff ? 0x400000 : 0)) & 0xffffe000;
}

void mma_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  Product mine{c, a, b};
  collective(~0u, "mma m16n8k8 tf32", &mine, multiply<Tf32, 8>);
}

void mma_half_k8(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
  const uint32_t a[] = {a0, a1};
  Product mine{c, a, &b0};
  collective(~0u, "mma m16n8k8 f16", &mine, multiply<HalfPair, 8>);
}

void mma_half_k16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  Product mine{c, a, b};
  collective(~0u, "mma m16n8k16 f16", &mine, multiply<HalfPair, 16>);
}

void mma_bfloat16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  Product mine{c, a, b};
  collective(~0u, "mma m16n8k16 bf16", &mine, multiply<Bfloat16Pair, 16>);
}

void load_matrix_x4(uint32_t (&r)[4], const void* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16) fail("ldmatrix: the row's address is misaligned");
  tsan_read(row, 16);
  MatrixRow mine{r, static_cast<const unsigned char*>(row)};
  collective(~0u, "ldmatrix", &mine, load_matrices);
}

}  // namespace device
}  // namespace cuda_emulator
