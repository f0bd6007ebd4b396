// The part of conformance.cu on threads that meet: barriers, warps, grids, clusters.
#pragma once

__global__ void indices(unsigned* out) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
  // A warp is 32 threads in this order.
  const unsigned ninth = __shfl_sync(~0u, thread, 8);
  out[block * threads + thread] += block * threads + thread + 1 + 10000 * (ninth - 8);
}

bool check_indices() {
  Array<unsigned> out(2 * 3 * 4 * 32);
  bool good = run({.grid = dim3(2, 3, 4), .block = dim3(4, 2, 4)}, indices, out.data);
  for (int i = 0; i < out.size; ++i) good &= out[i] == unsigned(i) + 1;
  return good;
}

// Rounds of reading what another warp wrote, and a warp's own transposition in between. Some
// threads leave before the last barriers: nobody waits for them.
__global__ void exchange(int* out, int rounds) {
  GATEDRNN_SHARED(int, all, 96);
  GATEDRNN_SHARED(int, mine, 96);
  const int i = threadIdx.x, lane = i % 32;
  int value = i;
  for (int round = 0; round < rounds; ++round) {
    all[i] = value;
    __syncthreads();
    value = all[(i + 33) % 96] + 1;
    __syncthreads();
    mine[i] = value;
    __syncwarp();
    value = mine[i - lane + (lane + 1) % 32];
    __syncwarp();
  }
  out[i] = value;
  if (i >= 40) return;
  __syncwarp();
  __syncthreads();
  out[i] += 1000;
}

bool check_barriers() {
  constexpr int rounds = 5;
  Array<int> out(96);
  int value[96], next[96];
  for (int i = 0; i < 96; ++i) value[i] = i;
  for (int round = 0; round < rounds; ++round) {
    for (int i = 0; i < 96; ++i) next[i] = value[(i + 33) % 96] + 1;
    for (int i = 0; i < 96; ++i) value[i] = next[i - i % 32 + (i + 1) % 32];
  }
  bool good = run({.block = dim3(96)}, exchange, out.data, rounds);
  for (int i = 0; i < 96; ++i) good &= out[i] == value[i] + (i < 40 ? 1000 : 0);
  return good;
}

// Groups of two warps, each with a number of rounds of its own: in every one a thread reads what
// the other warp has just written. Threads of the fifth warp meet nobody.
__global__ void groups(int* out) {
  GATEDRNN_SHARED(int, all, 2 * 128);
  const int i = threadIdx.x, group = i / 64;
  if (group == 2) return;
  int value = i;
  for (int round = 0; round < 3 + 2 * group; ++round) {
    int* turn = all + round % 2 * 128 + 64 * group;
    turn[i % 64] = value;
    group_sync(group, 64);
    value = turn[(i + 33) % 64] + 1;
  }
  out[i] = value;
}

bool check_groups() {
  Array<int> out(128);
  bool good = run({.block = dim3(160)}, groups, out.data);
  for (int i = 0; i < 128; ++i) {
    const int group = i / 64, rounds = 3 + 2 * group;
    good &= out[i] == 64 * group + (i % 64 + 33 * rounds) % 64 + rounds;
  }
  return good;
}

__global__ void shuffles(int* out) {
  const int lane = threadIdx.x;
  int* mine = out + lane * 9;
  mine[0] = __shfl_sync(~0u, 100 + lane, (lane * 7 + 3) % 32);
  mine[1] = __shfl_sync(~0u, 100 + lane, 2, 8);
  mine[2] = __shfl_xor_sync(~0u, 100 + lane, 5);
  mine[3] = __shfl_down_sync(~0u, 100 + lane, 3);
  mine[4] = __shfl_up_sync(~0u, 100 + lane, 3, 16);
  mine[5] = int(__shfl_xor_sync(~0u, 0.5 + lane, 16) * 2);
  // Two halves, each on its own.
  const unsigned half = lane < 16 ? 0xffffu : 0xffff0000u;
  if (lane < 16)
    mine[6] = __shfl_xor_sync(half, 100 + lane, 1);
  else
    mine[6] = __shfl_xor_sync(half, 200 + lane, 2);
  mine[8] = __shfl_xor_sync(~0u, 100 + lane, 8, 8);
  mine[7] = int(__uint_as_float(__shfl_down_sync(~0u, __float_as_uint(float(lane)), 8u, 16)));
}

