// SPDX-License-Identifier: Apache-2.0
//! Arrays and the memory behind them.

use super::error::last_error;
use super::{Array, Mlx, MlxError, MlxResult, dtype_code};
use lowering::ir::DType;
use std::ffi::{c_int, c_void};

/// Element type; `None` for one that no PyTorch tensor here has (uint64, complex64).
pub fn dtype(array: &Array) -> Option<DType> {
    // SAFETY: reads a field of a live array.
    let code = unsafe { mlx_sys::mlx_array_dtype(array.as_ptr()) };
    const ALL: [DType; 12] = [
        DType::Float32,
        DType::Bfloat16,
        DType::Float16,
        DType::Int32,
        DType::Int64,
        DType::Bool,
        DType::Uint8,
        DType::Uint16,
        DType::Uint32,
        DType::Int8,
        DType::Int16,
        DType::Float64,
    ];
    ALL.into_iter().find(|dtype| dtype_code(*dtype) == code)
}

fn checked(array: mlx_sys::mlx_array) -> MlxResult<Array> {
    if array.ctx.is_null() {
        return Err(last_error());
    }
    // SAFETY: a new array that nobody else frees.
    Ok(unsafe { Array::from_ptr(array) })
}

fn check_size(nbytes: usize, shape: &[i32], dtype: DType) -> MlxResult<()> {
    let elements = shape.iter().try_fold(1usize, |total, size| {
        total.checked_mul(usize::try_from(*size).ok()?)
    });
    if elements.and_then(|count| count.checked_mul(dtype.size())) == Some(nbytes) {
        Ok(())
    } else {
        Err(MlxError(format!("{nbytes} bytes are not {dtype}{shape:?}")))
    }
}

/// An array that holds a copy of the bytes, row-major.
pub fn host_array(bytes: &[u8], shape: &[i32], dtype: DType) -> MlxResult<Array> {
    check_size(bytes.len(), shape, dtype)?;
    // SAFETY: the size is checked, and MLX copies the bytes during the call.
    checked(unsafe {
        mlx_sys::mlx_array_new_data(
            bytes.as_ptr().cast(),
            shape.as_ptr(),
            shape.len() as c_int,
            dtype_code(dtype),
        )
    })
}

/// An int32 array.
pub fn int_array(values: &[i32], shape: &[i32]) -> MlxResult<Array> {
    let bytes: Vec<u8> = values.iter().flat_map(|of| of.to_ne_bytes()).collect();
    host_array(&bytes, shape, DType::Int32)
}

/// A float32 array.
pub fn float_array(values: &[f32], shape: &[i32]) -> MlxResult<Array> {
    let bytes: Vec<u8> = values.iter().flat_map(|of| of.to_ne_bytes()).collect();
    host_array(&bytes, shape, DType::Float32)
}

/// An array over memory that `owner` keeps alive; `owner` is dropped, in any thread, when MLX needs
/// the memory no more.
///
/// # Safety
/// `data` points to `nbytes` readable bytes, aligned for `dtype`, that stay unchanged until `owner`
/// is dropped.
pub unsafe fn foreign_array<T: Send + 'static>(
    data: *mut c_void,
    nbytes: usize,
    shape: &[i32],
    dtype: DType,
    owner: T,
) -> MlxResult<Array> {
    check_size(nbytes, shape, dtype)?;
    extern "C" fn release<T>(payload: *mut c_void) {
        // SAFETY: `payload` is the box made below, and MLX calls this once.
        drop(unsafe { Box::from_raw(payload.cast::<T>()) });
    }
    let payload = Box::into_raw(Box::new(owner));
    // SAFETY: the caller vouches for the memory; the payload is freed by `release`.
    checked(unsafe {
        mlx_sys::mlx_array_new_data_managed_payload(
            data,
            shape.as_ptr(),
            shape.len() as c_int,
            dtype_code(dtype),
            payload.cast(),
            Some(release::<T>),
        )
    })
}

/// A rank-0 array.
pub fn scalar(mlx: &Mlx, value: f64, dtype: DType) -> MlxResult<Array> {
    match dtype {
        DType::Float64 => host_array(&value.to_ne_bytes(), &[], dtype),
        DType::Float32 => host_array(&(value as f32).to_ne_bytes(), &[], dtype),
        DType::Float16 | DType::Bfloat16 => mlx.cast(
            &host_array(&(value as f32).to_ne_bytes(), &[], DType::Float32)?,
            dtype,
        ),
        _ => mlx.cast(
            &host_array(&(value as i64).to_ne_bytes(), &[], DType::Int64)?,
            dtype,
        ),
    }
}

/// Whether an evaluated array lies row-major without gaps.
pub fn is_contiguous(array: &Array) -> MlxResult<bool> {
    let mut contiguous = false;
    // SAFETY: writes one bool about a live array.
    let status = unsafe { mlx_sys::_mlx_array_is_row_contiguous(&mut contiguous, array.as_ptr()) };
    super::stream::check(status)?;
    Ok(contiguous)
}

/// Whether an array is evaluated and lies row-major without gaps, so that nothing copies it.
pub fn is_in_place(array: &Array) -> MlxResult<bool> {
    let mut available = false;
    // SAFETY: writes one bool about a live array.
    let status = unsafe { mlx_sys::_mlx_array_is_available(&mut available, array.as_ptr()) };
    super::stream::check(status)?;
    Ok(available && is_contiguous(array)?)
}

/// Where the elements of an evaluated array lie.
pub fn data_pointer(array: &Array) -> MlxResult<*mut c_void> {
    // The accessors check nothing but that the array has data, whatever the element type.
    // SAFETY: reads the data pointer of a live array.
    let data = unsafe { mlx_sys::mlx_array_data_uint8(array.as_ptr()) };
    if data.is_null() && array.size() > 0 {
        return Err(MlxError(
            "an array without data: it was not evaluated".to_owned(),
        ));
    }
    Ok(data.cast_mut().cast())
}
