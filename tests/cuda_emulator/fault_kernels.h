// The kernels of faults.cu. Where `right` is true, they have no fault.
#pragma once

// ------------------------------------------------------------------------------------------------
// Races. Each kernel leaves 1, 2, 3, ... in `out` when it is right.

__global__ void no_barrier(float* out, bool right) {
  GATEDRNN_SHARED(float, shared, 96);
  const int i = threadIdx.x;
  shared[(i + 32) % 96] = float(i + 1);
  if (right) __syncthreads();
  out[i] = i < 32 ? shared[i] - 64 : shared[i] + 32;
}

__global__ void no_warp_barrier(float* out, bool right) {
  GATEDRNN_SHARED(float, shared, 32);
  const int i = threadIdx.x;
  shared[31 - i] = float(32 - i);
  if (right) __syncwarp();
  out[i] = shared[i];
}

// The second round's writers overtake the first round's readers.
__global__ void overtaken(float* out, bool right) {
  GATEDRNN_SHARED(float, shared, 64);
  const int i = threadIdx.x;
  shared[63 - i] = float(64 - i);
  __syncthreads();
  out[i] = shared[i];
  if (right) __syncthreads();
  shared[63 - i] = 0;
}

__global__ void no_wait(const float* in, float* out, bool right) {
  GATEDRNN_SHARED(float, shared, 64);
  const int i = threadIdx.x;
  copy_async<4>(shared + i, in + i, 4);
  commit_copies();
  if (right) wait_copies<0>();
  __syncthreads();
  out[i] = shared[i];
  wait_copies<0>();
}

// A wait is for the thread's own copies: others' need a barrier after it.
__global__ void wait_without_barrier(const float* in, float* out, bool right) {
  GATEDRNN_SHARED(float, shared, 64);
  const int i = threadIdx.x;
  copy_async<4>(shared + 63 - i, in + 63 - i, 4);
  commit_copies();
  wait_copies<0>();
  if (right) __syncthreads();
  out[i] = shared[i];
}

// One of three buffers is filled again while others still read it.
__global__ void copy_over_readers(const float* in, float* out, bool right) {
  GATEDRNN_SHARED(float, shared, 64);
  const int i = threadIdx.x;
  shared[i] = float(i + 1);
  __syncthreads();
  if (right) out[i] = shared[63 - i];
  __syncthreads();
  copy_async<4>(shared + i, in + 63 - i, 4);
  commit_copies();
  if (!right) out[i] = shared[63 - i];
  __syncthreads();  // the wait, which performs the copies here, comes when all have read
  wait_copies<0>();
  __syncthreads();
  out[63 - i] = out[63 - i] == float(i + 1) ? float(64 - i) : -1;
}

__global__ void between_blocks(float* out, float* scratch, bool right) {
  const int n = gridDim.x * blockDim.x, i = blockIdx.x * blockDim.x + threadIdx.x;
  scratch[i] = float(i + 1);
  if (right) grid_sync();
  out[i] = scratch[n - 1 - i] + float(2 * i + 1 - n);
}

// A peer may not have begun.
__global__ void before_the_peer(float* out, bool right) {
  GATEDRNN_DYNAMIC_SHARED(shared);
  auto* mine = reinterpret_cast<float*>(shared);
  const int i = threadIdx.x, n = blockDim.x;
  if (right) cluster_sync();
  map_shared_rank(mine, 1 - cluster_rank())[i] = float((1 - cluster_rank()) * n + i + 1);
  cluster_sync();
  out[cluster_rank() * n + i] = mine[i];
}

// A peer may have gone.
__global__ void after_the_peer(float* out, bool right) {
  GATEDRNN_DYNAMIC_SHARED(shared);
  auto* mine = reinterpret_cast<float*>(shared);
  const int i = threadIdx.x, n = blockDim.x;
  mine[i] = float(cluster_rank() * n + i + 1);
  cluster_sync();
  float* peers = map_shared_rank(mine, 1 - cluster_rank());
  peers[i] = peers[i] + float(n);
  if (right) cluster_sync();
  out[cluster_rank() * n + i] = (right ? mine[i] : peers[i]) - float(n);
}

__global__ void block_barrier_in_a_cluster(float* out, bool right) {
  GATEDRNN_SHARED(float, mine, 32);
  const int i = threadIdx.x, n = blockDim.x;
  const unsigned rank = cluster_rank();
  mine[i] = float((1 - rank) * n + i + 1);
  if (right)
    cluster_sync();
  else
    __syncthreads();
  out[rank * n + i] = map_shared_rank(mine, 1 - rank)[i];
  cluster_sync();
}

