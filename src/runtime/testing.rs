// SPDX-License-Identifier: Apache-2.0
//! Helpers of the unit tests.

use super::mlx::{self, Array, Device, Mlx};
use lowering::ir::DType;

/// MLX on a CPU stream of the test's thread.
pub fn cpu() -> Mlx {
    Mlx::new(Device::Cpu).unwrap()
}

/// A small generator of pseudo-random numbers (SplitMix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From 0 up to `end`, exclusive.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// From -1 to 1.
    pub fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn units(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.unit()).collect()
    }
}

/// A float32 array.
pub fn floats(values: &[f32], shape: &[i32]) -> Array {
    let bytes: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_ne_bytes())
        .collect();
    mlx::host_array(&bytes, shape, DType::Float32).unwrap()
}

/// An int64 array.
pub fn longs(values: &[i64], shape: &[i32]) -> Array {
    let bytes: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_ne_bytes())
        .collect();
    mlx::host_array(&bytes, shape, DType::Int64).unwrap()
}

/// Any array's elements as float64.
pub fn values(mlx: &Mlx, array: &Array) -> Vec<f64> {
    let wide = mlx
        .contiguous(&mlx.cast(array, DType::Float64).unwrap())
        .unwrap();
    mlx.eval([&wide]).unwrap();
    let data = mlx::data_pointer(&wide).unwrap().cast::<f64>();
    if wide.size() == 0 {
        return Vec::new();
    }
    // SAFETY: an evaluated, row-major float64 array.
    unsafe { std::slice::from_raw_parts(data, wide.size()) }.to_vec()
}

/// Largest absolute difference; a NaN counts as infinite unless both are.
pub fn difference(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let apart = |(a, b): (&f64, &f64)| match (a.is_nan(), b.is_nan()) {
        (true, true) => 0.0,
        (false, false) if a == b => 0.0,
        (false, false) => (a - b).abs(),
        _ => f64::INFINITY,
    };
    found.iter().zip(expected).map(apart).fold(0.0, f64::max)
}
