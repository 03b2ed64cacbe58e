// SPDX-License-Identifier: Apache-2.0
//! Graphs that are built once, on placeholders, and replayed with other inputs.

use super::compile::Build;
use super::error::last_error;
use super::stream::{Vector, check};
use super::{Array, Mlx, MlxResult, dtype};
use lowering::ir::DType;
use std::ffi::c_int;
use std::ptr::NonNull;

/// The nodes of a graph, made anew for each replay; what led to them is not run again. Arrays that
/// the graph holds besides its inputs are kept, and so is what small nodes and views compute from
/// these alone.
pub struct Tape(NonNull<Recording>);

/// `vllm_metal_tape` of `tape.cpp`.
#[repr(C)]
struct Recording {
    _opaque: [u8; 0],
}

unsafe extern "C" {
    fn vllm_metal_tape_record(
        out: *mut *mut Recording,
        inputs: mlx_sys::mlx_vector_array,
        outputs: mlx_sys::mlx_vector_array,
    ) -> c_int;
    fn vllm_metal_tape_replay(
        out: *mut mlx_sys::mlx_vector_array,
        tape: *const Recording,
        inputs: mlx_sys::mlx_vector_array,
    ) -> c_int;
    #[cfg(test)]
    fn vllm_metal_tape_num_nodes(tape: *const Recording) -> usize;
    fn vllm_metal_tape_free(tape: *mut Recording);
}

impl Mlx {
    /// Builds a graph on placeholders of the inputs' shapes and dtypes, and keeps it. `mx.compile`
    /// simplifies it: on a GPU, pointwise nodes become joint kernels; on a CPU, where that would call
    /// a C++ compiler, they stay as they are.
    ///
    /// # Errors
    /// MLX's, also where `build` gives `None`.
    pub fn trace(&self, inputs: &[Array], build: &mut Build<'_>) -> MlxResult<Tape> {
        let placeholders: Vec<Array> = (inputs.iter())
            .map(|input| self.zeros(input.shape(), dtype(input).unwrap_or(DType::Float32)))
            .collect::<MlxResult<_>>()?;
        let outputs = self.compile(&placeholders, build)?;
        let (inputs, outputs) = (Vector::new(&placeholders), Vector::new(&outputs));
        let mut tape = std::ptr::null_mut();
        // SAFETY: both lists live during the call, and `out` is filled on success.
        check(unsafe { vllm_metal_tape_record(&mut tape, inputs.0, outputs.0) })?;
        NonNull::new(tape).map(Tape).ok_or_else(last_error)
    }
}

impl Tape {
    /// The graph on other inputs of the same shapes and dtypes, lazily.
    ///
    /// # Errors
    /// The inputs are of other shapes or dtypes.
    pub fn replay(&self, mlx: &Mlx, inputs: &[Array]) -> MlxResult<Vec<Array>> {
        mlx.metered(|| {
            let (inputs, mut outputs) = (Vector::new(inputs), Vector::new([]));
            // SAFETY: the tape and both lists live during the call.
            check(unsafe { vllm_metal_tape_replay(&mut outputs.0, self.0.as_ptr(), inputs.0) })?;
            outputs.arrays()
        })
    }

    /// Nodes that a replay makes.
    #[cfg(test)]
    pub(super) fn num_nodes(&self) -> usize {
        // SAFETY: reads a field of a live tape.
        unsafe { vllm_metal_tape_num_nodes(self.0.as_ptr()) }
    }
}

