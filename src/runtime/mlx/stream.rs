// SPDX-License-Identifier: Apache-2.0
//! The stream that operations go to, and evaluation.

use super::compile::Joined;
use super::error::{install_handler, last_error};
use super::recording::Recording;
use super::{Array, MlxError, MlxResult};
use lowering::ir::DType;
use std::cell::Cell;
use std::ffi::c_int;
use std::time::{Duration, Instant};

/// Where MLX computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The processor; everywhere.
    Cpu,
    /// Metal or CUDA, whichever MLX was built for.
    Gpu,
}

/// MLX on one stream. A stream belongs to the thread that made it: arrays built here are evaluated
/// in that thread.
pub struct Mlx {
    stream: mlx_sys::mlx_stream,
    device: Device,
    meter: Cell<Option<Meter>>,
    evaluations: Cell<u64>,
    recording: Option<Recording>,
    pub(super) joined: Joined,
}

/// Calls of functions that build arrays, and the time inside MLX that they took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meter {
    pub calls: u64,
    pub time: Duration,
}

impl Mlx {
    /// A new stream on the device.
    ///
    /// # Errors
    /// The device does not exist on this machine.
    pub fn new(device: Device) -> MlxResult<Mlx> {
        install_handler();
        let code = match device {
            Device::Cpu => mlx_sys::mlx_device_type__MLX_CPU,
            Device::Gpu => mlx_sys::mlx_device_type__MLX_GPU,
        };
        let mut available = false;
        // SAFETY: the device is made here and freed here, and the stream is checked before use.
        let stream = unsafe {
            let device = mlx_sys::mlx_device_new_type(code, 0);
            let status = mlx_sys::mlx_device_is_available(&mut available, device);
            let stream = if status == 0 && available {
                mlx_sys::mlx_stream_new_device(device)
            } else {
                mlx_sys::mlx_stream_new()
            };
            mlx_sys::mlx_device_free(device);
            stream
        };
        if !available {
            return Err(MlxError(format!(
                "this machine has no {device:?} device that MLX can use"
            )));
        }
        if stream.ctx.is_null() {
            return Err(last_error());
        }
        Ok(Mlx {
            stream,
            device,
            meter: Cell::new(None),
            evaluations: Cell::new(0),
            recording: None,
            joined: Joined::default(),
        })
    }

    /// MLX on a CPU stream that passes for a GPU's and records what it has no functions for; see
    /// [`super::recording`].
    ///
    /// # Errors
    /// As [`Mlx::new`].
    pub fn recorder() -> MlxResult<Mlx> {
        let mut mlx = Mlx::new(Device::Cpu)?;
        mlx.device = Device::Gpu;
        mlx.recording = Some(Recording::default());
        Ok(mlx)
    }

    /// What is recorded, if anything is.
    pub(super) fn recording(&self) -> Option<&Recording> {
        self.recording.as_ref()
    }

    /// Whether functions are recorded and do not run.
    pub fn is_recorder(&self) -> bool {
        self.recording.is_some()
    }

    /// The device of the stream.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Whether pages of foreign memory can be an array: Metal's buffers can. CUDA's and the CPU's
    /// allocators copy all of them, also what lies between the end of a file and that of its page.
    pub fn takes_pages(&self) -> bool {
        let mut metal = false;
        // SAFETY: writes a bool.
        let status = unsafe { mlx_sys::mlx_metal_is_available(&mut metal) };
        self.device == Device::Gpu && status == 0 && metal
    }

    /// How often arrays were computed and waited for since the start.
    pub fn evaluations(&self) -> u64 {
        self.evaluations.get()
    }

    /// Starts a count of the calls into MLX, or ends it; gives what was counted until now.
    pub fn meter(&self, on: bool) -> Meter {
        let next = on.then(Meter::default);
        self.meter.replace(next).unwrap_or_default()
    }

    /// Runs one function of MLX's C interface that stores a new array.
    pub(super) fn make(
        &self,
        build: impl FnOnce(*mut mlx_sys::mlx_array, mlx_sys::mlx_stream) -> c_int,
    ) -> MlxResult<Array> {
        let mut out = mlx_sys::mlx_array {
            ctx: std::ptr::null_mut(),
        };
        let status = self.metered(|| build(&mut out, self.stream));
        if status == 0 {
            // SAFETY: on success `out` owns a new array that nobody else frees.
            Ok(unsafe { Array::from_ptr(out) })
        } else {
            Err(last_error())
        }
    }

    /// As [`Mlx::make`], for a function that stores `count` arrays in a list.
    pub(super) fn make_many(
        &self,
        count: usize,
        build: impl FnOnce(*mut mlx_sys::mlx_vector_array, mlx_sys::mlx_stream) -> c_int,
    ) -> MlxResult<Vec<Array>> {
        let mut list = Vector::new([]);
        check(self.metered(|| build(&mut list.0, self.stream)))?;
        (0..count).map(|index| list.get(index)).collect()
    }

