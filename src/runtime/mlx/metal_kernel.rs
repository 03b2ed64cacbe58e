// SPDX-License-Identifier: Apache-2.0
//! Custom Metal kernels: `mx.fast.metal_kernel`.

use super::error::last_error;
use super::stream::{Vector, check, dtype_code};
use super::{Array, Mlx, MlxError, MlxResult};
use lowering::kernels::{Launch, TemplateValue};
use std::ffi::{CStr, CString};

/// A kernel that MLX compiles when it first runs, and keeps.
pub struct MetalKernel(mlx_sys::mlx_fast_metal_kernel);

fn c_string(text: &str) -> MlxResult<CString> {
    CString::new(text).map_err(|_| MlxError("a kernel's text with a NUL".to_owned()))
}

/// A list of strings as MLX's C interface takes it.
struct Names(mlx_sys::mlx_vector_string);

impl Names {
    fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> MlxResult<Names> {
        let names: Vec<CString> = names.into_iter().map(c_string).collect::<MlxResult<_>>()?;
        let mut pointers: Vec<_> = names.iter().map(|name| name.as_ptr()).collect();
        // SAFETY: NUL-terminated strings that live during the call, in which MLX copies them.
        Ok(Names(unsafe {
            mlx_sys::mlx_vector_string_new_data(pointers.as_mut_ptr(), pointers.len())
        }))
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        // SAFETY: made in `new` and freed once.
        unsafe { mlx_sys::mlx_vector_string_free(self.0) };
    }
}

/// The launch as MLX's C interface takes it.
struct Config(mlx_sys::mlx_fast_metal_kernel_config);

impl Config {
    fn new(launch: &Launch) -> MlxResult<Config> {
        // SAFETY: no arguments; freed on drop.
        let config = Config(unsafe { mlx_sys::mlx_fast_metal_kernel_config_new() });
        let [x, y, z] = launch.grid;
        // SAFETY: a live configuration and plain numbers.
        check(unsafe { mlx_sys::mlx_fast_metal_kernel_config_set_grid(config.0, x, y, z) })?;
        let [x, y, z] = launch.threadgroup;
        // SAFETY: as above.
        check(unsafe {
            mlx_sys::mlx_fast_metal_kernel_config_set_thread_group(config.0, x, y, z)
        })?;
        for (shape, dtype) in &launch.outputs {
            // SAFETY: a slice with its length, which MLX copies.
            check(unsafe {
                mlx_sys::mlx_fast_metal_kernel_config_add_output_arg(
                    config.0,
                    shape.as_ptr(),
                    shape.len(),
                    dtype_code(*dtype),
                )
            })?;
        }
        for (name, value) in &launch.template {
            config.add_template(&c_string(name)?, *value)?;
        }
        Ok(config)
    }

    fn add_template(&self, name: &CStr, value: TemplateValue) -> MlxResult<()> {
        let name = name.as_ptr();
        // SAFETY: a live configuration, and a NUL-terminated name that MLX copies.
        check(unsafe {
            match value {
                TemplateValue::DType(dtype) => {
                    mlx_sys::mlx_fast_metal_kernel_config_add_template_arg_dtype(
                        self.0,
                        name,
                        dtype_code(dtype),
                    )
                }
                TemplateValue::Int(value) => {
                    mlx_sys::mlx_fast_metal_kernel_config_add_template_arg_int(self.0, name, value)
                }
                TemplateValue::Bool(value) => {
                    mlx_sys::mlx_fast_metal_kernel_config_add_template_arg_bool(self.0, name, value)
                }
            }
        })
    }
}

impl Drop for Config {
    fn drop(&mut self) {
        // SAFETY: made in `new` and freed once.
        unsafe { mlx_sys::mlx_fast_metal_kernel_config_free(self.0) };
    }
}

impl MetalKernel {
    /// Takes a kernel of the registry. Its inputs may be strided as its contract says: MLX copies none.
    ///
    /// # Errors
    /// MLX refuses it.
    pub fn new(kernel: &lowering::kernels::Kernel) -> MlxResult<MetalKernel> {
        let contract = &kernel.contract;
        let inputs = Names::new(contract.inputs.iter().map(|input| input.name.as_str()))?;
        let outputs = Names::new(contract.outputs.iter().map(|output| output.name.as_str()))?;
        let name = c_string(&contract.name)?;
        let (body, header) = (c_string(kernel.body)?, c_string(&kernel.header)?);
        // SAFETY: everything lives during the call, in which MLX copies it.
        let raw = unsafe {
            mlx_sys::mlx_fast_metal_kernel_new(
                name.as_ptr(),
                inputs.0,
                outputs.0,
                body.as_ptr(),
                header.as_ptr(),
                false,
                false,
            )
        };
        match raw.ctx.is_null() {
            true => Err(last_error()),
            false => Ok(MetalKernel(raw)),
        }
    }
}

impl Drop for MetalKernel {
    fn drop(&mut self) {
        // SAFETY: made in `new` and freed once.
        unsafe { mlx_sys::mlx_fast_metal_kernel_free(self.0) };
    }
}

impl Mlx {
    /// Arrays for the outputs of a launch, on a machine that only records it.
    pub fn record_kernel(
        &self,
        name: &str,
        inputs: &[&Array],
        launch: &Launch,
    ) -> MlxResult<Vec<Array>> {
        let outputs = launch.outputs.iter();
        let outputs: Vec<_> = outputs.map(|(shape, of)| (shape.as_slice(), *of)).collect();
        self.stand_in(name, inputs, &outputs)?
            .ok_or_else(|| MlxError("nothing is recorded here".to_owned()))
    }

    /// One launch of a kernel: its outputs in order, lazy as all arrays.
    ///
    /// # Errors
    /// MLX was built without Metal, or refuses the launch. What Metal's compiler refuses shows when the
    /// outputs are evaluated.
    pub fn run_kernel(
        &self,
        kernel: &MetalKernel,
        inputs: &[&Array],
        launch: &Launch,
    ) -> MlxResult<Vec<Array>> {
        let config = Config::new(launch)?;
        let inputs = Vector::new(inputs.iter().copied());
        self.make_many(launch.outputs.len(), |out, stream| {
            // SAFETY: live arguments; `out` is an empty list to be filled.
            unsafe {
                mlx_sys::mlx_fast_metal_kernel_apply(out, kernel.0, inputs.0, config.0, stream)
            }
        })
    }
}
