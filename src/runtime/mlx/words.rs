// SPDX-License-Identifier: Apache-2.0
//! Operations of sampling: integers of 32 bits, and order.

use super::{Array, Mlx, MlxResult, dtype_code, host_array};
use lowering::ir::DType;

/// Of the C interface: no PyTorch dtype, so [`DType`] has none for it.
const UINT64: mlx_sys::mlx_dtype = mlx_sys::mlx_dtype__MLX_UINT64;

/// A uint32 array of rank 0.
pub fn word(value: u32) -> MlxResult<Array> {
    host_array(&value.to_ne_bytes(), &[], DType::Uint32)
}

/// A uint32 array.
pub fn word_array(values: &[u32], shape: &[i32]) -> MlxResult<Array> {
    let bytes: Vec<u8> = values.iter().flat_map(|of| of.to_ne_bytes()).collect();
    host_array(&bytes, shape, DType::Uint32)
}

impl Mlx {
    /// Both halves, high and low, of the 64-bit products of words with one of rank 0.
    pub fn multiply_words(&self, x: &Array, factor: &Array) -> MlxResult<[Array; 2]> {
        let wide = |x: &Array| {
            // SAFETY: a live array and the stream of `self`.
            self.make(|out, stream| unsafe { mlx_sys::mlx_astype(out, x.as_ptr(), UINT64, stream) })
        };
        let product = self.multiply(&wide(x)?, &wide(factor)?)?;
        let high = self.right_shift(&product, &wide(&word(32)?)?)?;
        Ok([self.cast(&high, DType::Uint32)?, self.multiply(x, factor)?])
    }

    /// `0, 1, ..`, so many, in that dtype.
    pub fn count(&self, end: i32, to: DType) -> MlxResult<Array> {
        // SAFETY: plain numbers and the stream of `self`.
        self.make(|out, stream| unsafe {
            mlx_sys::mlx_arange(out, 0.0, f64::from(end), 1.0, dtype_code(to), stream)
        })
    }

    /// Ascending along the axis.
    pub fn sort(&self, x: &Array, axis: i32) -> MlxResult<Array> {
        // SAFETY: a live array and the stream of `self`.
        self.make(|out, stream| unsafe { mlx_sys::mlx_sort_axis(out, x.as_ptr(), axis, stream) })
    }
}
