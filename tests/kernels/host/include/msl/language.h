// SPDX-License-Identifier: Apache-2.0
// Keywords, address spaces, scalar types and type traits (chapters 2 and 4).
#pragma once
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

#include "../../engine/interface.h"

#define __METAL__ 1
#define __METAL_VERSION__ 320

// A program is compiled twice: to run, with address spaces of no meaning, and once more for its
// syntax alone, with clang's own address spaces, whose conversions are as strict as Metal's.
#ifdef MSL_ADDRESS_SPACES
#define device __attribute__((address_space(1)))
#define constant __attribute__((address_space(2)))
#define threadgroup __attribute__((address_space(3)))
#define MSL_THREADGROUP static threadgroup
#else
#define device
#define constant
#define threadgroup
// One threadgroup runs at a time, so its memory is a static variable. The section bounds it, which
// lets the engine poison it between threadgroups and measure it.
#define MSL_THREADGROUP static __attribute__((section("msl_threadgroup"), used))
#endif
#define thread
#define kernel
#define METAL_FUNC inline __attribute__((always_inline))

#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define M_PI_F 3.14159274f
#define M_LOG2E_F 1.44269504f
#define M_LN2_F 0.69314718f
#define MAXFLOAT 3.402823466e38f

typedef _Float16 half;
typedef __bf16 bfloat;
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;

// Where an operation is called: what all threads of a group must agree on.
#define MSL_SITE int site_ = __builtin_LINE() * 1024 + (__builtin_COLUMN() & 1023)

namespace metal {
using ::bfloat;
using ::half;
using ::uchar;
using ::uint;
using ::ulong;
using ::ushort;

using std::bool_constant;
using std::conditional;
using std::conditional_t;
using std::declval;
using std::decay_t;
using std::enable_if;
using std::enable_if_t;
using std::false_type;
using std::index_sequence;
using std::integer_sequence;
using std::integral_constant;
using std::is_array;
using std::is_class;
using std::is_const;
using std::is_convertible;
using std::is_convertible_v;
using std::is_enum;
using std::is_integral;
using std::is_integral_v;
using std::is_pointer;
using std::is_same;
using std::is_same_v;
using std::is_signed;
using std::is_signed_v;
using std::is_unsigned;
using std::is_unsigned_v;
using std::is_void;
using std::make_index_sequence;
using std::make_integer_sequence;
using std::make_signed_t;
using std::make_unsigned_t;
using std::remove_cv;
using std::remove_cv_t;
using std::remove_pointer;
using std::remove_reference;
using std::remove_reference_t;
using std::true_type;
using std::void_t;

template <class T>
struct is_floating_point
    : bool_constant<std::is_floating_point_v<T> || is_same_v<T, half> || is_same_v<T, bfloat>> {};
template <class T>
constexpr bool is_floating_point_v = is_floating_point<T>::value;
template <class T>
constexpr bool is_arithmetic_v = is_integral_v<T> || is_floating_point_v<T>;
template <class T>
using arithmetic_only = enable_if_t<is_arithmetic_v<T>>;

template <class T>
struct numeric_limits : std::numeric_limits<T> {};
template <class T>
struct short_float_limits {
  static constexpr T lowest() { return -numeric_limits<T>::max(); }
  static constexpr T infinity() { return T(__builtin_inff()); }
  static constexpr T quiet_NaN() { return T(__builtin_nanf("")); }
};
template <>
struct numeric_limits<half> : short_float_limits<half> {
  static constexpr half max() { return half(65504.f); }
  static constexpr half min() { return half(6.103515625e-05f); }
  static constexpr half epsilon() { return half(9.765625e-04f); }
};
template <>
struct numeric_limits<bfloat> : short_float_limits<bfloat> {
  static constexpr bfloat max() { return bfloat(3.38953138925e38f); }
  static constexpr bfloat min() { return bfloat(1.17549435e-38f); }
  static constexpr bfloat epsilon() { return bfloat(7.8125e-03f); }
};

template <class To, class From>
inline To bit_cast_(From from) {
  static_assert(sizeof(To) == sizeof(From), "as_type of another size");
  To to;
  __builtin_memcpy((void*)&to, (const void*)&from, sizeof to);
  return to;
}
}  // namespace metal
#define as_type metal::bit_cast_
