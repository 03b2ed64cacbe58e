// SPDX-License-Identifier: Apache-2.0
// Force-included into every mlx-c source file, so that mlx-c builds as it is where it has no support of its own.
#pragma once

// mlx-c declares its 16-bit floats on ARM only, yet mlx-rs always links their accessors. An array's
// item or data is read as raw bits either way, so unsigned integers of that size do.
#if !defined(__aarch64__) && !defined(__ARM_FEATURE_FP16_SCALAR_ARITHMETIC)
#include <stdint.h>
#define HAS_FLOAT16
#define HAS_BFLOAT16
typedef uint16_t float16_t;
typedef uint16_t bfloat16_t;
#endif

// GCC before 13 has no <format>; mlx-c calls std::format for error messages with plain {} only.
#ifdef __cplusplus
#if __has_include(<format>)
#include <format>
#else
#include <sstream>
#include <string>
#include <string_view>

namespace std {
inline string format(string_view text) {
  return string(text);
}

template <typename First, typename... Rest>
string format(string_view text, const First& first, const Rest&... rest) {
  const size_t hole = text.find("{}");
  if (hole == string_view::npos) {
    return string(text);
  }
  ostringstream head;
  head << text.substr(0, hole) << first;
  return head.str() + format(text.substr(hole + 2), rest...);
}
} // namespace std
#endif
#endif
