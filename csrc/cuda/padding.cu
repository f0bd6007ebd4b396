// Zeros beyond the ends of padded sequences, for whoever reads whole rows of steps.
#include "launch.h"
#include "layer.h"

namespace gatedrnn {
namespace cuda {
namespace {

constexpr int kPaddingThreads = 256;

template <class Word>
struct Padding {
  Word* rows;      // (T, B, width)
  int64_t B, all;  // all: T * B
  int64_t width;
  const int64_t* lengths;  // [B]
};

// A warp for each row.
template <class Word>
__global__ void __launch_bounds__(kPaddingThreads)
    zero_padding_kernel(const __grid_constant__ Padding<Word> p) {
  const int64_t row = int64_t(blockIdx.x) * (kPaddingThreads / 32) + threadIdx.x / 32;
  if (row >= p.all || row / p.B < max(int64_t(1), p.lengths[row % p.B])) return;
  for (int64_t i = threadIdx.x % 32; i < p.width; i += 32) p.rows[row * p.width + i] = 0;
}

template <class Word>
int zero_padding(void* rows, int64_t bytes, int64_t T, int64_t B, const int64_t* lengths,
                 void* stream) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(unsigned((T * B + kPaddingThreads / 32 - 1) / (kPaddingThreads / 32)));
  config.blockDim = dim3(kPaddingThreads);
  config.stream = static_cast<cudaStream_t>(stream);
  launches.fetch_add(1, std::memory_order_relaxed);
  const Padding<Word> padding = {static_cast<Word*>(rows), B, T * B, bytes / int64_t(sizeof(Word)),
                                 lengths};
  return cudaLaunchKernelEx(&config, zero_padding_kernel<Word>, padding);
}

}  // namespace
}  // namespace cuda

int zero_padding_cuda(void* rows, int64_t bytes, int64_t T, int64_t B, const int64_t* lengths,
                      void* stream) {
  return bytes % 4 ? cuda::zero_padding<uint16_t>(rows, bytes, T, B, lengths, stream)
                   : cuda::zero_padding<uint32_t>(rows, bytes, T, B, lengths, stream);
}

}  // namespace gatedrnn
