// SPDX-License-Identifier: Apache-2.0
//! RMSNorm: MLX's kernel on a GPU, one node of ours on a CPU.

use super::ops::optional;
use super::{Array, Device, Mlx, MlxResult, dtype};
use std::ffi::c_int;

unsafe extern "C" {
    fn vllm_metal_rms_norm(
        out: *mut mlx_sys::mlx_array,
        x: mlx_sys::mlx_array,
        weight: mlx_sys::mlx_array,
        eps: f32,
        stream: mlx_sys::mlx_stream,
    ) -> c_int;
}

impl Mlx {
    /// `mx.fast.rms_norm`: normalises in float32.
    pub fn rms_norm(&self, x: &Array, weight: Option<&Array>, eps: f64) -> MlxResult<Array> {
        if let Some(found) = self.stand_in_like("RMSNorm", &[Some(x), weight], x.shape())? {
            return Ok(found);
        }
        let eps = eps as f32;
        let one_dtype = weight.is_none_or(|weight| dtype(weight) == dtype(x));
        if self.device() == Device::Cpu && one_dtype {
            // SAFETY: live or absent arrays and the stream of `self`; `out` is filled on success.
            return self.make(|out, stream| unsafe {
                vllm_metal_rms_norm(out, x.as_ptr(), optional(weight), eps, stream)
            });
        }
        // SAFETY: live or absent arrays and the stream of `self`.
        self.make(|out, stream| unsafe {
            mlx_sys::mlx_fast_rms_norm(out, x.as_ptr(), optional(weight), eps, stream)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Array, Mlx, MlxResult};
    use crate::runtime::testing::{cpu, floats, values};
    use lowering::ir::DType;

    /// MLX's own, of the same arrays.
    fn reference(mlx: &Mlx, x: &Array, weight: Option<&Array>) -> MlxResult<Array> {
        let weight = super::optional(weight);
        // SAFETY: live or absent arrays and the stream of `mlx`.
        mlx.make(|out, stream| unsafe {
            mlx_sys::mlx_fast_rms_norm(out, x.as_ptr(), weight, 1e-5, stream)
        })
    }

    fn numbers(shape: &[i32]) -> Array {
        let size: i32 = shape.iter().product();
        let numbers: Vec<f32> = (0..size)
            .map(|i| ((i * 37) % 23) as f32 / 7.0 - 1.5)
            .collect();
        floats(&numbers, shape)
    }

    #[test]
    fn equals_that_of_mlx_in_every_dtype_and_layout() {
        let mlx = &cpu();
        let wide = numbers(&[3, 4, 50]);
        for dtype in [DType::Float32, DType::Float16, DType::Bfloat16] {
            let cast = |x: &Array| mlx.cast(x, dtype).unwrap();
            let sources = [
                cast(&numbers(&[2, 19])),
                cast(&numbers(&[1])),
                cast(&numbers(&[0, 16])),
                mlx.slice(&cast(&wide), 2, 5, 37, 1).unwrap(),
                mlx.transpose(&cast(&wide), &[2, 0, 1]).unwrap(),
            ];
            // A unit in the last place of numbers up to 4, which the scale's rounding may move.
            let tolerance = match dtype {
                DType::Float32 => 1e-6,
                DType::Float16 => 2e-3,
                _ => 1.6e-2,
            };
            for x in &sources {
                let weight = cast(&numbers(&[*x.shape().last().unwrap()]));
                for weight in [None, Some(&weight)] {
                    let found = mlx.rms_norm(x, weight, 1e-5).unwrap();
                    let expected = reference(mlx, x, weight).unwrap();
                    assert_eq!(found.shape(), expected.shape());
                    assert_eq!(found.dtype(), expected.dtype());
                    let pairs = values(mlx, &found).into_iter().zip(values(mlx, &expected));
                    for (found, expected) in pairs {
                        assert!((found - expected).abs() <= tolerance, "{found} {expected}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_sum_that_nobody_else_reads_is_overwritten_and_others_are_not() {
        let mlx = &cpu();
        let x = numbers(&[2, 24]);
        let before = values(mlx, &x);
        let alone = mlx.rms_norm(&mlx.add(&x, &x).unwrap(), None, 1e-5).unwrap();
        let sum = mlx.add(&x, &x).unwrap();
        let shared = mlx.rms_norm(&sum, None, 1e-5).unwrap();
        assert_eq!(values(mlx, &alone), values(mlx, &shared));
        assert_eq!(
            values(mlx, &sum),
            before.iter().map(|x| 2.0 * x).collect::<Vec<_>>()
        );
    }

    #[test]
    fn another_size_or_a_whole_number_is_refused() {
        let mlx = &cpu();
        let x = numbers(&[2, 8]);
        let refused = mlx.rms_norm(&x, Some(&numbers(&[7])), 1e-5).unwrap_err();
        assert!(refused.to_string().contains("size"), "{refused}");
        let whole = mlx.cast(&x, DType::Int32).unwrap();
        assert!(mlx.rms_norm(&whole, None, 1e-5).is_err());
        assert!(mlx.rms_norm(&floats(&[1.0], &[]), None, 1e-5).is_err());
    }
}
