// What the emulator tells the sanitizers: where a fiber's stack is, what orders fibers, and which
// memory is its own and no kernel's.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
extern "C" void AnnotateIgnoreReadsBegin(const char*, int);
extern "C" void AnnotateIgnoreReadsEnd(const char*, int);
extern "C" void AnnotateIgnoreWritesBegin(const char*, int);
extern "C" void AnnotateIgnoreWritesEnd(const char*, int);
#endif

namespace fastserve::simt {

#if defined(__SANITIZE_THREAD__)
/// While it lives, what this fiber reads and writes is not looked at.
struct Quiet {
  Quiet() {
    AnnotateIgnoreReadsBegin("", 0);
    AnnotateIgnoreWritesBegin("", 0);
  }
  ~Quiet() {
    AnnotateIgnoreWritesEnd("", 0);
    AnnotateIgnoreReadsEnd("", 0);
  }
};
inline void release(void* token) { __tsan_release(token); }
inline void acquire(void* token) { __tsan_acquire(token); }
#else
struct Quiet {
  Quiet() {}
  ~Quiet() {}
};
inline void release(void*) {}
inline void acquire(void*) {}
#endif

#if defined(__SANITIZE_ADDRESS__)
/// Memory between allocations: AddressSanitizer reports who touches it.
inline void mark_unreachable(const void* at, size_t bytes) {
  __asan_poison_memory_region(at, bytes);
}
inline void mark_reachable(const void* at, size_t bytes) {
  __asan_unpoison_memory_region(at, bytes);
}
#else
inline void mark_unreachable(const void*, size_t) {}
inline void mark_reachable(const void*, size_t) {}
#endif

}  // namespace fastserve::simt
