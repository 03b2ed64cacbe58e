// SPDX-License-Identifier: Apache-2.0
//! Rounding to a dtype.

use crate::ir::DType;
use half::{bf16, f16};

/// Whether results are rounded to their dtypes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// Each operator's float result is rounded to its dtype.
    #[default]
    Rounded,
    /// Floats stay float64 throughout: what the roundings of two graphs are measured against.
    Unrounded,
}

/// The nearest value of a float dtype. Sixteen-bit results are those of float32 arithmetic, rounded.
pub fn round_float(dtype: DType, value: f64) -> f64 {
    match dtype {
        DType::Float16 => f16::from_f32(value as f32).to_f64(),
        DType::Bfloat16 => bf16::from_f32(value as f32).to_f64(),
        DType::Float32 => f64::from(value as f32),
        _ => value,
    }
}

/// The value of an integer dtype that is congruent to `value`; for booleans, whether it is not 0.
pub fn wrap(dtype: DType, value: i128) -> i64 {
    match dtype {
        DType::Bool => (value != 0).into(),
        DType::Uint8 => (value as u8).into(),
        DType::Uint16 => (value as u16).into(),
        DType::Uint32 => (value as u32).into(),
        DType::Int8 => (value as i8).into(),
        DType::Int16 => (value as i16).into(),
        DType::Int32 => (value as i32).into(),
        _ => value as i64,
    }
}

/// Distance from `value` to the next value of the dtype away from 0.
pub fn ulp(dtype: DType, value: f64) -> f64 {
    let (mantissa, least) = match dtype {
        DType::Float16 => (10, -24),
        DType::Bfloat16 => (7, -133),
        DType::Float32 => (23, -149),
        _ => (52, -1074),
    };
    if !value.is_finite() {
        return 0.0;
    }
    let exponent = match value.abs() {
        0.0 => least,
        magnitude => magnitude.log2().floor() as i32 - mantissa,
    };
    2f64.powi(exponent.max(least))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_round_to_even_and_overflow_to_infinity() {
        assert_eq!(round_float(DType::Bfloat16, 1.0 + 1.0 / 256.0), 1.0);
        assert_eq!(
            round_float(DType::Bfloat16, 1.0 + 3.0 / 256.0),
            1.0 + 2.0 / 128.0
        );
        assert_eq!(round_float(DType::Float16, 65520.0), f64::INFINITY);
        assert_eq!(
            round_float(DType::Float16, 2f64.powi(-24)),
            2f64.powi(-24),
            "denormals stay"
        );
        assert!(round_float(DType::Float32, -0.0).is_sign_negative());
    }

    #[test]
    fn whole_numbers_wrap() {
        assert_eq!(wrap(DType::Int8, 128), -128);
        assert_eq!(wrap(DType::Uint8, -1), 255);
        assert_eq!(wrap(DType::Bool, 7), 1);
        assert_eq!(wrap(DType::Int64, i128::from(i64::MAX) + 1), i64::MIN);
    }

    #[test]
    fn an_ulp_is_the_gap_to_the_next_value() {
        assert_eq!(ulp(DType::Float32, 1.0), f64::from(f32::EPSILON));
        assert_eq!(ulp(DType::Bfloat16, 300.0), 2.0);
        assert_eq!(ulp(DType::Float16, 0.0), 2f64.powi(-24));
    }
}
