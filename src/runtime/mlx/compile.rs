// SPDX-License-Identifier: Apache-2.0
//! `mx.compile`: functions that are traced on placeholders, and whose pointwise nodes become joint
//! kernels on a GPU. On a CPU, where that would call a C++ compiler, they stay as they are.

use super::error::last_error;
use super::stream::{Vector, check};
use super::{Array, Device, Mlx, MlxResult};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::rc::Rc;

/// Builds a graph on placeholders; `None` where it cannot.
pub type Build<'a> = dyn FnMut(Vec<Array>) -> Option<Vec<Array>> + 'a;

/// What a trace calls. Filled only while [`Compiled::apply`] runs.
#[derive(Default)]
struct Slot(Cell<Option<NonNull<Build<'static>>>>);

/// A function of MLX's C interface.
struct Closure(mlx_sys::mlx_closure);

impl Drop for Closure {
    fn drop(&mut self) {
        // SAFETY: made in `Compiled::new` and freed once.
        unsafe { mlx_sys::mlx_closure_free(self.0) };
    }
}

/// A function and its traces.
struct Compiled {
    slot: Rc<Slot>,
    function: Closure,
}

/// The functions of [`Mlx::joined`] by name, and whether a function is being traced.
#[derive(Default)]
pub struct Joined {
    functions: RefCell<HashMap<String, Compiled>>,
    tracing: Cell<bool>,
}

impl Compiled {
    /// `any_shape`: a trace is good for all shapes of its dtypes and ranks.
    fn new(any_shape: bool) -> MlxResult<Compiled> {
        let slot = Rc::new(Slot::default());
        let payload = Rc::into_raw(slot.clone()).cast_mut().cast::<c_void>();
        // SAFETY: an empty closure, freed by `Closure`; the payload is freed by `release`.
        let traced = Closure(unsafe {
            mlx_sys::mlx_closure_new_func_payload(Some(trace), payload, Some(release))
        });
        // SAFETY: as above.
        let mut function = Closure(unsafe { mlx_sys::mlx_closure_new() });
        // SAFETY: both closures live during the call.
        check(unsafe { mlx_sys::mlx_compile(&mut function.0, traced.0, any_shape) })?;
        Ok(Compiled { slot, function })
    }

    /// The function's results, by a trace of `build` where there is none yet for such inputs. `build`
    /// computes the same in every call.
    fn apply(&self, inputs: &[Array], build: &mut Build<'_>) -> MlxResult<Vec<Array>> {
        // SAFETY: the slot is emptied below, before `build` goes out of scope, and read only by
        // `trace`, which runs within `apply`.
        let unbounded = unsafe {
            std::mem::transmute::<NonNull<Build<'_>>, NonNull<Build<'static>>>(build.into())
        };
        self.slot.0.set(Some(unbounded));
        let (inputs, mut outputs) = (Vector::new(inputs), Vector::new([]));
        // SAFETY: the closure and both lists live during the call.
        let status =
            unsafe { mlx_sys::mlx_closure_apply(&mut outputs.0, self.function.0, inputs.0) };
        self.slot.0.set(None);
        check(status)?;
        outputs.arrays()
    }
}

impl Mlx {
    /// The graph that `build` makes, simplified by `mx.compile`, on these inputs.
    pub(super) fn compile(&self, inputs: &[Array], build: &mut Build<'_>) -> MlxResult<Vec<Array>> {
        let mode = match self.device() {
            Device::Cpu => mlx_sys::mlx_compile_mode__MLX_COMPILE_MODE_NO_FUSE,
            Device::Gpu => mlx_sys::mlx_compile_mode__MLX_COMPILE_MODE_ENABLED,
        };
        // SAFETY: sets a number, MLX's for the whole process: it is put back below.
        check(unsafe { mlx_sys::mlx_set_compile_mode(mode) })?;
        self.joined.tracing.set(true);
        let outputs = Compiled::new(false).and_then(|compiled| compiled.apply(inputs, build));
        self.joined.tracing.set(false);
        // SAFETY: sets a number.
        check(unsafe {
            mlx_sys::mlx_set_compile_mode(mlx_sys::mlx_compile_mode__MLX_COMPILE_MODE_ENABLED)
        })?;
        outputs
    }

    /// A pointwise function of operands of one shape: on a GPU one kernel without temporaries, as long
    /// as what is around it is not compiled anyway. `name` stands for the function: `build` is called
    /// for the first operands of a dtype and rank only, and reads no shapes.
    ///
    /// # Errors
    /// Those of `build`.
    pub fn joined(
        &self,
        name: impl FnOnce() -> String,
        operands: &[Array],
        build: &dyn Fn(&[Array]) -> MlxResult<Array>,
    ) -> MlxResult<Array> {
        let apart = self.device() == Device::Cpu || self.is_recorder() || self.joined.tracing.get();
        if apart || operands.iter().any(|operand| operand.size() == 0) {
            return build(operands);
        }
        self.joined.apply(name(), operands, build)
    }
}

impl Joined {
    fn apply(
        &self,
        name: String,
        operands: &[Array],
        build: &dyn Fn(&[Array]) -> MlxResult<Array>,
    ) -> MlxResult<Array> {
        let mut functions = self.functions.borrow_mut();
        if !functions.contains_key(&name) {
            functions.insert(name.clone(), Compiled::new(true)?);
        }
        let mut failure = None;
        // A joint function within one is a part of it.
        self.tracing.set(true);
        let results = functions[&name].apply(operands, &mut |placeholders| {
            let outcome = build(&placeholders).map_err(|error| failure = Some(error));
            Some(vec![outcome.ok()?])
        });
        self.tracing.set(false);
        let mut results = results.map_err(|error| failure.unwrap_or(error))?;
        results.pop().ok_or_else(last_error)
    }
}

extern "C" fn trace(
    out: *mut mlx_sys::mlx_vector_array,
    inputs: mlx_sys::mlx_vector_array,
    payload: *mut c_void,
) -> c_int {
    // SAFETY: the payload is the slot that `Compiled::new` made, alive as long as the closure.
    let slot = unsafe { &*payload.cast::<Slot>() };
    let Some(mut build) = slot.0.take() else {
        return 1;
    };
    let outputs = catch_unwind(AssertUnwindSafe(|| {
        let placeholders = Vector::borrowed(inputs, |list| list.arrays()).ok()?;
        // SAFETY: `apply` holds the function while the slot is full.
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
    // SAFETY: `payload` is the `Rc` given away in `Compiled::new`, and MLX calls this once.
    drop(unsafe { Rc::from_raw(payload.cast::<Slot>()) });
}

#[cfg(test)]
mod tests {
    use super::super::{Array, MlxError};
    use super::Joined;
    use crate::runtime::testing::{cpu, floats, values};
    use lowering::ir::DType;
    use std::cell::Cell;

    #[test]
    fn a_joint_function_is_traced_once_for_a_dtype_whatever_the_size() {
        let mlx = &cpu();
        let joined = Joined::default();
        let traces = Cell::new(0);
        let square_of_sum = |operands: &[Array]| {
            traces.set(traces.get() + 1);
            mlx.square(&mlx.add(&operands[0], &operands[1])?)
        };
        let apply = |x: &Array| {
            let operands = [x.clone(), x.clone()];
            joined.apply("square of sum".to_owned(), &operands, &square_of_sum)
        };
        assert_eq!(
            values(mlx, &apply(&floats(&[1.0, 2.0], &[2])).unwrap()),
            [4.0, 16.0]
        );
        let other = floats(&[3.0, 0.5, 1.0], &[3]);
        assert_eq!(values(mlx, &apply(&other).unwrap()), [36.0, 1.0, 4.0]);
        assert_eq!(traces.get(), 1);
        let half = apply(&mlx.cast(&other, DType::Float16).unwrap()).unwrap();
        assert_eq!(super::super::dtype(&half), Some(DType::Float16));
        assert_eq!(
            (values(mlx, &half), traces.get()),
            (vec![36.0, 1.0, 4.0], 2)
        );
    }

    #[test]
    fn what_a_joint_function_fails_with_is_said_and_it_may_be_called_again() {
        let mlx = &cpu();
        let joined = Joined::default();
        let x = [floats(&[1.0], &[1])];
        let fails = |_: &[Array]| Err(MlxError("not today".to_owned()));
        let refused = joined.apply("f".to_owned(), &x, &fails).unwrap_err();
        assert!(refused.to_string().contains("not today"), "{refused}");
        let found = joined
            .apply("f".to_owned(), &x, &|x| mlx.negative(&x[0]))
            .unwrap();
        assert_eq!(values(mlx, &found), [-1.0]);
    }
}
