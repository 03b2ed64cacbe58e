// SPDX-License-Identifier: Apache-2.0
//! Graphs that MLX builds once and replays with other inputs: `mx.compile`.

use super::error::last_error;
use super::stream::{Vector, check};
use super::{Array, Device, Mlx, MlxResult};
use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::rc::Rc;

/// Builds a graph on placeholders; `None` where it cannot.
type Build<'a> = dyn FnMut(Vec<Array>) -> Option<Vec<Array>> + 'a;

/// What a trace calls. Filled only while [`Mlx::compile`] runs.
#[derive(Default)]
struct Slot(Cell<Option<NonNull<Build<'static>>>>);

/// A graph that is replayed: its nodes are made anew for each call, and what led to them is not run.
/// Arrays that the graph holds besides its inputs are kept as they were.
pub struct Compiled {
    closure: mlx_sys::mlx_closure,
}

impl Mlx {
    /// Builds a graph on placeholders of the inputs' shapes and dtypes, keeps it, and applies it to
    /// the inputs. On a GPU, pointwise nodes become joint kernels; on a CPU, where that would call a
    /// C++ compiler, the nodes stay as they are.
    ///
    /// # Errors
    /// MLX's, also where `build` gives `None`.
    pub fn compile(
        &self,
        inputs: &[Array],
        build: &mut Build<'_>,
    ) -> MlxResult<(Compiled, Vec<Array>)> {
        let slot = Rc::new(Slot::default());
        // SAFETY: the slot is emptied below, before `build` goes out of scope, and read only by
        // `trace`, which runs within `apply`.
        let unbounded = unsafe {
            std::mem::transmute::<NonNull<Build<'_>>, NonNull<Build<'static>>>(build.into())
        };
        slot.0.set(Some(unbounded));
        let mode = match self.device() {
            Device::Cpu => mlx_sys::mlx_compile_mode__MLX_COMPILE_MODE_NO_FUSE,
            Device::Gpu => mlx_sys::mlx_compile_mode__MLX_COMPILE_MODE_ENABLED,
        };
        // SAFETY: sets a number, MLX's for the whole process: it is put back below.
        check(unsafe { mlx_sys::mlx_set_compile_mode(mode) })?;
        let compiled = (|| {
            let payload = Rc::into_raw(slot.clone()).cast_mut().cast::<c_void>();
            let mut compiled = Compiled {
                // SAFETY: an empty closure, freed by `Compiled`.
                closure: unsafe { mlx_sys::mlx_closure_new() },
            };
            // SAFETY: the payload is freed by `release`, and the two closures once each.
            unsafe {
                let traced =
                    mlx_sys::mlx_closure_new_func_payload(Some(trace), payload, Some(release));
                let status = mlx_sys::mlx_compile(&mut compiled.closure, traced, false);
                mlx_sys::mlx_closure_free(traced);
                check(status)?;
            }
            let outputs = compiled.apply(inputs)?;
            Ok((compiled, outputs))
        })();
        slot.0.set(None);
        // SAFETY: sets a number.
        check(unsafe {
            mlx_sys::mlx_set_compile_mode(mlx_sys::mlx_compile_mode__MLX_COMPILE_MODE_ENABLED)
        })?;
        compiled
    }
}

impl Compiled {
    /// The graph on other inputs of the same shapes and dtypes, lazily.
    ///
    /// # Errors
    /// The inputs are of other shapes, or the process's default device is another than at the trace.
    pub fn replay(&self, mlx: &Mlx, inputs: &[Array]) -> MlxResult<Vec<Array>> {
        mlx.metered(|| self.apply(inputs))
    }

    fn apply(&self, inputs: &[Array]) -> MlxResult<Vec<Array>> {
        let (inputs, mut outputs) = (Vector::new(inputs), Vector::new([]));
        // SAFETY: the closure and both lists live during the call.
        let status = unsafe { mlx_sys::mlx_closure_apply(&mut outputs.0, self.closure, inputs.0) };
        if status != 0 {
            return Err(last_error());
        }
        outputs.arrays()
    }
}

impl Drop for Compiled {
    fn drop(&mut self) {
        // SAFETY: made in `compile` and freed once.
        unsafe { mlx_sys::mlx_closure_free(self.closure) };
    }
}

extern "C" fn trace(
    out: *mut mlx_sys::mlx_vector_array,
    inputs: mlx_sys::mlx_vector_array,
    payload: *mut c_void,
) -> c_int {
    // SAFETY: the payload is the slot that `compile` made, alive as long as the closure.
    let slot = unsafe { &*payload.cast::<Slot>() };
    let Some(mut build) = slot.0.take() else {
        return 1;
    };
    let outputs = catch_unwind(AssertUnwindSafe(|| {
        let placeholders = Vector::borrowed(inputs, |list| list.arrays()).ok()?;
        // SAFETY: `compile` holds the function while the slot is full.
        let build = unsafe { build.as_mut() };
        build(placeholders)
    }));
    let Ok(Some(outputs)) = outputs else {
        return 1;
    };
    let handles: Vec<mlx_sys::mlx_array> = outputs.iter().map(Array::as_ptr).collect();
    // SAFETY: MLX gives a list of its own, and copies the live handles into it.
    unsafe { mlx_sys::mlx_vector_array_set_data(out, handles.as_ptr(), handles.len()) }
}

extern "C" fn release(payload: *mut c_void) {
    // SAFETY: `payload` is the `Rc` given away in `compile`, and MLX calls this once.
    drop(unsafe { Rc::from_raw(payload.cast::<Slot>()) });
}

#[cfg(test)]
mod tests {
    use crate::runtime::testing::{cpu, floats, values};

    #[test]
    fn a_graph_is_traced_once_and_replayed_on_other_inputs() {
        let mlx = &cpu();
        let constant = floats(&[10.0, 20.0], &[2]);
        let mut traces = 0;
        let inputs = [floats(&[1.0, 2.0], &[2]), floats(&[3.0, 4.0], &[2])];
        let (graph, first) = mlx
            .compile(&inputs, &mut |placeholders| {
                traces += 1;
                let sum = mlx.add(&placeholders[0], &constant).ok()?;
                let product = mlx.multiply(&sum, &placeholders[1]).ok()?;
                Some(vec![product, placeholders[0].clone()])
            })
            .unwrap();
        assert_eq!(values(mlx, &first[0]), [33.0, 88.0]);
        assert_eq!(values(mlx, &first[1]), [1.0, 2.0]);
        let others = [floats(&[0.0, 1.0], &[2]), floats(&[2.0, 2.0], &[2])];
        let second = graph.replay(mlx, &others).unwrap();
        assert_eq!(values(mlx, &second[0]), [20.0, 42.0]);
        assert_eq!(traces, 1);
        let wider = [floats(&[0.0], &[1]), floats(&[2.0], &[1])];
        assert!(
            graph.replay(mlx, &wider).is_err(),
            "a shape that was not traced"
        );
    }

    #[test]
    fn what_cannot_be_built_is_an_error() {
        let mlx = &cpu();
        assert!(mlx.compile(&[floats(&[1.0], &[1])], &mut |_| None).is_err());
    }
}
