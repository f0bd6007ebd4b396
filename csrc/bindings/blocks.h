// Memory for large tensors that live within a call or a step of training, from one to the next.
//
// The allocator gives a block of 32 MiB or more back to the system when it is freed, and gets the
// next one page by page, zeroed: at large batches that takes a fifth of a step. Blocks kept here
// are written again as they are. Nobody misses them: an idle block's pages are marked as free, to
// be taken by the system when it needs some; in use and idle they are never more than were in use
// at a time; and inference with an output of that size lets go of them.
#pragma once

#include <cstdint>

namespace gatedrnn {

constexpr int64_t kLargeBlock = int64_t(32) << 20;  // bytes

// Null if the system has none.
void* take_block(int64_t bytes);
void give_back_block(void* block);

// To the system, all that are idle.
void release_blocks();

}  // namespace gatedrnn