bool check_shuffles() {
  Array<int> out(32 * 9);
  bool good = run({}, shuffles, out.data);
  for (int lane = 0; lane < 32; ++lane) {
    const int want[] = {100 + (lane * 7 + 3) % 32,
                        100 + lane / 8 * 8 + 2,
                        100 + (lane ^ 5),
                        100 + (lane + 3 < 32 ? lane + 3 : lane),
                        100 + (lane % 16 >= 3 ? lane - 3 : lane),
                        (lane ^ 16) * 2 + 1,
                        lane < 16 ? 100 + (lane ^ 1) : 200 + (lane ^ 2),
                        lane % 16 < 8 ? lane + 8 : lane,
                        100 + (lane & 8 ? lane - 8 : lane)};  // a later group's is not to be had
    good &= std::memcmp(want, &out[lane * 9], sizeof want) == 0;
  }
  return good;
}

__global__ void votes(unsigned* out) {
  const int lane = threadIdx.x;
  const unsigned odd = 0xaaaaaaaau, mask = lane % 2 ? odd : ~odd;
  out[lane] = __ballot_sync(~0u, lane % 3 == 0);
  out[32 + lane] = __ballot_sync(mask, lane % 3 == 0);
  out[64 + lane] = __any_sync(~0u, lane == 9) + 2 * __all_sync(~0u, lane < 31) +
                   4 * __any_sync(~0u, lane == 32) + 8 * __all_sync(~0u, lane < 32);
}

bool check_votes() {
  Array<unsigned> out(96);
  bool good = run({}, votes, out.data);
  unsigned thirds = 0;
  for (int lane = 0; lane < 32; lane += 3) thirds |= 1u << lane;
  for (int lane = 0; lane < 32; ++lane) {
    good &= out[lane] == thirds;
    good &= out[32 + lane] == (thirds & (lane % 2 ? 0xaaaaaaaau : 0x55555555u));
    good &= out[64 + lane] == 1 + 8;
  }
  return good;
}

__global__ void counts(int* out, float* sums) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  atomicAdd(out, 1);
  atomicMax(out + 1, i);
  atomicAdd(sums, 0.5f);
  atomicCAS(out + 2 + i % 2, 0, 7);
  atomicExch(out + 4, 9);
}

bool check_atomics() {
  Array<int> out(5);
  Array<float> sums(1);
  const bool good = run({.grid = dim3(3), .block = dim3(50)}, counts, out.data, sums.data);
  return good && out[0] == 150 && out[1] == 149 && sums[0] == 75 && out[2] == 7 && out[3] == 7 &&
         out[4] == 9;
}

__global__ void around_the_grid(int* buffers, int rounds) {
  const int n = gridDim.x * blockDim.x, i = blockIdx.x * blockDim.x + threadIdx.x;
  for (int round = 0; round < rounds; ++round) {
    buffers[(round + 1) % 2 * n + i] = buffers[round % 2 * n + (i + 1) % n] + 1;
    grid_sync();
  }
}

bool check_grid() {
  constexpr int blocks = 4, threads = 48, n = blocks * threads, rounds = 60;
  Array<int> buffers(2 * n);
  for (int i = 0; i < n; ++i) buffers[i] = i;
  bool good = run({.grid = dim3(blocks), .block = dim3(threads), .cooperative = true},
                  around_the_grid, buffers.data, rounds);
  for (int i = 0; i < n; ++i) good &= buffers[i] == (i + rounds) % n + rounds;
  return good;
}

// Two clusters of four. Every block writes into each peer's dynamic and static shared memory.
__global__ void clusters(int* out) {
  GATEDRNN_DYNAMIC_SHARED(shared);
  GATEDRNN_SHARED(int, own, 32);
  if constexpr (kHasClusters) {
    auto* from = reinterpret_cast<int*>(shared);
    const unsigned rank = cluster_rank(), size = cluster_size(), i = threadIdx.x;
    own[i] = int(1000 * blockIdx.x + i);
    cluster_sync();
    for (unsigned peer = 0; peer < size; ++peer)
      if (i == peer) map_shared_rank(from, peer)[rank] = int(100 * blockIdx.x + peer);
    cluster_arrive();
    const int neighbour = map_shared_rank(own, (rank + 1) % size)[31 - i];
    cluster_wait();
    out[blockIdx.x * 64 + i] = i < size ? from[i] : int(10 * rank + size);
    out[blockIdx.x * 64 + 32 + i] = neighbour;
    cluster_sync();  // nobody leaves while a peer reads
  }
}