    /// Counts one call into MLX and its time, where a count is on.
    pub(super) fn metered<R>(&self, call: impl FnOnce() -> R) -> R {
        let Some(meter) = self.meter.get() else {
            return call();
        };
        let start = Instant::now();
        let result = call();
        self.meter.set(Some(Meter {
            calls: meter.calls + 1,
            time: meter.time + start.elapsed(),
        }));
        result
    }

    /// Computes the arrays and waits for them.
    pub fn eval<'a>(&self, arrays: impl IntoIterator<Item = &'a Array>) -> MlxResult<()> {
        let vector = Vector::new(arrays);
        self.evaluations.set(self.evaluations.get() + 1);
        // SAFETY: the vector lives during the call.
        check(unsafe { mlx_sys::mlx_eval(vector.0) })
    }

    /// Has the arrays computed, and goes on; see [`Mlx::wait`].
    pub fn submit<'a>(&self, arrays: impl IntoIterator<Item = &'a Array>) -> MlxResult<()> {
        let vector = Vector::new(arrays);
        // SAFETY: the vector lives during the call.
        check(unsafe { mlx_sys::mlx_async_eval(vector.0) })
    }

    /// Waits for an array, and not for what was submitted after it; computes it first where nobody
    /// did.
    pub fn wait(&self, array: &Array) -> MlxResult<()> {
        self.evaluations.set(self.evaluations.get() + 1);
        // SAFETY: a live array.
        check(unsafe { mlx_sys::mlx_array_eval(array.as_ptr()) })
    }

    /// Waits for everything submitted to the stream.
    pub fn synchronize(&self) -> MlxResult<()> {
        // SAFETY: the stream lives as long as `self`.
        check(unsafe { mlx_sys::mlx_synchronize(self.stream) })
    }
}

impl Drop for Mlx {
    fn drop(&mut self) {
        // SAFETY: made in `new` and freed once.
        unsafe { mlx_sys::mlx_stream_free(self.stream) };
    }
}

pub(super) fn check(status: c_int) -> MlxResult<()> {
    if status == 0 {
        Ok(())
    } else {
        Err(last_error())
    }
}

/// A list of arrays as MLX's C interface takes it.
pub(super) struct Vector(pub mlx_sys::mlx_vector_array);

impl Vector {
    pub fn new<'a>(arrays: impl IntoIterator<Item = &'a Array>) -> Vector {
        let handles: Vec<mlx_sys::mlx_array> = arrays.into_iter().map(Array::as_ptr).collect();
        // SAFETY: the handles are live arrays, and MLX copies them.
        Vector(unsafe { mlx_sys::mlx_vector_array_new_data(handles.as_ptr(), handles.len()) })
    }

    /// Runs a function on a list that somebody else frees.
    pub fn borrowed<R>(list: mlx_sys::mlx_vector_array, read: impl FnOnce(&Vector) -> R) -> R {
        read(&std::mem::ManuallyDrop::new(Vector(list)))
    }

    /// All arrays, as handles of their own.
    pub fn arrays(&self) -> MlxResult<Vec<Array>> {
        // SAFETY: a live list.
        let length = unsafe { mlx_sys::mlx_vector_array_size(self.0) };
        (0..length).map(|index| self.get(index)).collect()
    }

    /// The array of that index, as a handle of its own.
    fn get(&self, index: usize) -> MlxResult<Array> {
        let mut out = mlx_sys::mlx_array {
            ctx: std::ptr::null_mut(),
        };
        // SAFETY: a live list, whose length MLX checks; `out` is filled on success.
        check(unsafe { mlx_sys::mlx_vector_array_get(&mut out, self.0, index) })?;
        // SAFETY: `out` owns a new handle that nobody else frees.
        Ok(unsafe { Array::from_ptr(out) })
    }
}

impl Drop for Vector {
    fn drop(&mut self) {
        // SAFETY: made in `new` and freed once.
        unsafe { mlx_sys::mlx_vector_array_free(self.0) };
    }
}

/// MLX's code of an element type.
pub fn dtype_code(dtype: DType) -> mlx_sys::mlx_dtype {
    match dtype {
        DType::Bool => mlx_sys::mlx_dtype__MLX_BOOL,
        DType::Uint8 => mlx_sys::mlx_dtype__MLX_UINT8,
        DType::Uint16 => mlx_sys::mlx_dtype__MLX_UINT16,
        DType::Uint32 => mlx_sys::mlx_dtype__MLX_UINT32,
        DType::Int8 => mlx_sys::mlx_dtype__MLX_INT8,
        DType::Int16 => mlx_sys::mlx_dtype__MLX_INT16,
        DType::Int32 => mlx_sys::mlx_dtype__MLX_INT32,
        DType::Int64 => mlx_sys::mlx_dtype__MLX_INT64,
        DType::Float16 => mlx_sys::mlx_dtype__MLX_FLOAT16,
        DType::Bfloat16 => mlx_sys::mlx_dtype__MLX_BFLOAT16,
        DType::Float32 => mlx_sys::mlx_dtype__MLX_FLOAT32,
        DType::Float64 => mlx_sys::mlx_dtype__MLX_FLOAT64,
    }
}
