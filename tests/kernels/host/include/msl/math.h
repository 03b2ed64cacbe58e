// SPDX-License-Identifier: Apache-2.0
// Common, integer, relational, math and geometric functions (chapter 6). Functions of 16-bit floats
// are those of float, rounded; `fast::` and `precise::` are both the C library's.
#pragma once
#include "vector.h"

namespace metal {
// 1. Of one float
#define MSL_UNARY(name, expression)                                          \
  inline float name(float x) { return expression; }                          \
  inline half name(half v) { float x = v; return half(expression); }         \
  inline bfloat name(bfloat v) { float x = v; return bfloat(expression); }   \
  template <class T, class = enable_if_t<is_integral_v<T>>>                  \
  inline float name(T v) { float x = float(v); return expression; }          \
  template <class T, int N>                                                  \
  inline vec<T, N> name(const vec<T, N>& v) {                                \
    vec<T, N> r;                                                             \
    for (int i = 0; i < N; i++) r[i] = name(v[i]);                           \
    return r;                                                                \
  }
#define MSL_BUILTIN(name) MSL_UNARY(name, __builtin_##name##f(x))
MSL_BUILTIN(exp) MSL_BUILTIN(exp2) MSL_BUILTIN(log) MSL_BUILTIN(log2) MSL_BUILTIN(log10)
MSL_BUILTIN(sin) MSL_BUILTIN(cos) MSL_BUILTIN(tan) MSL_BUILTIN(asin) MSL_BUILTIN(acos)
MSL_BUILTIN(atan) MSL_BUILTIN(sinh) MSL_BUILTIN(cosh) MSL_BUILTIN(tanh) MSL_BUILTIN(asinh)
MSL_BUILTIN(acosh) MSL_BUILTIN(atanh) MSL_BUILTIN(sqrt) MSL_BUILTIN(floor) MSL_BUILTIN(ceil)
MSL_BUILTIN(trunc) MSL_BUILTIN(rint) MSL_BUILTIN(round) MSL_BUILTIN(fabs)
MSL_UNARY(rsqrt, 1.0f / __builtin_sqrtf(x))
MSL_UNARY(exp10, __builtin_powf(10.0f, x))
MSL_UNARY(sign, x > 0 ? 1.f : x < 0 ? -1.f : x != x ? 0.f : x)
MSL_UNARY(fract, x - __builtin_floorf(x))
MSL_UNARY(saturate, x < 0 ? 0.f : x > 1 ? 1.f : x)

// 2. Of two floats
#define MSL_BINARY(name, expression)                                                     \
  inline float name(float x, float y) { return expression; }                             \
  inline half name(half a, half b) { float x = a, y = b; return half(expression); }      \
  inline bfloat name(bfloat a, bfloat b) { float x = a, y = b; return bfloat(expression); } \
  template <class T, int N>                                                              \
  inline vec<T, N> name(const vec<T, N>& a, const vec<T, N>& b) {                        \
    vec<T, N> r;                                                                         \
    for (int i = 0; i < N; i++) r[i] = name(a[i], b[i]);                                 \
    return r;                                                                            \
  }
MSL_BINARY(pow, __builtin_powf(x, y))
MSL_BINARY(powr, __builtin_powf(x, y))
MSL_BINARY(fmod, __builtin_fmodf(x, y))
MSL_BINARY(atan2, __builtin_atan2f(x, y))
MSL_BINARY(fmax, __builtin_fmaxf(x, y))
MSL_BINARY(fmin, __builtin_fminf(x, y))
MSL_BINARY(copysign, __builtin_copysignf(x, y))
MSL_BINARY(divide, x / y)

// 3. Of any number
template <class T>
inline T fma(T a, T b, T c) {
  if constexpr (is_same_v<T, float>) return __builtin_fmaf(a, b, c);
  else return T(__builtin_fmaf(float(a), float(b), float(c)));
}
template <class T, class = arithmetic_only<T>>
inline T max(T a, T b) {
  if constexpr (is_floating_point_v<T>) return fmax(a, b);
  else return a > b ? a : b;
}
template <class T, class = arithmetic_only<T>>
inline T min(T a, T b) {
  if constexpr (is_floating_point_v<T>) return fmin(a, b);
  else return a < b ? a : b;
}
template <class T, class = arithmetic_only<T>>
inline T abs(T a) {
  if constexpr (is_unsigned_v<T>) return a;
  else if constexpr (is_floating_point_v<T>) return fabs(a);
  else return a < T(0) ? T(-a) : a;
}
template <class T, class = arithmetic_only<T>>
inline T clamp(T x, T low, T high) { return min(max(x, low), high); }
template <class T, class = arithmetic_only<T>>
inline T select(T a, T b, bool c) { return c ? b : a; }
template <class T>
inline T mix(T a, T b, T t) { return a + (b - a) * t; }

#define MSL_OVER_VECTORS(name)                                       \
  template <class T, int N>                                          \
  inline vec<T, N> name(const vec<T, N>& a, const vec<T, N>& b) {    \
    vec<T, N> r;                                                     \
    for (int i = 0; i < N; i++) r[i] = name(a[i], b[i]);             \
    return r;                                                        \
  }
MSL_OVER_VECTORS(max) MSL_OVER_VECTORS(min)
template <class T, int N>
inline vec<T, N> abs(const vec<T, N>& a) {
  vec<T, N> r;
  for (int i = 0; i < N; i++) r[i] = abs(a[i]);
  return r;
}
template <class T, int N>
inline vec<T, N> select(const vec<T, N>& a, const vec<T, N>& b, const vec<bool, N>& c) {
  vec<T, N> r;
  for (int i = 0; i < N; i++) r[i] = c[i] ? b[i] : a[i];
  return r;
}

// 4. Geometric, relational, integer
template <class T, int N>
inline T dot(const vec<T, N>& a, const vec<T, N>& b) {
  T sum = a[0] * b[0];
  for (int i = 1; i < N; i++) sum = T(sum + a[i] * b[i]);
  return sum;
}
template <class T, int N>
inline T length(const vec<T, N>& a) { return sqrt(dot(a, a)); }
template <int N>
inline bool any(const vec<bool, N>& a) {
  bool r = false;
  for (int i = 0; i < N; i++) r |= a[i];
  return r;
}
template <int N>
inline bool all(const vec<bool, N>& a) {
  bool r = true;
  for (int i = 0; i < N; i++) r &= a[i];
  return r;
}
inline bool isnan(float x) { return x != x; }
inline bool isinf(float x) { return __builtin_isinf(x); }
inline bool isfinite(float x) { return __builtin_isfinite(x); }
inline bool signbit(float x) { return __builtin_signbitf(x); }
inline float ldexp(float x, int k) { return __builtin_ldexpf(x, k); }
inline uint popcount(uint x) { return __builtin_popcount(x); }
inline uint clz(uint x) { return x ? __builtin_clz(x) : 32; }
inline uint ctz(uint x) { return x ? __builtin_ctz(x) : 32; }
inline uint mulhi(uint a, uint b) { return uint((ulong(a) * b) >> 32); }
inline int mulhi(int a, int b) { return int((long(a) * b) >> 32); }
template <class T>
inline T rotate(T x, T n) {
  constexpr T mask = sizeof(T) * 8 - 1;
  return (x << (n & mask)) | (x >> ((-n) & mask));
}

#define MSL_USING(name) using metal::name;
#define MSL_MATH(X)                                                                            \
  X(exp) X(exp2) X(log) X(log2) X(log10) X(sin) X(cos) X(tan) X(asin) X(acos) X(atan) X(sinh)  \
  X(cosh) X(tanh) X(asinh) X(acosh) X(atanh) X(sqrt) X(floor) X(ceil) X(trunc) X(rint)         \
  X(round) X(fabs) X(rsqrt) X(exp10) X(sign) X(fract) X(saturate) X(pow) X(powr) X(fmod)       \
  X(atan2) X(fmax) X(fmin) X(copysign) X(divide) X(max) X(min) X(clamp) X(fma) X(abs)
namespace fast { MSL_MATH(MSL_USING) }
namespace precise { MSL_MATH(MSL_USING) }
}  // namespace metal
