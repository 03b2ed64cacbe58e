// SPDX-License-Identifier: Apache-2.0
// MLX's header qualifies member functions by address spaces, which C++ lacks; no kernel here is
// complex, so this has only what MLX's utils.h names.
#pragma once
#include <metal_stdlib>
template <class T>
struct complex_t {
  T real, imag;
  constexpr complex_t(T r = 0, T i = 0) : real(r), imag(i) {}
};
typedef complex_t<float> complex64_t;
