// SPDX-License-Identifier: Apache-2.0
//! Takes the memory of weights over.
//!
//! On Metal, MLX uses memory that begins at a page as it is. Its allocators for the CPU and for CUDA
//! take no foreign memory at all: weights are copied there, once, and what they were copied from is
//! let go.

use super::FileTensor;
use crate::runtime::dlpack::Imported;
use crate::runtime::error::Result;
use crate::runtime::host::HostTensor;
use crate::runtime::mlx::{self, Array, Mlx, foreign_array, host_array};

/// Where a parameter comes from.
pub enum Source {
    /// A tensor of another library.
    Tensor(Imported),
    /// A tensor in a mapped file.
    File(FileTensor),
    /// A tensor that was put together.
    Host(HostTensor),
}

impl Source {
    /// For error messages: nothing, or " in FILE".
    pub fn origin(&self) -> String {
        match self {
            Source::Tensor(_) | Source::Host(_) => String::new(),
            Source::File(file) => format!(" in {}", file.path.display()),
        }
    }
}

/// What loading did with the weights' bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Parameters of the checkpoint that the plan reads.
    pub parameters: usize,
    /// Used where they lie, in tensors of another library.
    pub borrowed_bytes: usize,
    /// Used where they lie, in mapped files.
    pub mapped_bytes: usize,
    /// Copied into MLX's memory.
    pub copied_bytes: usize,
    /// Computed by folds.
    pub folded_bytes: usize,
}

/// An array over another library's tensor, or of its elements.
pub fn borrow(mlx: &Mlx, tensor: Imported) -> Result<Array> {
    take_over(mlx, Source::Tensor(tensor), &mut LoadReport::default())
}

/// An array over the source, or of its elements.
pub fn take_over(mlx: &Mlx, source: Source, report: &mut LoadReport) -> Result<Array> {
    report.parameters += 1;
    match source {
        Source::Tensor(tensor) => take_tensor(tensor, report),
        Source::File(file) => take_file(mlx, &file, report),
        Source::Host(tensor) => {
            report.copied_bytes += tensor.bytes.len();
            Ok(tensor.to_array()?)
        }
    }
}

fn take_tensor(tensor: Imported, report: &mut LoadReport) -> Result<Array> {
    let (dtype, shape) = (tensor.dtype(), tensor.shape().to_vec());
    let (data, nbytes) = (tensor.data(), tensor.size() * dtype.size());
    let usable = (data as usize).is_multiple_of(dtype.size()) && tensor.is_contiguous();
    if nbytes == 0 || !usable {
        report.copied_bytes += nbytes;
        return Ok(HostTensor::from(&tensor).to_array()?);
    }
    // SAFETY: the tensor is contiguous and aligned, and lives as long as the array.
    let array = unsafe { foreign_array(data, nbytes, &shape, dtype, tensor) }?;
    // MLX copies what its device cannot address, and frees the tensor then.
    if mlx::data_pointer(&array)? == data {
        report.borrowed_bytes += nbytes;
    } else {
        report.copied_bytes += nbytes;
    }
    Ok(array)
}

fn take_file(mlx: &Mlx, file: &FileTensor, report: &mut LoadReport) -> Result<Array> {
    let aligned = file.offset.is_multiple_of(file.dtype.size());
    if !mlx.takes_pages() || file.nbytes == 0 || !aligned {
        report.copied_bytes += file.nbytes;
        let array = host_array(file.bytes(), &file.shape, file.dtype)?;
        file.forget_pages();
        return Ok(array);
    }
    report.mapped_bytes += file.nbytes;
    view_pages(mlx, file)
}

/// The tensor as a view of the pages that it lies in.
fn view_pages(mlx: &Mlx, file: &FileTensor) -> Result<Array> {
    let (pages, first) = file.pages()?;
    let array = mlx.view_at(&pages, &file.shape, first)?;
    mlx.eval([&array])?;
    Ok(array)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::testing::{cpu, values};
    use lowering::ir::DType;

    #[test]
    fn a_tensor_is_found_in_the_pages_that_it_lies_in() {
        let mlx = cpu();
        let path = std::env::temp_dir().join(format!("vllm-metal-{}-pages", std::process::id()));
        let words: Vec<u8> = (0..20_000i32).flat_map(|word| word.to_ne_bytes()).collect();
        std::fs::write(&path, words).unwrap();
        for first in [0, 3, 4095, 4096, 5000, 12_288, 19_994] {
            let file = FileTensor::open(&path, first * 4, 24, DType::Int32, vec![2, 3]).unwrap();
            let expected: Vec<f64> = (first..first + 6).map(|word| word as f64).collect();
            let view = view_pages(&mlx, &file).unwrap();
            assert_eq!(
                (view.shape(), values(&mlx, &view)),
                ([2, 3].as_slice(), expected.clone())
            );
            let mut report = LoadReport::default();
            let copy = take_file(&mlx, &file, &mut report).unwrap();
            assert_eq!(values(&mlx, &copy), expected);
            assert_eq!((report.copied_bytes, report.mapped_bytes), (24, 0));
        }
        std::fs::remove_file(path).unwrap();
    }
}
