// SPDX-License-Identifier: Apache-2.0
// Vectors of two to four elements with Metal's sizes and alignments (section 2.2), and swizzles as
// members of a union.
#pragma once
#include "language.h"

#ifdef MSL_ADDRESS_SPACES
// C++ has no member functions qualified by an address space: copies out of each are spelt out, and
// the operators also take scalars, since no conversion happens through two address spaces.
#define MSL_FROM_SPACE(space)  \
  vec(const space vec&);       \
  template <class U>           \
  explicit vec(const space vec<U, N_>&);
#define MSL_FROM_SPACES MSL_FROM_SPACE(device) MSL_FROM_SPACE(constant) MSL_FROM_SPACE(threadgroup)
#define MSL_WITH_SCALAR(op)                               \
  friend vec operator op(const vec& a, T) { return a; }   \
  friend vec operator op(T, const vec& b) { return b; }
#else
#define MSL_FROM_SPACES
#define MSL_WITH_SCALAR(op)
#endif

namespace metal {
template <class T, int N>
struct vec;

// Elements I... of a vector whose storage this shares.
template <class V, class T, int N, int... I>
struct swizzle {
  T at[N];
  operator V() const { return V(at[I]...); }
  swizzle& operator=(const V& value) {
    int k = 0;
    ((at[I] = value[k++]), ...);
    return *this;
  }
  swizzle& operator=(const swizzle& other) { return *this = V(other); }
  swizzle& operator+=(const V& value) { return *this = V(*this) + value; }
  swizzle& operator*=(const V& value) { return *this = V(*this) * value; }
};

#define MSL_EACH for (int i = 0; i < N_; i++)
#define MSL_ARITHMETIC(op)                                         \
  friend vec operator op(const vec& a, const vec& b) {             \
    vec r;                                                         \
    MSL_EACH r.at[i] = T(a.at[i] op b.at[i]);                      \
    return r;                                                      \
  }                                                                \
  MSL_WITH_SCALAR(op)                                              \
  vec& operator op##=(const vec& b) { return *this = *this op b; }
#define MSL_COMPARISON(op)                                   \
  friend vec<bool, N_> operator op(const vec& a, const vec& b) { \
    vec<bool, N_> r;                                         \
    MSL_EACH r.at[i] = a.at[i] op b.at[i];                   \
    return r;                                                \
  }
#define MSL_BITWISE(op)                                                          \
  template <class U = T, class = std::enable_if_t<std::is_integral_v<U>>>        \
  friend vec operator op(const vec& a, const vec<U, N_>& b) {                    \
    vec r;                                                                       \
    MSL_EACH r.at[i] = T(a.at[i] op b.at[i]);                                    \
    return r;                                                                    \
  }
#define MSL_VECTOR(N)                                                     \
  static constexpr int N_ = N;                                            \
  T& operator[](int i) { return at[i]; }                                  \
  const T& operator[](int i) const { return at[i]; }                      \
  vec() = default;                                                        \
  vec(T s) { MSL_EACH at[i] = s; }                                        \
  vec(const vec& o) { MSL_EACH at[i] = o.at[i]; }                         \
  template <class U, class = std::enable_if_t<!std::is_same_v<U, T>>>     \
  explicit vec(const vec<U, N>& o) { MSL_EACH at[i] = static_cast<T>(o.at[i]); } \
  MSL_FROM_SPACES                                                         \
  vec& operator=(const vec& o) {                                          \
    MSL_EACH at[i] = o.at[i];                                             \
    return *this;                                                         \
  }                                                                       \
  friend vec operator-(const vec& a) {                                    \
    vec r;                                                                \
    MSL_EACH r.at[i] = -a.at[i];                                          \
    return r;                                                             \
  }                                                                       \
  MSL_ARITHMETIC(+) MSL_ARITHMETIC(-) MSL_ARITHMETIC(*) MSL_ARITHMETIC(/) \
  MSL_COMPARISON(<) MSL_COMPARISON(>) MSL_COMPARISON(<=)                  \
  MSL_COMPARISON(>=) MSL_COMPARISON(==) MSL_COMPARISON(!=)                \
  MSL_BITWISE(&) MSL_BITWISE(|) MSL_BITWISE(^) MSL_BITWISE(%) MSL_BITWISE(<<) MSL_BITWISE(>>)

template <class T>
struct alignas(sizeof(T) * 2) vec<T, 2> {
  template <int... I>
  using two = swizzle<vec<T, 2>, T, 2, I...>;
  union {
    T at[2];
    struct { T x, y; };
    struct { T r, g; };
    two<0, 1> xy;
    two<1, 0> yx;
    two<0, 0> xx;
    two<1, 1> yy;
  };
  MSL_VECTOR(2)
  vec(T a, T b) : at{a, b} {}
};

template <class T>
struct alignas(sizeof(T) * 4) vec<T, 3> {
  template <int... I>
  using two = swizzle<vec<T, 2>, T, 3, I...>;
  union {
    T at[3];
    struct { T x, y, z; };
    struct { T r, g, b; };
    two<0, 1> xy;
    two<1, 2> yz;
    two<0, 2> xz;
    swizzle<vec<T, 3>, T, 3, 0, 1, 2> xyz;
  };
  MSL_VECTOR(3)
  vec(T a, T b_, T c) : at{a, b_, c} {}
  vec(const vec<T, 2>& a, T c) : at{a[0], a[1], c} {}
  vec(T a, const vec<T, 2>& c) : at{a, c[0], c[1]} {}
};

template <class T>
struct alignas(sizeof(T) * 4) vec<T, 4> {
  template <int... I>
  using two = swizzle<vec<T, 2>, T, 4, I...>;
  template <int... I>
  using three = swizzle<vec<T, 3>, T, 4, I...>;
  template <int... I>
  using four = swizzle<vec<T, 4>, T, 4, I...>;
  union {
    T at[4];
    struct { T x, y, z, w; };
    struct { T r, g, b, a; };
    two<0, 1> xy;
    two<2, 3> zw;
    two<0, 2> xz;
    two<1, 3> yw;
    two<1, 2> yz;
    three<0, 1, 2> xyz;
    three<1, 2, 3> yzw;
    four<0, 1, 2, 3> xyzw;
    four<3, 2, 1, 0> wzyx;
    four<2, 3, 0, 1> zwxy;
  };
  MSL_VECTOR(4)
  vec(T p, T q, T s, T t) : at{p, q, s, t} {}
  vec(const vec<T, 2>& p, const vec<T, 2>& q) : at{p[0], p[1], q[0], q[1]} {}
  vec(const vec<T, 2>& p, T s, T t) : at{p[0], p[1], s, t} {}
  vec(const vec<T, 3>& p, T t) : at{p[0], p[1], p[2], t} {}
  vec(T p, const vec<T, 3>& q) : at{p, q[0], q[1], q[2]} {}
};

#define MSL_NAMES(t)        \
  typedef vec<t, 2> t##2;   \
  typedef vec<t, 3> t##3;   \
  typedef vec<t, 4> t##4;
MSL_NAMES(float) MSL_NAMES(half) MSL_NAMES(bfloat) MSL_NAMES(bool)
MSL_NAMES(int) MSL_NAMES(uint) MSL_NAMES(short) MSL_NAMES(ushort)
MSL_NAMES(char) MSL_NAMES(uchar) MSL_NAMES(long) MSL_NAMES(ulong)

// Vectors aligned as their elements.
template <class T, int N>
struct packed_vec {
  T at[N];
  packed_vec() = default;
  packed_vec(const vec<T, N>& v) { for (int i = 0; i < N; i++) at[i] = v[i]; }
  operator vec<T, N>() const {
    vec<T, N> r;
    for (int i = 0; i < N; i++) r[i] = at[i];
    return r;
  }
  T& operator[](int i) { return at[i]; }
  const T& operator[](int i) const { return at[i]; }
};
typedef packed_vec<float, 2> packed_float2;
typedef packed_vec<float, 3> packed_float3;
typedef packed_vec<float, 4> packed_float4;
typedef packed_vec<half, 2> packed_half2;
typedef packed_vec<half, 4> packed_half4;

template <class T, size_t N>
struct array {
  T at[N];
  T& operator[](size_t i) { return at[i]; }
  const T& operator[](size_t i) const { return at[i]; }
  static constexpr size_t size() { return N; }
};
}  // namespace metal