impl Drop for Tape {
    fn drop(&mut self) {
        // SAFETY: made in `trace` and freed once.
        unsafe { vllm_metal_tape_free(self.0.as_ptr()) };
    }
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
        let tape = mlx
            .trace(&inputs, &mut |placeholders| {
                traces += 1;
                let sum = mlx.add(&placeholders[0], &constant).ok()?;
                let product = mlx.multiply(&sum, &placeholders[1]).ok()?;
                Some(vec![product, placeholders[0].clone(), constant.clone()])
            })
            .unwrap();
        let first = tape.replay(mlx, &inputs).unwrap();
        assert_eq!(values(mlx, &first[0]), [33.0, 88.0]);
        assert_eq!(values(mlx, &first[1]), [1.0, 2.0]);
        assert_eq!(values(mlx, &first[2]), [10.0, 20.0]);
        let others = [floats(&[0.0, 1.0], &[2]), floats(&[2.0, 2.0], &[2])];
        let second = tape.replay(mlx, &others).unwrap();
        assert_eq!(values(mlx, &second[0]), [20.0, 42.0]);
        assert_eq!((traces, tape.num_nodes()), (1, 2));
    }

    #[test]
    fn inputs_that_were_not_traced_are_refused() {
        let mlx = &cpu();
        let inputs = [floats(&[1.0, 2.0], &[2])];
        let double =
            |placeholders: Vec<_>| Some(vec![mlx.add(&placeholders[0], &placeholders[0]).ok()?]);
        let tape = mlx.trace(&inputs, &mut { double }).unwrap();
        let refused = |inputs: &[_]| tape.replay(mlx, inputs).err().unwrap().to_string();
        assert!(refused(&[floats(&[0.0], &[1])]).contains("another shape or dtype"));
        let half = mlx.cast(&inputs[0], lowering::ir::DType::Float16).unwrap();
        assert!(refused(&[half]).contains("another shape or dtype"));
        assert!(refused(&[]).contains("another number of inputs"));
    }

    #[test]
    fn one_array_may_be_two_inputs() {
        let mlx = &cpu();
        let x = floats(&[1.0, 2.0], &[2]);
        let tape = mlx
            .trace(&[x.clone(), x.clone()], &mut |placeholders| {
                let product = mlx.multiply(&placeholders[0], &placeholders[1]).ok()?;
                Some(vec![mlx.add(&product, &placeholders[0]).ok()?])
            })
            .unwrap();
        let others = [floats(&[5.0, 6.0], &[2]), floats(&[1.0, 1.0], &[2])];
        let found = tape.replay(mlx, &others).unwrap();
        assert_eq!(values(mlx, &found[0]), [10.0, 12.0]);
    }

    #[test]
    fn what_depends_on_no_input_is_computed_once() {
        let mlx = &cpu();
        let weight = floats(&[1.0, 2.0, 3.0, 4.0], &[2, 2]);
        let x = [floats(&[1.0, 1.0], &[1, 2])];
        let mut trace = |placeholders: Vec<_>| {
            let turned = mlx.transpose(&weight, &[1, 0]).ok()?;
            let doubled = mlx.add(&turned, &turned).ok()?;
            Some(vec![mlx.matmul(&placeholders[0], &doubled).ok()?])
        };
        let tape = mlx.trace(&x, &mut trace).unwrap();
        assert_eq!(tape.num_nodes(), 1, "the product alone");
        for _ in 0..2 {
            let found = tape.replay(mlx, &x).unwrap();
            assert_eq!(values(mlx, &found[0]), [6.0, 14.0]);
        }
    }

    #[test]
    fn nothing_large_is_kept_besides_what_was_held() {
        let mlx = &cpu();
        let size = 1 << 16;
        let weight = floats(&vec![1.0; size as usize], &[1, size]);
        let x = [floats(&[3.0], &[1, 1])];
        let mut trace = |placeholders: Vec<_>| {
            let turned = mlx.transpose(&weight, &[1, 0]).ok()?;
            let doubled = mlx.add(&turned, &turned).ok()?;
            Some(vec![mlx.matmul(&doubled, &placeholders[0]).ok()?])
        };
        let tape = mlx.trace(&x, &mut trace).unwrap();
        assert_eq!(
            tape.num_nodes(),
            2,
            "the sum, which is 256 KiB, and the product"
        );
    }

    #[test]
    fn results_of_one_primitive_keep_their_order() {
        let mlx = &cpu();
        let inputs = [floats(&[7.0, 9.0], &[2]), floats(&[2.0, 4.0], &[2])];
        let mut trace = |placeholders: Vec<super::Array>| {
            let [a, b] = [placeholders[0].as_ptr(), placeholders[1].as_ptr()];
            let both = mlx.make_many(2, |out, stream| {
                // SAFETY: live arrays, and a list that is filled on success.
                unsafe { mlx_sys::mlx_divmod(out, a, b, stream) }
            });
            let [quotient, rest] = both.ok()?.try_into().ok()?;
            // The second result is met first.
            Some(vec![mlx.add(&rest, &rest).ok()?, quotient])
        };
        let tape = mlx.trace(&inputs, &mut trace).unwrap();
        let found = tape.replay(mlx, &inputs).unwrap();
        assert_eq!(values(mlx, &found[0]), [2.0, 2.0]);
        assert_eq!(values(mlx, &found[1]), [3.0, 2.0]);
    }

    #[test]
    fn a_shape_after_a_shape_is_one() {
        let mlx = &cpu();
        let x = [floats(&[1.0, 2.0, 3.0, 4.0], &[4])];
        let mut trace = |placeholders: Vec<super::Array>| {
            let square = mlx.reshape(&placeholders[0], &[2, 2]).ok()?;
            let column = mlx.reshape(&square, &[4, 1]).ok()?;
            Some(vec![mlx.add(&column, &column).ok()?])
        };
        let tape = mlx.trace(&x, &mut trace).unwrap();
        assert_eq!(tape.num_nodes(), 2, "a reshape and the sum");
        let found = tape.replay(mlx, &x).unwrap();
        assert_eq!(values(mlx, &found[0]), [2.0, 4.0, 6.0, 8.0]);
    }

    #[test]
    fn what_cannot_be_built_is_an_error() {
        let mlx = &cpu();
        assert!(mlx.trace(&[floats(&[1.0], &[1])], &mut |_| None).is_err());
    }
}