bool check_clusters() {
  Array<int> out(8 * 64);
  bool good = run({.grid = dim3(8), .cluster = 4, .shared = 16}, clusters, out.data);
  for (int block = 0; block < 8; ++block) {
    const int first = block / 4 * 4, rank = block % 4;
    for (int i = 0; i < 32; ++i) {
      good &= out[block * 64 + i] == (i < 4 ? 100 * (first + i) + rank : 10 * rank + 4);
      good &= out[block * 64 + 32 + i] == 1000 * (first + (rank + 1) % 4) + 31 - i;
    }
  }
  return good;
}

// One warp fills a buffer and another one empties it, in turn; block 1's consumer tells block 0's
// producer across the cluster.
__global__ void turns(int* out, int rounds) {
  GATEDRNN_DYNAMIC_SHARED(shared);
  if constexpr (kHasClusters) {
    auto* full = reinterpret_cast<uint64_t*>(shared);
    uint64_t* empty = full + 1;
    auto* buffer = reinterpret_cast<int*>(full + 2);
    const unsigned rank = cluster_rank(), lane = threadIdx.x % 32;
    if (threadIdx.x == 0) {
      mbarrier_init(full, 32);
      mbarrier_init(empty, 64);
    }
    cluster_sync();
    if (threadIdx.x < 32) {
      for (int round = 0; round < rounds; ++round) {
        if (round > 0) mbarrier_wait(empty, (round - 1) % 2);
        buffer[lane] = int(1000 * rank + 32 * round + lane);
        mbarrier_arrive(full);
      }
    } else {
      for (int round = 0; round < rounds; ++round) {
        mbarrier_wait(full, round % 2);
        out[(rank * rounds + round) * 32 + lane] = buffer[31 - lane];
        mbarrier_arrive(empty);
        mbarrier_arrive_peer(empty, 1 - rank);
      }
    }
    cluster_sync();
  }
}

bool check_mbarrier() {
  constexpr int rounds = 7;
  Array<int> out(2 * rounds * 32);
  bool good = run({.grid = dim3(2), .block = dim3(64), .cluster = 2, .shared = 144}, turns,
                  out.data, rounds);
  for (int rank = 0; rank < 2; ++rank)
    for (int round = 0; round < rounds; ++round)
      for (int lane = 0; lane < 32; ++lane)
        good &= out[(rank * rounds + round) * 32 + lane] == 1000 * rank + 32 * round + 31 - lane;
  return good;
}

// Each thread passes its value on to the next block, round by round, with nothing but the
// receiver's barriers: two buffers, and a barrier for each.
template <class T>
__global__ void ring(float* out, int rounds) {
  GATEDRNN_DYNAMIC_SHARED(shared);
  if constexpr (kHasClusters) {
    auto* barriers = reinterpret_cast<uint64_t*>(shared);
    auto* buffers = reinterpret_cast<T*>(shared + 16);
    constexpr int width = sizeof(T) / 4;
    const unsigned rank = cluster_rank(), size = cluster_size(), i = threadIdx.x;
    if (i == 0)
      for (int b = 0; b < 2; ++b) {
        mbarrier_init(barriers + b, 1);
        mbarrier_arrive_expect(barriers + b, 32 * sizeof(T));
      }
    cluster_sync();
    T value;
    auto* words = reinterpret_cast<float*>(&value);
    for (int w = 0; w < width; ++w) words[w] = float(rank * 1000 + i * width + w);
    for (int round = 0; round < rounds; ++round) {
      const int b = round % 2;
      store_async(buffers + b * 32 + i, value, barriers + b, (rank + 1) % size);
      mbarrier_wait(barriers + b, round / 2 % 2);
      if (i == 0) mbarrier_arrive_expect(barriers + b, 32 * sizeof(T));
      value = buffers[b * 32 + (i + 1) % 32];
      cluster_sync();  // the barrier expects again, and all have read, before the next stores
    }
    for (int w = 0; w < width; ++w) out[(rank * 32 + i) * width + w] = words[w];
  }
}

