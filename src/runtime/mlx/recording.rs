// SPDX-License-Identifier: Apache-2.0
//! MLX that passes for one on a Mac's GPU, on any machine, so that the graph of a step can be looked
//! at. MLX writes its fused functions out where it has no GPU, and has no kernels of ours; here arrays
//! stand for their results, and the functions are written down with their operands. Shapes and
//! dtypes are right, values are not.

use super::stream::{Vector, check};
use super::{Array, Mlx, MlxError, MlxResult};
use lowering::ir::DType;
use std::cell::RefCell;
use std::ffi::{CString, c_char, c_int};
use std::path::Path;

/// Functions that arrays stand for, with their operands.
#[derive(Default)]
pub struct Recording(RefCell<Vec<(String, Vec<Array>)>>);

unsafe extern "C" {
    fn fopen(path: *const c_char, mode: *const c_char) -> *mut mlx_sys::FILE;
    fn fclose(file: *mut mlx_sys::FILE) -> c_int;
}

impl Mlx {
    /// Arrays that stand for a function's results, where functions are recorded.
    pub(super) fn stand_in(
        &self,
        name: &str,
        operands: &[&Array],
        results: &[(&[i32], DType)],
    ) -> MlxResult<Option<Vec<Array>>> {
        let Some(Recording(called)) = self.recording() else {
            return Ok(None);
        };
        let results = results
            .iter()
            .map(|(shape, dtype)| self.zeros(shape, *dtype));
        let results = results.collect::<MlxResult<Vec<_>>>()?;
        self.eval(&results)?;
        let operands = operands.iter().map(|operand| (*operand).clone());
        called
            .borrow_mut()
            .push((name.to_owned(), operands.collect()));
        Ok(Some(results))
    }

    /// As [`Mlx::stand_in`], of one result like an operand.
    pub(super) fn stand_in_like(
        &self,
        name: &str,
        operands: &[Option<&Array>],
        shape: &[i32],
    ) -> MlxResult<Option<Array>> {
        let operands: Vec<&Array> = operands.iter().flatten().copied().collect();
        let dtype = operands.first().and_then(|first| super::dtype(first));
        let dtype = dtype.ok_or_else(|| MlxError("a function of no operand".to_owned()))?;
        let results = self.stand_in(name, &operands, &[(shape, dtype)])?;
        Ok(results.and_then(|mut results| results.pop()))
    }

    /// Names of the recorded functions since the last call, and, through a file at `path`, MLX's graph
    /// of the arrays and of all operands in the DOT language.
    ///
    /// # Errors
    /// Nothing is recorded here, or the file cannot be written.
    pub fn recorded(&self, arrays: Vec<Array>, path: &Path) -> MlxResult<(Vec<String>, String)> {
        let Some(Recording(called)) = self.recording() else {
            return Err(MlxError("nothing is recorded here".to_owned()));
        };
        let called = called.take();
        let operands = called.iter().flat_map(|(_, operands)| operands);
        let outputs = Vector::new(arrays.iter().chain(operands));
        let failed = |reason: &str| MlxError(format!("{}: {reason}", path.display()));
        let name = CString::new(path.as_os_str().as_encoded_bytes())
            .map_err(|_| failed("a path with a NUL"))?;
        // SAFETY: NUL-terminated strings.
        let file = unsafe { fopen(name.as_ptr(), c"w".as_ptr()) };
        if file.is_null() {
            return Err(failed("cannot be written"));
        }
        // SAFETY: an open file and a live list; the namer is freed here.
        let status = unsafe {
            let namer = mlx_sys::mlx_node_namer_new();
            let status = mlx_sys::mlx_export_to_dot(file, namer, outputs.0);
            mlx_sys::mlx_node_namer_free(namer);
            status
        };
        // SAFETY: opened above and closed once.
        let closed = unsafe { fclose(file) };
        check(status)?;
        if closed != 0 {
            return Err(failed("cannot be written"));
        }
        let text = std::fs::read_to_string(path).map_err(|error| failed(&error.to_string()))?;
        Ok((called.into_iter().map(|(name, _)| name).collect(), text))
    }
}
