// SPDX-License-Identifier: Apache-2.0
//! `mx.conv_general`.

use super::{Array, Mlx, MlxResult};

/// Which windows a convolution sums over: one number for each axis between the first and the last.
pub struct Windows<'a> {
    pub stride: &'a [i32],
    /// Zeros in front.
    pub low: &'a [i32],
    /// Zeros behind.
    pub high: &'a [i32],
    pub dilation: &'a [i32],
    /// `input_dilation`
    pub expansion: &'a [i32],
    pub groups: i32,
    pub flip: bool,
}

impl Mlx {
    /// `mx.conv_general(x, weight, ..)`, channels last.
    pub fn convolve(&self, x: &Array, weight: &Array, windows: &Windows) -> MlxResult<Array> {
        // SAFETY: live arrays, slices with their lengths, and the stream of `self`.
        self.make(|out, stream| unsafe {
            mlx_sys::mlx_conv_general(
                out,
                x.as_ptr(),
                weight.as_ptr(),
                windows.stride.as_ptr(),
                windows.stride.len(),
                windows.low.as_ptr(),
                windows.low.len(),
                windows.high.as_ptr(),
                windows.high.len(),
                windows.dilation.as_ptr(),
                windows.dilation.len(),
                windows.expansion.as_ptr(),
                windows.expansion.len(),
                windows.groups,
                windows.flip,
                stream,
            )
        })
    }
}
