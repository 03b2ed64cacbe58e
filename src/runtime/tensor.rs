// SPDX-License-Identifier: Apache-2.0
//! Handles of arrays that live on the owner's thread, and their memory once they are evaluated.

use super::error::{Error, Result};
use super::host::HostTensor;
use super::mlx::{self, Array, Mlx};
use super::owner::{Owner, State};
use lowering::ir::DType;
use std::ffi::c_void;
use std::sync::Arc;

/// A lazy array. Dropping it in any thread releases the array on its own.
pub struct Tensor {
    id: u64,
    shape: Vec<i32>,
    dtype: DType,
    owner: Arc<Owner>,
}

impl Tensor {
    /// Puts an array under a handle.
    ///
    /// # Errors
    /// The array has an element type that PyTorch lacks.
    pub fn new(state: &mut State, owner: &Arc<Owner>, array: Array) -> Result<Tensor> {
        let dtype = mlx::dtype(&array)
            .ok_or_else(|| Error::Tensor("an element type without a PyTorch name".to_owned()))?;
        let shape = array.shape().to_vec();
        let id = state.new_id();
        state.tensors.insert(id, array);
        Ok(Tensor {
            id,
            shape,
            dtype,
            owner: owner.clone(),
        })
    }

    /// Sizes.
    pub fn shape(&self) -> &[i32] {
        &self.shape
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The array's number on the owner's thread.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The thread that the array lives on.
    pub fn owner(&self) -> &Arc<Owner> {
        &self.owner
    }

    /// The rows with these indices, lazily.
    ///
    /// # Errors
    /// An index out of range.
    pub fn rows(&self, indices: Vec<i64>) -> Result<Tensor> {
        let rows = self.check_rows(&indices)?;
        self.derive(move |state, array| Ok(take_rows(&state.mlx, array, &rows)?))
    }

    /// The first `count` rows, lazily.
    ///
    /// # Errors
    /// The tensor has fewer.
    pub fn head(&self, count: usize) -> Result<Tensor> {
        let available = self.num_rows()?;
        let count = i32::try_from(count)
            .ok()
            .filter(|count| *count <= available)
            .ok_or_else(|| Error::Tensor(format!("the first {count} rows of {available}")))?;
        self.derive(move |state, array| Ok(state.mlx.slice(array, 0, 0, count, 1)?))
    }

    /// Evaluates and copies the elements.
    pub fn to_host(&self) -> Result<HostTensor> {
        let id = self.id;
        self.owner.call(move |state| {
            let array = find(state, id)?.clone();
            state.evaluate([&array])?;
            copy_out(&row_major(&state.mlx, array)?)
        })
    }

    fn num_rows(&self) -> Result<i32> {
        self.shape
            .first()
            .copied()
            .ok_or_else(|| Error::Tensor("rows of a scalar".to_owned()))
    }

    /// Row indices as MLX takes them.
    pub fn check_rows(&self, indices: &[i64]) -> Result<Vec<i32>> {
        let available = self.num_rows()?;
        indices
            .iter()
            .map(|index| {
                i32::try_from(*index)
                    .ok()
                    .filter(|row| (0..available).contains(row))
                    .ok_or_else(|| {
                        Error::Tensor(format!("row {index} of a tensor with {available} rows"))
                    })
            })
            .collect()
    }

    fn derive(
        &self,
        build: impl FnOnce(&State, &Array) -> Result<Array> + Send + 'static,
    ) -> Result<Tensor> {
        let (id, owner) = (self.id, self.owner.clone());
        self.owner.call(move |state| {
            let array = build(state, find(state, id)?)?;
            Tensor::new(state, &owner, array)
        })
    }

    /// Evaluates and gives the memory.
    pub fn export(&self) -> Result<Exported> {
        let (id, owner) = (self.id, self.owner.clone());
        self.owner.call(move |state| {
            let array = find(state, id)?.clone();
            export(state, &owner, array)
        })
    }
}

impl Drop for Tensor {
    fn drop(&mut self) {
        let id = self.id;
        self.owner
            .post(move |state| drop(state.tensors.remove(&id)));
    }
}

/// The array of a handle.
pub fn find(state: &State, id: u64) -> Result<&Array> {
    state.tensors.get(&id).ok_or(Error::Closed)
}

/// Gathers rows that were checked.
pub fn take_rows(mlx: &Mlx, array: &Array, rows: &[i32]) -> mlx::MlxResult<Array> {
    let indices = mlx::int_array(rows, &[rows.len() as i32])?;
    mlx.take(array, &indices, 0)
}

/// An evaluated, row-major array and where its elements lie in CPU memory. Keeps them alive, and
/// releases the array on its own thread, or here when that has ended.
pub struct Exported {
    array: Option<Array>,
    data: usize,
    shape: Vec<i64>,
    dtype: DType,
    owner: Arc<Owner>,
}

impl Exported {
    /// Address of the first element.
    pub fn data(&self) -> *mut c_void {
        self.data as *mut c_void
    }

    /// Sizes.
    pub fn shape(&self) -> &[i64] {
        &self.shape
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }
}

impl Drop for Exported {
    fn drop(&mut self) {
        let array = self.array.take();
        self.owner.post(move |_| drop(array));
    }
}

/// Evaluates an array, and with it the caches, and finds its memory.
pub fn export(state: &mut State, owner: &Arc<Owner>, array: Array) -> Result<Exported> {
    state.evaluate([&array])?;
    export_evaluated(&state.mlx, owner, array)
}

/// Finds the memory of an evaluated array; one that is not row-major is copied.
pub fn export_evaluated(mlx: &Mlx, owner: &Arc<Owner>, array: Array) -> Result<Exported> {
    let array = row_major(mlx, array)?;
    let dtype = mlx::dtype(&array)
        .ok_or_else(|| Error::Tensor("an element type without a PyTorch name".to_owned()))?;
    Ok(Exported {
        data: mlx::data_pointer(&array)? as usize,
        shape: array.shape().iter().map(|size| i64::from(*size)).collect(),
        dtype,
        array: Some(array),
        owner: owner.clone(),
    })
}

/// An evaluated array, or a copy of it where it is not row-major.
fn row_major(mlx: &Mlx, array: Array) -> Result<Array> {
    if mlx::is_contiguous(&array)? {
        return Ok(array);
    }
    let array = mlx.contiguous(&array)?;
    mlx.eval([&array])?;
    Ok(array)
}

/// A copy of an evaluated, row-major array.
pub fn copy_out(array: &Array) -> Result<HostTensor> {
    let dtype = mlx::dtype(array)
        .filter(|_| mlx::is_contiguous(array).unwrap_or(false))
        .ok_or_else(|| Error::Tensor("not row-major".to_owned()))?;
    let data = mlx::data_pointer(array)?.cast::<u8>();
    // SAFETY: a row-major array has that many readable bytes.
    let bytes = unsafe { std::slice::from_raw_parts(data, array.nbytes()) }.to_vec();
    Ok(HostTensor {
        dtype,
        shape: array.shape().to_vec(),
        bytes,
    })
}
