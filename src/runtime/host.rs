// SPDX-License-Identifier: Apache-2.0
//! Small tensors on the host: what a step is told.

use super::dlpack::Imported;
use super::error::{Error, Result};
use super::mlx::{Array, MlxResult, host_array};
use lowering::ir::DType;

/// A row-major copy of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostTensor {
    /// Element type.
    pub dtype: DType,
    /// Sizes.
    pub shape: Vec<i32>,
    /// The elements, in the machine's byte order.
    pub bytes: Vec<u8>,
}

impl From<&Imported> for HostTensor {
    fn from(imported: &Imported) -> HostTensor {
        HostTensor {
            dtype: imported.dtype(),
            shape: imported.shape().to_vec(),
            bytes: imported.to_bytes(),
        }
    }
}

impl HostTensor {
    /// An MLX array with a copy of the elements.
    pub fn to_array(&self) -> MlxResult<Array> {
        host_array(&self.bytes, &self.shape, self.dtype)
    }

    /// The elements of an int32 or int64 tensor.
    ///
    /// # Errors
    /// Another dtype.
    pub fn integers(&self) -> Result<Vec<i64>> {
        fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
            bytes.as_chunks::<N>().0.iter().copied()
        }
        match self.dtype {
            DType::Int32 => Ok(words(&self.bytes)
                .map(|word| i32::from_ne_bytes(word).into())
                .collect()),
            DType::Int64 => Ok(words(&self.bytes).map(i64::from_ne_bytes).collect()),
            other => Err(Error::Tensor(format!(
                "integers expected and {other} given"
            ))),
        }
    }

    /// The elements as 32-bit integers.
    ///
    /// # Errors
    /// Another dtype, or an element that does not fit.
    pub fn integers_32(&self) -> Result<Vec<i32>> {
        let narrow = |value: i64| {
            i32::try_from(value).map_err(|_| Error::Tensor(format!("{value} does not fit 32 bits")))
        };
        self.integers()?.into_iter().map(narrow).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_of_both_widths_are_read_and_others_refused() {
        let tensor = |dtype, bytes: Vec<u8>| HostTensor {
            dtype,
            shape: vec![2],
            bytes,
        };
        let narrow = [-1i32, 7].iter().flat_map(|v| v.to_ne_bytes()).collect();
        let wide: Vec<u8> = [-1i64, 1 << 40]
            .iter()
            .flat_map(|v| v.to_ne_bytes())
            .collect();
        assert_eq!(tensor(DType::Int32, narrow).integers().unwrap(), [-1, 7]);
        let wide = tensor(DType::Int64, wide);
        assert_eq!(wide.integers().unwrap(), [-1, 1 << 40]);
        assert!(
            wide.integers_32()
                .unwrap_err()
                .to_string()
                .contains("1099511627776")
        );
        let float = tensor(DType::Float32, vec![0; 8]);
        assert_eq!(
            float.integers().unwrap_err().to_string(),
            "tensor: integers expected and float32 given"
        );
    }
}
