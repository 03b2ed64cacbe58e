// SPDX-License-Identifier: Apache-2.0
// Matrices of 8 x 8 elements that a simdgroup holds (section 6.10.4), two elements a lane in the
// order that MLX's own kernels rely on. Products accumulate in float.
#pragma once
#include "simdgroup.h"

namespace metal {
struct position_ {
  int row, column;
  explicit position_(int lane) {
    int quad = lane / 4;
    row = (quad & 4) + (lane / 2) % 4;
    column = (quad & 2) * 2 + (lane % 2) * 2;
  }
};

template <class T, int Rows = 8, int Columns = 8>
struct simdgroup_matrix {
  static_assert(Rows == 8 && Columns == 8, "Metal has matrices of 8 x 8 only");
  vec<T, 2> elements;
  simdgroup_matrix() = default;
  // Metal's has the value on its diagonal alone: only 0 is what it looks like.
  explicit simdgroup_matrix(T value) : elements(value) {
    if (value != T(0)) __builtin_trap();
  }
  vec<T, 2>& thread_elements() { return elements; }
  const vec<T, 2>& thread_elements() const { return elements; }
};
typedef simdgroup_matrix<float> simdgroup_float8x8;
typedef simdgroup_matrix<half> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat> simdgroup_bfloat8x8;

template <class T, class P>
inline void simdgroup_load(simdgroup_matrix<T>& m, const P* from, ulong stride = 8,
                           ulong2 origin = ulong2(0, 0), bool transpose = false, MSL_SITE) {
  position_ at(exchange_(0, 40, site_).lane);
  for (int k = 0; k < 2; k++)
    m.elements[k] = transpose
        ? from[(origin.x + at.column + k) * stride + origin.y + at.row]
        : from[(origin.y + at.row) * stride + origin.x + at.column + k];
}
#ifdef MSL_ADDRESS_SPACES
#define MSL_LOAD_FROM(space)                                                                    \
  template <class T>                                                                            \
  void simdgroup_load(simdgroup_matrix<T>&, const space T*, ulong = 8, ulong2 = ulong2(0, 0),   \
                      bool = false);                                                            \
  template <class T>                                                                            \
  void simdgroup_store(simdgroup_matrix<T>, space T*, ulong = 8, ulong2 = ulong2(0, 0),         \
                       bool = false);
MSL_LOAD_FROM(device) MSL_LOAD_FROM(threadgroup)
#endif
template <class T, class P>
inline void simdgroup_store(simdgroup_matrix<T> m, P* to, ulong stride = 8,
                            ulong2 origin = ulong2(0, 0), bool transpose = false, MSL_SITE) {
  position_ at(exchange_(0, 41, site_).lane);
  for (int k = 0; k < 2; k++)
    (transpose ? to[(origin.x + at.column + k) * stride + origin.y + at.row]
               : to[(origin.y + at.row) * stride + origin.x + at.column + k]) = m.elements[k];
}
template <class D, class A, class B, class C>
inline void simdgroup_multiply_accumulate(simdgroup_matrix<D>& d, simdgroup_matrix<A> a,
                                          simdgroup_matrix<B> b, simdgroup_matrix<C> c, MSL_SITE) {
  auto left = exchange_(a.elements, 42, site_);
  auto right = exchange_(b.elements, 43, site_);
  A whole_a[8][8];
  B whole_b[8][8];
  for (int lane = 0; lane < 32; lane++) {
    position_ at(lane);
    for (int k = 0; k < 2; k++) {
      whole_a[at.row][at.column + k] = left.get(lane)[k];
      whole_b[at.row][at.column + k] = right.get(lane)[k];
    }
  }
  position_ at(left.lane);
  for (int k = 0; k < 2; k++) {
    float sum = float(c.elements[k]);
    for (int i = 0; i < 8; i++)
      sum += float(whole_a[at.row][i]) * float(whole_b[i][at.column + k]);
    d.elements[k] = D(sum);
  }
}
template <class D, class A, class B>
inline void simdgroup_multiply(simdgroup_matrix<D>& d, simdgroup_matrix<A> a,
                               simdgroup_matrix<B> b, MSL_SITE) {
  simdgroup_multiply_accumulate(d, a, b, simdgroup_matrix<D>(D(0)), site_);
}
}  // namespace metal
