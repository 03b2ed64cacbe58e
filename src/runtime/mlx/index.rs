// SPDX-License-Identifier: Apache-2.0
//! Shapes, slices and indexed access. MLX checks no index: callers do.

use super::{Array, Mlx, MlxResult, dtype_code};
use lowering::ir::DType;

impl Mlx {
    /// Other sizes, elements in row-major order.
    pub fn reshape(&self, x: &Array, shape: &[i32]) -> MlxResult<Array> {
        // SAFETY: a live array, a slice with its length, and the stream of `self`.
        self.make(|out, stream| unsafe {
            mlx_sys::mlx_reshape(out, x.as_ptr(), shape.as_ptr(), shape.len(), stream)
        })
    }

    /// Axis `i` of the result is axis `axes[i]` of `x`.
    pub fn transpose(&self, x: &Array, axes: &[i32]) -> MlxResult<Array> {
        // SAFETY: a live array, a slice with its length, and the stream of `self`.
        self.make(|out, stream| unsafe {
            mlx_sys::mlx_transpose_axes(out, x.as_ptr(), axes.as_ptr(), axes.len(), stream)
        })
    }

    /// A row-major view of the elements from `offset` on, whatever the shape of `x` was.
    pub fn view_at(&self, x: &Array, shape: &[i32], offset: usize) -> MlxResult<Array> {
        let mut strides = vec![1i64; shape.len()];
        for axis in (1..shape.len()).rev() {
            strides[axis - 1] = strides[axis] * i64::from(shape[axis]);
        }
        // SAFETY: a live array, two slices with their lengths, and the stream of `self`.
        self.make(|out, stream| unsafe {
            mlx_sys::mlx_as_strided(
                out,
                x.as_ptr(),
                shape.as_ptr(),
                shape.len(),
                strides.as_ptr(),
                strides.len(),
                offset,
                stream,
            )
        })
    }

    /// NumPy's broadcast to the shape.
    pub fn broadcast_to(&self, x: &Array, shape: &[i32]) -> MlxResult<Array> {
        // SAFETY: a live array, a slice with its length, and the stream of `self`.
        self.make(|out, stream| unsafe {
            mlx_sys::mlx_broadcast_to(out, x.as_ptr(), shape.as_ptr(), shape.len(), stream)
        })
    }

    /// A new axis of size 1 there.
    pub fn expand_dims(&self, x: &Array, axis: i32) -> MlxResult<Array> {
        // SAFETY: a live array and the stream of `self`.
        self.make(|out, stream| unsafe { mlx_sys::mlx_expand_dims(out, x.as_ptr(), axis, stream) })
    }

    /// Elements laid out row-major without gaps.
    pub fn contiguous(&self, x: &Array) -> MlxResult<Array> {
        // SAFETY: a live array and the stream of `self`.
        self.make(|out, stream| unsafe { mlx_sys::mlx_contiguous(out, x.as_ptr(), false, stream) })
    }

    /// `x[start:stop:step]` along one axis.
    pub fn slice(
        &self,
        x: &Array,
        axis: usize,
        start: i32,
        stop: i32,
        step: i32,
    ) -> MlxResult<Array> {
        let sizes = x.shape();
        let rank = sizes.len();
        let mut starts = [0; MAX_RANK];
        let mut stops = [0; MAX_RANK];
        let mut steps = [1; MAX_RANK];
        if axis >= rank || rank > MAX_RANK {
            return Err(super::MlxError(format!(
                "slice along axis {axis} of {sizes:?}"
            )));
        }
        stops[..rank].copy_from_slice(sizes);
        (starts[axis], stops[axis], steps[axis]) = (start, stop, step);
        // SAFETY: a live array, three slices of its rank, and the stream of `self`.
        self.make(|out, stream| unsafe {
            mlx_sys::mlx_slice(
                out,
                x.as_ptr(),
                starts.as_ptr(),
                rank,
                stops.as_ptr(),
                rank,
                steps.as_ptr(),
                rank,
                stream,
            )
        })
    }

    /// Rows gathered along the axis; indices of any rank, in range.
    pub fn take(&self, x: &Array, indices: &Array, axis: i32) -> MlxResult<Array> {
        // SAFETY: live arrays and the stream of `self`.
        self.make(|out, stream| unsafe {
            mlx_sys::mlx_take_axis(out, x.as_ptr(), indices.as_ptr(), axis, stream)
        })
    }

    /// Rows of the first axis `[.., 1, row]` for indices `[..]`: one node, where `take` needs two.
    pub fn gather_rows(&self, x: &Array, indices: &Array) -> MlxResult<Array> {
        let mut row = x.shape().to_vec();
        if let Some(first) = row.first_mut() {
            *first = 1;
        }
        // SAFETY: live arrays, a slice with its length, and the stream of `self`.
        self.make(|out, stream| unsafe {
            mlx_sys::mlx_gather_single(
                out,
                x.as_ptr(),
                indices.as_ptr(),
                0,
                row.as_ptr(),
                row.len(),
                stream,
            )
        })
    }

