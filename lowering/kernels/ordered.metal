// SPDX-License-Identifier: Apache-2.0
// Floats in the order of unsigned integers.

// NaN counts as minus infinity, and -0 as 0.
inline float clean_logit(float x) {
  return isnan(x) ? -INFINITY : x + 0.0f;
}

// Rises with x: positive floats have rising bits, negative ones falling.
inline uint ordered_bits(float x) {
  const uint bits = as_type<uint>(x);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
