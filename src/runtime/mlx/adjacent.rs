// SPDX-License-Identifier: Apache-2.0
//! Parts of one array that lie beside each other, as one part.

use super::{Array, Mlx, MlxResult};
use std::ffi::c_int;

unsafe extern "C" {
    fn vllm_metal_join_heads(
        out: *mut mlx_sys::mlx_array,
        left: mlx_sys::mlx_array,
        right: mlx_sys::mlx_array,
        stream: mlx_sys::mlx_stream,
    ) -> c_int;
}

impl Mlx {
    /// Heads `[.., n, d]` and `[.., m, d]` as `[.., n + m, d]`: a view where they are views of columns of
    /// one array that follow each other, as queries and keys are of a merged projection.
    pub fn join_heads(&self, left: &Array, right: &Array) -> MlxResult<Array> {
        let (left, right) = (left.as_ptr(), right.as_ptr());
        // SAFETY: live arrays and a live stream; `out` is filled on success.
        self.make(|out, stream| unsafe { vllm_metal_join_heads(out, left, right, stream) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::testing::{cpu, floats, values};

    /// Columns of `merged [2, 12]` as heads of two elements.
    fn heads(mlx: &Mlx, merged: &Array, [start, stop]: [i32; 2]) -> Array {
        let part = mlx.slice(merged, 1, start, stop, 1).unwrap();
        mlx.reshape(&part, &[2, (stop - start) / 2, 2]).unwrap()
    }

    fn merged() -> Array {
        let numbers: Vec<f32> = (0..24u8).map(f32::from).collect();
        floats(&numbers, &[2, 12])
    }

    #[test]
    fn neighbours_are_one_view() {
        let mlx = &cpu();
        let mut trace = |placeholders: Vec<Array>| {
            let [q, k] = [[2, 8], [8, 12]].map(|part| heads(mlx, &placeholders[0], part));
            Some(vec![mlx.join_heads(&q, &k).ok()?])
        };
        let tape = mlx.trace(&[merged()], &mut trace).unwrap();
        assert_eq!(tape.num_nodes(), 2, "slice, reshape");
        let joined = tape.replay(mlx, &[merged()]).unwrap();
        assert_eq!(joined[0].shape(), [2, 5, 2]);
        let expected: Vec<f64> = (2..12).chain(14..24).map(f64::from).collect();
        assert_eq!(values(mlx, &joined[0]), expected);
    }

    #[test]
    fn others_are_concatenated() {
        let mlx = &cpu();
        let (one, other) = (merged(), merged());
        let rows = mlx.slice(&one, 0, 1, 2, 1).unwrap();
        let row = mlx.reshape(&rows, &[1, 6, 2]).unwrap();
        for (left, right) in [
            (heads(mlx, &one, [0, 6]), heads(mlx, &one, [8, 12])),
            (heads(mlx, &one, [8, 12]), heads(mlx, &one, [2, 8])),
            (heads(mlx, &one, [2, 8]), heads(mlx, &other, [8, 12])),
            (row.clone(), row),
        ] {
            let found = mlx.join_heads(&left, &right).unwrap();
            let plain = mlx.concatenate(&[&left, &right], -2).unwrap();
            assert_eq!(found.shape(), plain.shape());
            assert_eq!(values(mlx, &found), values(mlx, &plain));
        }
    }
}