template <class T>
bool check_stores() {
  constexpr int size = 4, width = sizeof(T) / 4, rounds = 6;
  Array<float> out(size * 32 * width);
  bool good = run({.grid = dim3(size), .cluster = size, .shared = 16 + 64 * sizeof(T)}, ring<T>,
                  out.data, rounds);
  for (int rank = 0; rank < size; ++rank)
    for (int i = 0; i < 32 * width; ++i) {
      const int origin = (rank + 2 * size - rounds) % size;
      const int from = (i / width + rounds) % 32 * width + i % width;
      good &= out[rank * 32 * width + i] == float(origin * 1000 + from);
    }
  return good;
}

// Two blocks exchange numbers, each with the round's mark, in two buffers; what a thread gets it
// gives back in the next round. 32 bits come with 32 bits of mark, or have it in their last one.
template <bool kPairs>
__global__ void pass_on(uint32_t* buffers, uint32_t* out, int rounds) {
  const int blocks = gridDim.x, i = blockIdx.x * blockDim.x + threadIdx.x;
  const int before = (blockIdx.x + blocks - 1) % blocks * blockDim.x + threadIdx.x;
  uint32_t word[4] = {uint32_t(8 * i), 0, uint32_t(8 * i + 2), 0};
  if (!kPairs) word[1] = 8 * i + 4, word[3] = 8 * i + 6;
  for (int round = 0; round < rounds; ++round) {
    uint32_t* to = buffers + 4 * (round % 2 * blocks * blockDim.x + i);
    const uint32_t* from = buffers + 4 * (round % 2 * blocks * blockDim.x + before);
    const uint32_t mark = kPairs ? round + 1 : (round / 2 + 1) % 2;
    if (kPairs) {
      store_relaxed_pair(to, word[0], mark);
      store_relaxed_pair(to + 2, word[2], mark);
    } else {
      for (uint32_t& w : word) w = (w & ~1u) | mark;
      store_relaxed_words(to, word);
    }
    bool stale = true;
    while (stale) {
      if (kPairs)
        load_relaxed_pairs(word, from);
      else
        load_relaxed_words(word, from);
      stale = false;
      for (int w = 0; w < 4; ++w)
        stale |= kPairs ? w % 2 && word[w] != mark : (word[w] & 1) != mark;
      if (stale) look_again();
    }
  }
  for (int w = 0; w < 4; ++w) out[4 * i + w] = word[w];
}

// One block gives words one by one, the other waits for four at a time; all ones are no word yet.
__global__ void give_words(uint32_t* passed, uint32_t* out) {
  const int i = threadIdx.x;
  if (blockIdx.x == 0) {
    for (int w = 0; w < 4; ++w) store_relaxed_word(passed + 4 * i + w, uint32_t(4 * i + w));
    return;
  }
  uint32_t word[4] = {~0u, ~0u, ~0u, ~0u};
  while (word[0] == ~0u || word[1] == ~0u || word[2] == ~0u || word[3] == ~0u) {
    look_again();
    load_relaxed_words(word, passed + 4 * i);
  }
  for (int w = 0; w < 4; ++w) out[4 * i + w] = word[w];
}

bool check_words() {
  Array<uint32_t> passed(4 * 32), out(4 * 32);
  std::fill_n(passed.data, passed.size, ~0u);
  bool good = run({.grid = dim3(2), .cooperative = true}, give_words, passed.data, out.data);
  for (int i = 0; i < out.size; ++i) good &= out[i] == uint32_t(i);
  return good;
}

template <bool kPairs>
bool check_relaxed() {
  constexpr int blocks = 2, n = 32 * blocks, rounds = 5;
  Array<uint32_t> buffers(2 * 4 * n), out(4 * n);
  bool good = run({.grid = dim3(blocks), .cooperative = true}, pass_on<kPairs>, buffers.data,
                  out.data, rounds);
  for (int i = 0; i < n; ++i) {
    const uint32_t from = 8 * uint32_t((i + n - rounds % blocks * 32) % n), mark = 1;
    for (uint32_t w = 0; w < 4; ++w)
      good &= out[4 * i + int(w)] ==
              (kPairs ? w % 2 ? uint32_t(rounds) : from + w : from + w % 2 * 4 + w / 2 * 2 + mark);
  }
  return good;
}
