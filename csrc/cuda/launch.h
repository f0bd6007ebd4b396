// What all launches share.
#pragma once

#include <algorithm>
#include <atomic>

#include "product.h"

namespace gatedrnn::cuda {

extern std::atomic<int64_t> launches;  // device.cu

// How many elements can be accessed as one: all rows begin at, and consist of, multiples of them.
class Alignment {
 public:
  template <class T>
  Alignment& add(const T* p, int64_t row) {
    if (p) bits_ |= uintptr_t(p) / sizeof(T) | uintptr_t(row);
    return *this;
  }
  template <class T>
  Alignment& add(const Rows<T>& rows) {
    return add(rows.data, rows.row).add(rows.data, rows.offsets ? 0 : rows.step);
  }
  bool pairs() const { return bits_ % 2 == 0; }
  template <class T>
  int bytes() const {
    return std::min<int>(kCopyBytes, int(bits_ & -bits_) * int(sizeof(T)));
  }

 private:
  uintptr_t bits_ = kCopyBytes;  // no more than that is asked
};

}  // namespace gatedrnn::cuda