// The store is waited for by one thread only; the others hear of it by nothing.
__global__ void store_without_wait(float* out, bool right) {
  GATEDRNN_DYNAMIC_SHARED(shared);
  auto* barrier = reinterpret_cast<uint64_t*>(shared);
  auto* mine = reinterpret_cast<float*>(shared + 16);
  const int i = threadIdx.x, n = blockDim.x;
  const unsigned rank = cluster_rank();
  if (i == 0) {
    mbarrier_init(barrier, 1);
    mbarrier_arrive_expect(barrier, 4 * n);
  }
  cluster_sync();
  store_async(mine + n - 1 - i, float((1 - rank) * n + n - i), barrier, 1 - rank);
  if (i == 0 || right) mbarrier_wait(barrier, 0);
  out[rank * n + i] = mine[i];
  cluster_sync();
}

// A store is on its way to where its receiver still reads.
__global__ void store_over_readers(float* out, bool right) {
  GATEDRNN_DYNAMIC_SHARED(shared);
  auto* barrier = reinterpret_cast<uint64_t*>(shared);
  auto* mine = reinterpret_cast<float*>(shared + 16);
  const int i = threadIdx.x, n = blockDim.x;
  const unsigned rank = cluster_rank();
  mine[i] = float(rank * n + i + 1);
  if (i == 0) {
    mbarrier_init(barrier, 1);
    mbarrier_arrive_expect(barrier, 4 * n);
  }
  if (right) out[rank * n + i] = mine[i];
  cluster_sync();
  store_async(mine + i, 0.f, barrier, 1 - rank);
  cluster_sync();
  if (!right) out[rank * n + i] = mine[i];
  mbarrier_wait(barrier, 0);
  cluster_sync();
}

// Two numbers of one access, each with a mark of its own, of which the second is not looked at.
__global__ void one_mark_of_two(uint32_t* passed, float* out, bool right) {
  const int i = threadIdx.x;
  if (blockIdx.x == 0) {
    store_relaxed_pair(passed + 4 * i, 2 * i + 1, 1);
    store_relaxed_pair(passed + 4 * i + 2, 2 * i + 2, 1);
    return;
  }
  uint32_t word[4] = {};
  while (word[1] != 1 || (right && word[3] != 1)) {
    look_again();
    load_relaxed_pairs(word, passed + 4 * i);
  }
  for (int w = 0; w < 2; ++w) out[2 * i + w] = float(word[2 * w]);
}

// One buffer: the second round's numbers overtake those that the other block waits for.
__global__ void overwritten(uint32_t* passed, float* out, bool right) {
  const int i = threadIdx.x;
  uint32_t word[4] = {};
  for (uint32_t round = 1; round <= 2; ++round) {
    uint32_t* at = passed + (right ? round - 1 : 0) * 128 + 4 * i;
    if (blockIdx.x == 0) {
      store_relaxed_pair(at, i, round);
    } else {
      while (word[1] < round) {
        look_again();
        load_relaxed_pairs(word, at);
      }
      out[(round - 1) * 32 + i] = float(word[0] + 32 * (word[1] - 1) + 1);
    }
  }
}

// ------------------------------------------------------------------------------------------------
// Errors.

// The first warp waits for the block, the others for the cluster.
__global__ void different_barriers(bool right) {
  if (right || threadIdx.x < 32) __syncthreads();
  if (right || threadIdx.x >= 32) cluster_sync();
  if (!right) cluster_sync();
}

__global__ void too_few_bytes(bool right) {
  GATEDRNN_SHARED(uint64_t, barrier, 1);
  GATEDRNN_SHARED(float, to, 32);
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, 1);
    mbarrier_arrive_expect(barrier, right ? 128 : 132);
  }
  __syncthreads();
  store_async(to + threadIdx.x, 1.f, barrier, 0);
  mbarrier_wait(barrier, 0);
}

__global__ void different_instructions(bool right) {
  if (right || threadIdx.x < 16)
    __shfl_xor_sync(~0u, 1, 1);
  else
    __ballot_sync(~0u, 1);
}

__global__ void not_in_the_mask(bool right) { __shfl_xor_sync(right ? ~0u : 0xffffu, 1, 1); }

__global__ void source_not_in_the_mask(bool right) {
  if (threadIdx.x < 16) __shfl_xor_sync(0xffffu, 1, right ? 8 : 16);
}

__global__ void half_a_warp(bool right) {
  float c[4] = {};
  const uint32_t a[4] = {}, b[2] = {};
  if (right || threadIdx.x < 16) mma_tf32(c, a, b);
}

__global__ void misaligned_matrix(bool right) {
  GATEDRNN_DYNAMIC_SHARED(shared);
  for (int i = threadIdx.x; i < 1024; i += 32) shared[i] = 0;
  __syncwarp();
  uint32_t r[4];
  load_matrix_x4(r, shared + threadIdx.x * (right ? 16 : 24));
}

