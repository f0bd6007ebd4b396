#include "blocks.h"

#include <sys/mman.h>

#include <algorithm>
#include <list>
#include <mutex>

namespace gatedrnn {

namespace {

#ifdef MADV_FREE
constexpr int kFree = MADV_FREE;
#else
constexpr int kFree = MADV_DONTNEED;
#endif

struct Block {
  void* data;
  int64_t bytes;
};

class Blocks {
 public:
  void* take(int64_t bytes) {
    const std::lock_guard lock(mutex_);
    auto best = idle_.end();
    for (auto it = idle_.begin(); it != idle_.end(); ++it)
      if (it->bytes >= bytes && it->bytes / 2 <= bytes &&
          (best == idle_.end() || it->bytes < best->bytes))
        best = it;
    if (best != idle_.end()) {
      idle_bytes_ -= best->bytes;
      used_.splice(used_.end(), idle_, best);
    } else {
      shrink(std::max<int64_t>(0, most_ - used_bytes_ - bytes));
      void* data =
          mmap(nullptr, size_t(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (data == MAP_FAILED) return nullptr;
      used_.push_back({data, bytes});
    }
    used_bytes_ += used_.back().bytes;
    most_ = std::max(most_, used_bytes_);
    return used_.back().data;
  }

  void give_back(void* data) {
    const std::lock_guard lock(mutex_);
    const auto block =
        std::find_if(used_.begin(), used_.end(), [&](const Block& b) { return b.data == data; });
    used_bytes_ -= block->bytes;
    idle_bytes_ += block->bytes;
    idle_.splice(idle_.end(), used_, block);
    if (madvise(data, size_t(block->bytes), kFree) != 0) shrink(0);
  }

  void release() {
    const std::lock_guard lock(mutex_);
    shrink(0);
    most_ = used_bytes_;
  }

 private:
  // The oldest go first.
  void shrink(int64_t bytes) {
    while (idle_bytes_ > bytes) {
      munmap(idle_.front().data, size_t(idle_.front().bytes));
      idle_bytes_ -= idle_.front().bytes;
      idle_.pop_front();
    }
  }

  std::mutex mutex_;
  std::list<Block> idle_, used_;  // idle: in the order in which they became it
  int64_t idle_bytes_ = 0, used_bytes_ = 0, most_ = 0;
};

// Never destroyed: tensors may outlive everything else of the process.
Blocks& blocks() {
  static Blocks& all = *new Blocks;
  return all;
}

}  // namespace

void* take_block(int64_t bytes) { return blocks().take(bytes); }
void give_back_block(void* block) { blocks().give_back(block); }
void release_blocks() { blocks().release(); }

}  // namespace gatedrnn
