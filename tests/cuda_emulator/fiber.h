// A fiber: a stack of its own and the switch between two of them; with what the sanitizers must be
// told about it. Included by cuda_emulator.cpp only.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

#ifndef __x86_64__
#include <ucontext.h>
#endif

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifdef GATEDRNN_EMULATOR_TSAN
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void __tsan_read_range(void* address, unsigned long size);
void __tsan_write_range(void* address, unsigned long size);
}
#endif

namespace cuda_emulator {

#ifdef GATEDRNN_EMULATOR_TSAN
constexpr bool kTsan = true;
inline void tsan_acquire(void* at) { __tsan_acquire(at); }
inline void tsan_release(void* at) { __tsan_release(at); }
inline void tsan_read(const void* at, size_t size) { __tsan_read_range((void*)at, size); }
inline void tsan_write(void* at, size_t size) { __tsan_write_range(at, size); }
#else
constexpr bool kTsan = false;
inline void tsan_acquire(void*) {}
inline void tsan_release(void*) {}
inline void tsan_read(const void*, size_t) {}
inline void tsan_write(void*, size_t) {}
#endif

// To TSan, the thread that performs the asynchronous stores.
class Courier {
 public:
#ifdef GATEDRNN_EMULATOR_TSAN
  void start() { tsan_ = __tsan_create_fiber(0); }
  void end() { __tsan_destroy_fiber(tsan_); }
  template <class Act>
  void operator()(Act act) {
    void* back = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(tsan_, 1);
    act();
    __tsan_switch_to_fiber(back, 1);
  }

 private:
  void* tsan_ = nullptr;
#else
  void start() {}
  void end() {}
  template <class Act>
  void operator()(Act) {}
#endif
};

#ifdef __SANITIZE_ADDRESS__
inline void forbid(void* at, size_t size) { __asan_poison_memory_region(at, size); }
inline void permit(void* at, size_t size) { __asan_unpoison_memory_region(at, size); }
#else
inline void forbid(void*, size_t) {}
inline void permit(void*, size_t) {}
#endif

class Context {
 public:
  static constexpr size_t kStack = 128 << 10, kGuard = 4 << 10;
  // A guard costs two of Linux's 65530 mappings, and a process may have two emulators.
  static constexpr unsigned kGuarded = 8000;

  Context() = default;
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;
  ~Context() {
    if (base_) munmap(base_, kStack);
  }

  // `colour`: fibers run the same code, and their stacks' ends would share one set of each cache.
  void start(void (*entry)(), unsigned colour) {
    if (!base_) {
      void* p = mmap(nullptr, kStack, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (p == MAP_FAILED) throw std::bad_alloc();
      if (colour < kGuarded) mprotect(p, kGuard, PROT_NONE);
      base_ = static_cast<char*>(p);
    }
    bottom_ = base_ + kGuard;
    size_ = kStack - kGuard - colour % 32 * 576;
    permit(bottom_, kStack - kGuard);
#ifdef __x86_64__
    void** top = reinterpret_cast<void**>(bottom_ + size_);
    *--top = nullptr;  // the entry's stack pointer is then as after a call
    *--top = reinterpret_cast<void*>(entry);
    for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
    top_ = top;
#else
    getcontext(&context_);
    context_.uc_stack.ss_sp = bottom_;
    context_.uc_stack.ss_size = size_;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
#endif
#ifdef GATEDRNN_EMULATOR_TSAN
    tsan_ = __tsan_create_fiber(0);
#endif
  }

  void end() {
#ifdef GATEDRNN_EMULATOR_TSAN
    __tsan_destroy_fiber(tsan_);
#endif
  }

  // Makes this the context of the code that runs on the thread's own stack.
  void adopt() {
    bottom_ = nullptr;
#ifdef GATEDRNN_EMULATOR_TSAN
    tsan_ = __tsan_get_current_fiber();
#endif
  }

  void switch_to(Context& next, bool for_good) {
#ifdef GATEDRNN_EMULATOR_TSAN
    __tsan_switch_to_fiber(next.tsan_, 1);  // 1: a switch orders nothing
#endif
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(for_good ? nullptr : &fake_stack_, next.bottom_, next.size_);
#endif
    (void)for_good;
#ifdef __x86_64__
    swap(&top_, next.top_);
#else
    swapcontext(&context_, &next.context_);
#endif
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fake_stack_, nullptr, nullptr);
#endif
  }

  // The first thing on a new stack; `from`: who switched here.
  static void entered([[maybe_unused]] Context& from) {
#ifdef __SANITIZE_ADDRESS__
    const void* bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
    if (from.bottom_) return;
    from.bottom_ = static_cast<char*>(const_cast<void*>(bottom));
    from.size_ = size;
#endif
  }

 private:
  char* base_ = nullptr;
  char* bottom_ = nullptr;
  size_t size_ = 0;
#ifdef GATEDRNN_EMULATOR_TSAN
  void* tsan_ = nullptr;
#endif
#ifdef __SANITIZE_ADDRESS__
  void* fake_stack_ = nullptr;
#endif
#ifdef __x86_64__
  void* top_ = nullptr;

  // What a function must preserve goes to the old stack and comes from the new one.
  __attribute__((naked, noinline)) static void swap(void** /*rdi: old*/, void* /*rsi: new*/) {
    __asm__(
        "pushq %rbp\n\tpushq %rbx\n\tpushq %r12\n\tpushq %r13\n\tpushq %r14\n\tpushq %r15\n\t"
        "movq %rsp, (%rdi)\n\tmovq %rsi, %rsp\n\t"
        "popq %r15\n\tpopq %r14\n\tpopq %r13\n\tpopq %r12\n\tpopq %rbx\n\tpopq %rbp\n\tret");
  }
#else
  ucontext_t context_;
#endif
};

}  // namespace cuda_emulator