__global__ void misaligned_copy(const float* in, bool right) {
  GATEDRNN_DYNAMIC_SHARED(shared);
  copy_async<16>(shared + threadIdx.x * 16, in + (right ? 4 : 1), 16);
  commit_copies();
  wait_copies<0>();
}

__global__ void misaligned_store(bool right) {
  GATEDRNN_DYNAMIC_SHARED(shared);
  auto* barrier = reinterpret_cast<uint64_t*>(shared);
  mbarrier_init(barrier, 1);
  mbarrier_arrive_expect(barrier, 8);
  store_async(reinterpret_cast<float2*>(shared + (right ? 8 : 12)), float2{1, 2}, barrier, 0);
  mbarrier_wait(barrier, 0);
}

__global__ void misaligned_pair(uint32_t* passed, bool right) {
  store_relaxed_pair(passed + (right ? 2 : 1), 1, 1);
}

__global__ void misaligned_vector(float* out, bool right) {
  const auto* in = reinterpret_cast<const float4*>(out + (right ? 0 : 1));
  out[8 + threadIdx.x] = in[threadIdx.x].x;
}

__global__ void copies_at_exit(const float* in, bool right) {
  GATEDRNN_SHARED(float, shared, 32);
  copy_async<4>(shared + threadIdx.x, in + threadIdx.x, 4);
  commit_copies();
  if (right) wait_copies<0>();
}

__global__ void no_such_block(bool right) {
  GATEDRNN_DYNAMIC_SHARED(shared);
  map_shared_rank(shared, right ? 0 : 1);
}

__global__ void not_shared(float* out, bool right) {
  GATEDRNN_DYNAMIC_SHARED(shared);
  map_shared_rank(right ? reinterpret_cast<float*>(shared) : out, 0);
}

__global__ void barrier_not_initialized(bool right) {
  GATEDRNN_SHARED(uint64_t, barrier, 1);
  if (right && threadIdx.x == 0) mbarrier_init(barrier, 32);
  __syncthreads();
  mbarrier_arrive(barrier);
}

// Threads that do not wait for the phase arrive a second time in it.
__global__ void too_many_arrivals(bool right) {
  GATEDRNN_SHARED(uint64_t, barrier, 1);
  if (threadIdx.x == 0) mbarrier_init(barrier, 34);
  __syncthreads();
  mbarrier_arrive(barrier);
  if (!right) mbarrier_arrive_expect(barrier, 4);
}

__global__ void not_cooperative(bool) { grid_sync(); }

__global__ void waits_in_vain(int* flag, bool right) {
  if (threadIdx.x == 1 && right) atomicExch(flag, 1);
  if (threadIdx.x == 0)
    while (atomicAdd(flag, 0) == 0) __nanosleep(20);
}

__global__ void trap(bool right) {
  if (!right && threadIdx.x == 5) __trap();
}

// ------------------------------------------------------------------------------------------------
// What AddressSanitizer must see.

__global__ void beyond_dynamic(bool right) {
  GATEDRNN_DYNAMIC_SHARED(shared);
  shared[threadIdx.x + (right ? 0 : 1)] = 1;
}

__global__ void beyond_static(bool right) {
  GATEDRNN_SHARED(unsigned char, shared, 32);
  unsigned char* p = shared;
  p[threadIdx.x + (right ? 0 : 1)] = 1;
}

__global__ void beyond_global(float* out, bool right) { out[threadIdx.x + (right ? 32 : 33)] += 1; }

__global__ void copy_from_beyond(const float* in, bool right) {
  GATEDRNN_DYNAMIC_SHARED(shared);
  copy_async<16>(shared + threadIdx.x * 16, in + 4 * threadIdx.x,
                 threadIdx.x < 16 || !right ? 16 : 0);
  commit_copies();
  wait_copies<0>();
}

__global__ void matrix_from_beyond(bool right) {
  GATEDRNN_DYNAMIC_SHARED(shared);
  for (int i = threadIdx.x; i < 512; i += 32) shared[i] = 0;
  __syncwarp();
  uint32_t r[4];
  load_matrix_x4(r, shared + (threadIdx.x + (right ? 0 : 1)) * 16);
}

__global__ void read_after_exit(float* out, bool right) {
  GATEDRNN_DYNAMIC_SHARED(shared);
  auto* mine = reinterpret_cast<float*>(shared);
  mine[threadIdx.x] = 1;
  cluster_sync();
  if (cluster_rank() == 0) {
    for (int i = 0; i < 100 && !right; ++i) __nanosleep(20);
    out[threadIdx.x] = map_shared_rank(mine, 1)[threadIdx.x];
  }
  if (right) cluster_sync();
}

__global__ void note(int* order, int* next) {
  order[atomicAdd(next, 1)] = blockIdx.x * blockDim.x + threadIdx.x;
}
