// SPDX-License-Identifier: Apache-2.0
//! Python capsules around DLPack tensors, and numbers that come as tensors.

use crate::runtime::dlpack::{self, Imported, ManagedTensor};
use crate::runtime::error::Error;
use crate::runtime::host::HostTensor;
use crate::runtime::tensor::Exported;
use pyo3::exceptions::PyTypeError;
use pyo3::ffi;
use pyo3::prelude::*;
use std::ffi::CStr;

const NAME: &CStr = c"dltensor";
const USED: &CStr = c"used_dltensor";

unsafe extern "C" fn free_unused(capsule: *mut ffi::PyObject) {
    // SAFETY: Python calls this with a capsule made in `capsule`; a consumer renames the one that it
    // takes over, and the pointer of any other is still ours.
    unsafe {
        if ffi::PyCapsule_IsValid(capsule, NAME.as_ptr()) == 1 {
            dlpack::delete(ffi::PyCapsule_GetPointer(capsule, NAME.as_ptr()).cast());
        }
    }
}

/// A capsule that keeps the tensor until a consumer takes it over.
pub fn capsule(py: Python<'_>, exported: Exported) -> PyResult<Bound<'_, PyAny>> {
    let managed = dlpack::into_dlpack(exported);
    // SAFETY: a live pointer, a static name and a destructor for both; the GIL is held. On failure
    // the pointer is freed here.
    unsafe {
        let capsule = ffi::PyCapsule_New(managed.cast(), NAME.as_ptr(), Some(free_unused));
        Bound::from_owned_ptr_or_err(py, capsule).inspect_err(|_| dlpack::delete(managed))
    }
}

/// Takes over the memory of an object with `__dlpack__`, such as a CPU torch tensor.
pub fn import(object: &Bound<'_, PyAny>) -> PyResult<Imported> {
    if !object.hasattr("__dlpack__")? {
        let reason = format!("a tensor expected, and not {}", object.get_type().name()?);
        return Err(PyTypeError::new_err(reason));
    }
    let capsule = object.call_method0("__dlpack__")?;
    // SAFETY: the capsule is checked by its name before its pointer is read, and renamed, so that
    // it does not free what is taken over. The GIL is held.
    let managed = unsafe {
        if ffi::PyCapsule_IsValid(capsule.as_ptr(), NAME.as_ptr()) != 1 {
            return Err(
                Error::Tensor("__dlpack__ gave no capsule named dltensor".to_owned()).into(),
            );
        }
        let managed = ffi::PyCapsule_GetPointer(capsule.as_ptr(), NAME.as_ptr());
        if ffi::PyCapsule_SetName(capsule.as_ptr(), USED.as_ptr()) != 0 {
            return Err(PyErr::fetch(object.py()));
        }
        managed.cast::<ManagedTensor>()
    };
    // SAFETY: a live tensor, taken over from the capsule.
    Ok(unsafe { Imported::new(managed) }?)
}

/// A copy of a tensor's elements.
pub fn host(object: &Bound<'_, PyAny>) -> PyResult<HostTensor> {
    Ok(HostTensor::from(&import(object)?))
}

/// Integers from a tensor or a sequence.
pub fn integers(object: &Bound<'_, PyAny>) -> PyResult<Vec<i64>> {
    if object.hasattr("__dlpack__")? {
        Ok(host(object)?.integers()?)
    } else {
        object.extract()
    }
}