    /// Elements gathered along the axis, as `torch.gather`.
    pub fn take_along_axis(&self, x: &Array, indices: &Array, axis: i32) -> MlxResult<Array> {
        // SAFETY: live arrays and the stream of `self`.
        self.make(|out, stream| unsafe {
            mlx_sys::mlx_take_along_axis(out, x.as_ptr(), indices.as_ptr(), axis, stream)
        })
    }

    /// `x` with elements replaced along the axis.
    pub fn put_along_axis(
        &self,
        x: &Array,
        indices: &Array,
        updates: &Array,
        axis: i32,
    ) -> MlxResult<Array> {
        // SAFETY: live arrays and the stream of `self`.
        self.make(|out, stream| unsafe {
            mlx_sys::mlx_put_along_axis(
                out,
                x.as_ptr(),
                indices.as_ptr(),
                updates.as_ptr(),
                axis,
                stream,
            )
        })
    }

    /// `x` with elements added along the axis.
    pub fn scatter_add_axis(
        &self,
        x: &Array,
        indices: &Array,
        updates: &Array,
        axis: i32,
    ) -> MlxResult<Array> {
        // SAFETY: live arrays and the stream of `self`.
        self.make(|out, stream| unsafe {
            mlx_sys::mlx_scatter_add_axis(
                out,
                x.as_ptr(),
                indices.as_ptr(),
                updates.as_ptr(),
                axis,
                stream,
            )
        })
    }

    /// `x` with rows `indices` replaced by `updates` `[n, 1, ..]`; in place where `x` is used nowhere else.
    pub fn scatter_rows(&self, x: &Array, indices: &Array, updates: &Array) -> MlxResult<Array> {
        // SAFETY: live arrays and the stream of `self`.
        self.make(|out, stream| unsafe {
            mlx_sys::mlx_scatter_single(
                out,
                x.as_ptr(),
                indices.as_ptr(),
                updates.as_ptr(),
                0,
                stream,
            )
        })
    }

    /// Constant padding of every axis.
    pub fn pad(&self, x: &Array, low: &[i32], high: &[i32], value: &Array) -> MlxResult<Array> {
        let axes: Vec<i32> = (0..low.len() as i32).collect();
        // SAFETY: live arrays, slices with their lengths, a static string and the stream of `self`.
        self.make(|out, stream| unsafe {
            mlx_sys::mlx_pad(
                out,
                x.as_ptr(),
                axes.as_ptr(),
                axes.len(),
                low.as_ptr(),
                low.len(),
                high.as_ptr(),
                high.len(),
                value.as_ptr(),
                c"constant".as_ptr(),
                stream,
            )
        })
    }

    /// Elements with `column - row <= diagonal`, zero elsewhere.
    pub fn tril(&self, x: &Array, diagonal: i32) -> MlxResult<Array> {
        // SAFETY: a live array and the stream of `self`.
        self.make(|out, stream| unsafe { mlx_sys::mlx_tril(out, x.as_ptr(), diagonal, stream) })
    }

    /// Elements with `column - row >= diagonal`, zero elsewhere.
    pub fn triu(&self, x: &Array, diagonal: i32) -> MlxResult<Array> {
        // SAFETY: a live array and the stream of `self`.
        self.make(|out, stream| unsafe { mlx_sys::mlx_triu(out, x.as_ptr(), diagonal, stream) })
    }

    /// Every element the rank-0 `value`.
    pub fn full(&self, shape: &[i32], value: &Array, dtype: DType) -> MlxResult<Array> {
        // SAFETY: a live array, a slice with its length, and the stream of `self`.
        self.make(|out, stream| unsafe {
            mlx_sys::mlx_full(
                out,
                shape.as_ptr(),
                shape.len(),
                value.as_ptr(),
                dtype_code(dtype),
                stream,
            )
        })
    }

    /// Every element 0.
    pub fn zeros(&self, shape: &[i32], dtype: DType) -> MlxResult<Array> {
        // SAFETY: a slice with its length, and the stream of `self`.
        self.make(|out, stream| unsafe {
            mlx_sys::mlx_zeros(out, shape.as_ptr(), shape.len(), dtype_code(dtype), stream)
        })
    }

    /// `x` with its leading part, of the size of `part`, replaced.
    pub fn slice_update(&self, x: &Array, part: &Array) -> MlxResult<Array> {
        let stop = part.shape();
        let (start, step) = (vec![0; stop.len()], vec![1; stop.len()]);
        // SAFETY: live arrays, slices with their lengths, and the stream of `self`.
        self.make(|out, stream| unsafe {
            mlx_sys::mlx_slice_update(
                out,
                x.as_ptr(),
                part.as_ptr(),
                start.as_ptr(),
                start.len(),
                stop.as_ptr(),
                stop.len(),
                step.as_ptr(),
                step.len(),
                stream,
            )
        })
    }
}

/// More axes than any operator here has.
const MAX_RANK: usize = 16;
