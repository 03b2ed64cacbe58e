// SPDX-License-Identifier: Apache-2.0
// What a compiled kernel and the engine that runs it know of each other.
#pragma once
#include <cstddef>
#include <cstdint>

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define MSL_THREAD_SANITIZER 1
#endif
#endif
#ifdef MSL_THREAD_SANITIZER
#include <sanitizer/tsan_interface.h>
#endif
#define MSL_UNSANITIZED __attribute__((noinline, disable_sanitizer_instrumentation))

namespace msl_host {
struct Position {
  uint32_t x, y, z;
};

// The attributes of a kernel's parameters, by Metal's names; one for each thread.
struct Thread {
  Position thread_position_in_grid, thread_position_in_threadgroup, threadgroup_position_in_grid,
      threads_per_threadgroup, dispatch_threads_per_threadgroup, threadgroups_per_grid,
      threads_per_grid;
  uint32_t thread_index_in_threadgroup, thread_index_in_simdgroup,
      simdgroup_index_in_threadgroup, simdgroups_per_threadgroup, threads_per_simdgroup;
};

typedef void (*Entry)(void** buffers, const Thread* thread);

constexpr int kLanes = 32;
constexpr int kSlotBytes = 64;  // the largest value that lanes exchange

// Brings a value to all lanes of the caller's simdgroup that have not returned, and waits for theirs:
// kLanes slots, of which `mask` says who filled one. `site` and `function` must be the same for all.
const unsigned char* simdgroup_exchange(const void* value, size_t bytes, int function, int site,
                                        uint32_t& mask, int& lane);
// Waits for all threads of the threadgroup.
void threadgroup_barrier(int site);
// An address that stands for the caller's simdgroup.
void* simdgroup_tag();
}  // namespace msl_host
