// SPDX-License-Identifier: Apache-2.0
//! DLPack, the C structures in which array libraries hand each other memory
//! (<https://dmlc.github.io/dlpack/latest/c_api.html>). Python capsules around them are the bindings'.

use super::error::{Error, Result};
use super::tensor::Exported;
use lowering::ir::DType;
use std::ffi::c_void;

/// `kDLCPU`
pub const CPU: i32 = 1;

#[repr(C)]
#[derive(Clone, Copy)]
struct DataType {
    code: u8,
    bits: u8,
    lanes: u16,
}

#[repr(C)]
struct RawTensor {
    data: *mut c_void,
    device_type: i32,
    device_id: i32,
    ndim: i32,
    dtype: DataType,
    shape: *mut i64,
    strides: *mut i64,
    byte_offset: u64,
}

/// `DLManagedTensor`, what a capsule named `dltensor` points to.
#[repr(C)]
pub struct ManagedTensor {
    tensor: RawTensor,
    manager: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut ManagedTensor)>,
}

const INT: u8 = 0;
const UINT: u8 = 1;
const FLOAT: u8 = 2;
const BFLOAT: u8 = 4;
const BOOL: u8 = 6;

fn data_type(dtype: DType) -> DataType {
    let code = match dtype {
        DType::Bool => BOOL,
        DType::Uint8 | DType::Uint16 | DType::Uint32 => UINT,
        DType::Int8 | DType::Int16 | DType::Int32 | DType::Int64 => INT,
        DType::Float16 | DType::Float32 | DType::Float64 => FLOAT,
        DType::Bfloat16 => BFLOAT,
    };
    DataType {
        code,
        bits: (dtype.size() * 8) as u8,
        lanes: 1,
    }
}

fn dtype_of(found: DataType) -> Option<DType> {
    let dtype = match (found.code, found.bits) {
        (BOOL, 8) => DType::Bool,
        (UINT, 8) => DType::Uint8,
        (UINT, 16) => DType::Uint16,
        (UINT, 32) => DType::Uint32,
        (INT, 8) => DType::Int8,
        (INT, 16) => DType::Int16,
        (INT, 32) => DType::Int32,
        (INT, 64) => DType::Int64,
        (FLOAT, 16) => DType::Float16,
        (FLOAT, 32) => DType::Float32,
        (FLOAT, 64) => DType::Float64,
        (BFLOAT, 16) => DType::Bfloat16,
        _ => return None,
    };
    (found.lanes == 1).then_some(dtype)
}

/// What a [`ManagedTensor`] of ours keeps.
struct Manager {
    _exported: Exported,
    shape: Vec<i64>,
    strides: Vec<i64>,
}

unsafe extern "C" fn delete_exported(managed: *mut ManagedTensor) {
    // SAFETY: `managed` and its manager are the boxes made in `into_dlpack`, deleted once.
    unsafe {
        let managed = Box::from_raw(managed);
        drop(Box::from_raw(managed.manager.cast::<Manager>()));
    }
}

/// The tensor as CPU memory, for a capsule; freed by its own deleter or [`delete`].
pub fn into_dlpack(exported: Exported) -> *mut ManagedTensor {
    let (data, dtype) = (exported.data(), data_type(exported.dtype()));
    let shape = exported.shape().to_vec();
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis].max(1);
    }
    let mut manager = Box::new(Manager {
        _exported: exported,
        shape,
        strides,
    });
    let tensor = RawTensor {
        data,
        device_type: CPU,
        device_id: 0,
        ndim: manager.shape.len() as i32,
        dtype,
        shape: manager.shape.as_mut_ptr(),
        strides: manager.strides.as_mut_ptr(),
        byte_offset: 0,
    };
    let manager = Box::into_raw(manager).cast();
    Box::into_raw(Box::new(ManagedTensor {
        tensor,
        manager,
        deleter: Some(delete_exported),
    }))
}

/// Frees a tensor that nobody consumed.
///
/// # Safety
/// `managed` is a live `DLManagedTensor` that nobody else frees.
pub unsafe fn delete(managed: *mut ManagedTensor) {
    // SAFETY: the caller vouches for the pointer.
    if let Some(deleter) = unsafe { (*managed).deleter } {
        // SAFETY: the deleter belongs to this tensor and is called once.
        unsafe { deleter(managed) };
    }
}

/// A tensor in CPU memory that another library owns; released when dropped, in any thread.
pub struct Imported {
    managed: *mut ManagedTensor,
    dtype: DType,
    shape: Vec<i32>,
    /// In elements.
    strides: Vec<i64>,
}

