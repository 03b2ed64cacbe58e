// SPDX-License-Identifier: Apache-2.0
// Atomics (section 6.15), relaxed, of 32-bit numbers.
#pragma once
#include "language.h"

namespace metal {
enum memory_order { memory_order_relaxed = 0 };
template <class T>
struct atomic { T value; };
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<float> atomic_float;
typedef atomic<bool> atomic_bool;

#ifndef MSL_ADDRESS_SPACES
template <class T>
inline T atomic_load_explicit(const volatile atomic<T>* at, memory_order) {
  T value;
  __atomic_load((T*)&at->value, &value, __ATOMIC_RELAXED);
  return value;
}
template <class T, class U>
inline void atomic_store_explicit(volatile atomic<T>* at, U value_, memory_order) {
  T value = T(value_);
  __atomic_store((T*)&at->value, &value, __ATOMIC_RELAXED);
}
template <class T>
inline bool atomic_compare_exchange_weak_explicit(volatile atomic<T>* at, T* expected, T desired,
                                                  memory_order, memory_order) {
  return __atomic_compare_exchange((T*)&at->value, expected, &desired, true, __ATOMIC_RELAXED,
                                   __ATOMIC_RELAXED);
}
#define MSL_FETCH(name, expression)                                                            \
  template <class T, class U>                                                                  \
  inline T atomic_##name##_explicit(volatile atomic<T>* at, U operand_, memory_order order) {  \
    T operand = T(operand_), old = atomic_load_explicit(at, order);                            \
    while (!atomic_compare_exchange_weak_explicit(at, &old, T(expression), order, order)) {}   \
    return old;                                                                                \
  }
MSL_FETCH(fetch_add, old + operand)
MSL_FETCH(fetch_sub, old - operand)
MSL_FETCH(fetch_max, old > operand ? old : operand)
MSL_FETCH(fetch_min, old < operand ? old : operand)
MSL_FETCH(fetch_and, old & operand)
MSL_FETCH(fetch_or, old | operand)
MSL_FETCH(fetch_xor, old ^ operand)
MSL_FETCH(exchange, operand)
#else
// For the check of address spaces: any of the two that atomics may live in.
#define MSL_ATOMICS_IN(space)                                                                  \
  template <class T> T atomic_load_explicit(const volatile space atomic<T>*, memory_order);    \
  template <class T, class U> void atomic_store_explicit(volatile space atomic<T>*, U, memory_order); \
  template <class T, class U> T atomic_fetch_add_explicit(volatile space atomic<T>*, U, memory_order); \
  template <class T, class U> T atomic_fetch_max_explicit(volatile space atomic<T>*, U, memory_order); \
  template <class T, class U> T atomic_fetch_min_explicit(volatile space atomic<T>*, U, memory_order); \
  template <class T, class U> T atomic_fetch_or_explicit(volatile space atomic<T>*, U, memory_order);
MSL_ATOMICS_IN(device) MSL_ATOMICS_IN(threadgroup)
#endif

struct os_log {
  constexpr os_log(const char*, const char*) {}
  template <class... A>
  void log_debug(const char*, A...) const {}
};
}  // namespace metal
