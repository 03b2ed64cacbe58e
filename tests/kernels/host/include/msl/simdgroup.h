// SPDX-License-Identifier: Apache-2.0
// Barriers, and functions of a simdgroup of 32 lanes and of a quad (sections 6.9 and 6.10). All lanes
// that have not returned must reach a function together: what Metal defines for the active lanes of
// a branch alone is refused, because kernels that need it are rarely meant.
#pragma once
#include "math.h"

namespace metal {
enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };
inline mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(int(a) | int(b)); }
inline void threadgroup_barrier(mem_flags, MSL_SITE) { msl_host::threadgroup_barrier(site_); }

// What the lanes of a simdgroup brought to a function.
template <class T>
struct lanes_ {
  T value[32];
  uint mask;
  int lane;
  bool has(int i) const { return i >= 0 && i < 32 && (mask >> i & 1); }
  // Undefined in Metal for a lane that is not there: poison, so that a use of it shows.
  T get(int i) const {
    if (has(i)) return value[i];
    T poison;
    __builtin_memset((void*)&poison, 0xFF, sizeof poison);
    return poison;
  }
};

template <class T>
MSL_UNSANITIZED lanes_<T> exchange_(T value, int function, int site) {
  static_assert(sizeof(T) <= msl_host::kSlotBytes, "too large to exchange");
  lanes_<T> all;
  const unsigned char* slots = msl_host::simdgroup_exchange(
      &value, sizeof(T), function * 256 + int(sizeof(T)), site, all.mask, all.lane);
  for (int i = 0; i < 32; i++)
    if (all.mask >> i & 1)
      __builtin_memcpy((void*)&all.value[i], slots + msl_host::kSlotBytes * i, sizeof(T));
  return all;
}

// Pairs lanes 16 apart, then 8, and so on.
template <class T, class F>
inline T reduce_(const lanes_<T>& all, F combine) {
  T value[32];
  uint mask = all.mask;
  for (int i = 0; i < 32; i++)
    if (all.has(i)) value[i] = all.value[i];
  for (int step = 16; step; step >>= 1)
    for (int i = 0; i < step; i++) {
      bool low = mask >> i & 1, high = mask >> (i + step) & 1;
      if (low && high) value[i] = combine(value[i], value[i + step]);
      else if (high) {
        value[i] = value[i + step];
        mask |= 1u << i;
      }
    }
  return value[0];
}

#define MSL_REDUCTION(name, function, expression)                                              \
  template <class T>                                                                           \
  inline T name(T x, MSL_SITE) {                                                               \
    return reduce_(exchange_(x, function, site_), [](T a, T b) -> T { return expression; });   \
  }
MSL_REDUCTION(simd_sum, 1, a + b)
MSL_REDUCTION(simd_product, 2, a * b)
MSL_REDUCTION(simd_max, 3, max(a, b))
MSL_REDUCTION(simd_min, 4, min(a, b))
MSL_REDUCTION(simd_and, 5, a & b)
MSL_REDUCTION(simd_or, 6, a | b)
MSL_REDUCTION(simd_xor, 7, a ^ b)

#define MSL_SHUFFLE(name, function, source)               \
  template <class T>                                      \
  inline T name(T x, ushort k, MSL_SITE) {                \
    auto all = exchange_(x, function, site_);             \
    return all.get(source);                               \
  }
MSL_SHUFFLE(simd_shuffle, 10, int(k))
MSL_SHUFFLE(simd_broadcast, 11, int(k))
MSL_SHUFFLE(simd_shuffle_xor, 12, all.lane ^ int(k))
MSL_SHUFFLE(simd_shuffle_down, 13, all.lane + int(k))
MSL_SHUFFLE(simd_shuffle_up, 14, all.lane - int(k))
MSL_SHUFFLE(simd_shuffle_rotate_down, 15, (all.lane + int(k)) & 31)
MSL_SHUFFLE(simd_shuffle_rotate_up, 16, (all.lane - int(k)) & 31)
MSL_SHUFFLE(quad_shuffle_xor, 17, all.lane ^ int(k))
MSL_SHUFFLE(quad_broadcast, 18, (all.lane & ~3) + int(k))
MSL_SHUFFLE(quad_shuffle, 19, (all.lane & ~3) + int(k))

template <class T>
inline T simd_shuffle_and_fill_up(T x, T fill, ushort k, MSL_SITE) {
  auto all = exchange_(x, 20, site_), fills = exchange_(fill, 21, site_);
  return all.lane >= k ? all.get(all.lane - k) : fills.get(32 + all.lane - k);
}
template <class T>
inline T simd_shuffle_and_fill_down(T x, T fill, ushort k, MSL_SITE) {
  auto all = exchange_(x, 22, site_), fills = exchange_(fill, 23, site_);
  return all.lane + k < 32 ? all.get(all.lane + k) : fills.get(all.lane + k - 32);
}
template <class T>
inline T simd_broadcast_first(T x, MSL_SITE) {
  auto all = exchange_(x, 24, site_);
  return all.value[__builtin_ctz(all.mask)];
}
template <class T>
inline T simd_prefix_inclusive_sum(T x, MSL_SITE) {
  auto all = exchange_(x, 25, site_);
  T sum = T(0);
  for (int i = 0; i <= all.lane; i++)
    if (all.has(i)) sum = T(sum + all.value[i]);
  return sum;
}
template <class T>
inline T simd_prefix_exclusive_sum(T x, MSL_SITE) {
  auto all = exchange_(x, 26, site_);
  T sum = T(0);
  for (int i = 0; i < all.lane; i++)
    if (all.has(i)) sum = T(sum + all.value[i]);
  return sum;
}
template <class T>
inline T quad_sum(T x, MSL_SITE) {
  auto all = exchange_(x, 27, site_);
  T sum = T(0);
  for (int i = all.lane & ~3; i < (all.lane & ~3) + 4; i++)
    if (all.has(i)) sum = T(sum + all.value[i]);
  return sum;
}
template <class T>
inline T quad_max(T x, MSL_SITE) {
  auto all = exchange_(x, 28, site_);
  for (int i = all.lane & ~3; i < (all.lane & ~3) + 4; i++)
    if (all.has(i)) x = max(x, all.value[i]);
  return x;
}

struct simd_vote {
  typedef ulong vote_t;
  ulong votes, voters;
  explicit operator vote_t() const { return votes; }
  bool all() const { return votes == voters; }
  bool any() const { return votes; }
};
inline simd_vote simd_ballot(bool vote, MSL_SITE) {
  auto all = exchange_(int(vote), 30, site_);
  simd_vote r{0, all.mask};
  for (int i = 0; i < 32; i++)
    if (all.has(i) && all.value[i]) r.votes |= 1ul << i;
  return r;
}
inline bool simd_any(bool vote, MSL_SITE) { return simd_ballot(vote, site_).any(); }
inline bool simd_all(bool vote, MSL_SITE) { return simd_ballot(vote, site_).all(); }
inline simd_vote simd_active_threads_mask(MSL_SITE) { return simd_ballot(true, site_); }
inline bool simd_is_first(MSL_SITE) {
  auto all = exchange_(0, 31, site_);
  return all.lane == __builtin_ctz(all.mask);
}

inline void simdgroup_barrier(mem_flags, MSL_SITE) {
  exchange_(0, 32, site_);
#ifdef MSL_THREAD_SANITIZER
  // Only a barrier orders memory: other functions of a simdgroup exchange registers.
  __tsan_release(msl_host::simdgroup_tag());
  exchange_(0, 33, site_);
  __tsan_acquire(msl_host::simdgroup_tag());
#endif
}
}  // namespace metal