// SAFETY: DLPack lets a consumer call the deleter from any thread; the memory is only read.
unsafe impl Send for Imported {}

impl Imported {
    /// Takes over a tensor.
    ///
    /// # Errors
    /// Memory that is not the CPU's, or an element type that MLX lacks; the tensor is freed then.
    ///
    /// # Safety
    /// `managed` is a live `DLManagedTensor` that the caller gives up.
    pub unsafe fn new(managed: *mut ManagedTensor) -> Result<Imported> {
        // SAFETY: the caller vouches for the pointer; shape and strides have `ndim` entries.
        let (mut imported, device, found) = unsafe {
            let tensor = &(*managed).tensor;
            let rank = tensor.ndim.max(0) as usize;
            let list = |pointer: *mut i64| {
                if pointer.is_null() || rank == 0 {
                    Vec::new()
                } else {
                    std::slice::from_raw_parts(pointer, rank).to_vec()
                }
            };
            let shape = list(tensor.shape);
            let sizes = shape
                .iter()
                .map(|size| i32::try_from(*size))
                .collect::<Result<Vec<_>, _>>();
            let mut strides = list(tensor.strides);
            if strides.len() < rank {
                strides = vec![1; rank];
                for axis in (1..rank).rev() {
                    strides[axis - 1] = strides[axis] * shape[axis];
                }
            }
            let imported = Imported {
                managed,
                dtype: DType::Bool,
                shape: sizes.unwrap_or_default(),
                strides,
            };
            if imported.shape.len() != rank {
                return Err(Error::Tensor(format!("sizes {shape:?} do not fit 32 bits")));
            }
            (imported, tensor.device_type, tensor.dtype)
        };
        if device != CPU {
            return Err(Error::Tensor(format!(
                "DLPack device type {device}; move the tensor to the CPU first"
            )));
        }
        imported.dtype = dtype_of(found).ok_or_else(|| {
            Error::Tensor(format!(
                "DLPack type code {} of {} bits",
                found.code, found.bits
            ))
        })?;
        Ok(imported)
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Sizes.
    pub fn shape(&self) -> &[i32] {
        &self.shape
    }

    /// Number of elements.
    pub fn size(&self) -> usize {
        self.shape.iter().map(|size| *size as usize).product()
    }

    /// Address of the first element.
    pub fn data(&self) -> *mut c_void {
        // SAFETY: the tensor is alive, and its first element lies at that offset.
        unsafe {
            let tensor = &(*self.managed).tensor;
            tensor
                .data
                .cast::<u8>()
                .wrapping_add(tensor.byte_offset as usize)
                .cast()
        }
    }

    /// Whether the elements lie row-major without gaps.
    pub fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.size() == 0
            || self
                .shape
                .iter()
                .zip(&self.strides)
                .rev()
                .all(|(size, stride)| {
                    let fits = *size == 1 || *stride == expected;
                    expected *= i64::from(*size);
                    fits
                })
    }

    /// The elements, copied row-major.
    pub fn to_bytes(&self) -> Vec<u8> {
        let width = self.dtype.size();
        let mut bytes = Vec::with_capacity(self.size() * width);
        if self.size() == 0 {
            return bytes;
        }
        let base = self.data().cast::<u8>();
        if self.is_contiguous() {
            // SAFETY: a contiguous tensor has `size * width` readable bytes.
            bytes.extend_from_slice(unsafe {
                std::slice::from_raw_parts(base, self.size() * width)
            });
            return bytes;
        }
        let mut index = vec![0i64; self.shape.len()];
        loop {
            let offset: i64 = index
                .iter()
                .zip(&self.strides)
                .map(|(i, stride)| i * stride)
                .sum();
            let element = base.wrapping_offset(offset as isize * width as isize);
            // SAFETY: every index within the shape addresses an element of the tensor.
            bytes.extend_from_slice(unsafe { std::slice::from_raw_parts(element, width) });
            let mut axis = index.len();
            loop {
                if axis == 0 {
                    return bytes;
                }
                axis -= 1;
                index[axis] += 1;
                if index[axis] < i64::from(self.shape[axis]) {
                    break;
                }
                index[axis] = 0;
            }
        }
    }
}

impl Drop for Imported {
    fn drop(&mut self) {
        // SAFETY: taken over in `new` and freed once.
        unsafe { delete(self.managed) };
    }
}
