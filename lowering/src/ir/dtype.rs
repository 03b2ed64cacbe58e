// SPDX-License-Identifier: Apache-2.0
//! Element types, named as PyTorch names them.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Element type of a tensor. The serialised names are PyTorch's without `torch.`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Int8,
    Int16,
    Int32,
    Int64,
    Float16,
    Bfloat16,
    Float32,
    Float64,
}

impl DType {
    /// PyTorch's name without `torch.`.
    pub fn name(self) -> &'static str {
        match self {
            DType::Bool => "bool",
            DType::Uint8 => "uint8",
            DType::Uint16 => "uint16",
            DType::Uint32 => "uint32",
            DType::Int8 => "int8",
            DType::Int16 => "int16",
            DType::Int32 => "int32",
            DType::Int64 => "int64",
            DType::Float16 => "float16",
            DType::Bfloat16 => "bfloat16",
            DType::Float32 => "float32",
            DType::Float64 => "float64",
        }
    }

    /// Parses PyTorch's name; `None` for a type that MLX cannot hold.
    pub fn from_name(name: &str) -> Option<DType> {
        const ALL: [DType; 12] = [
            DType::Bool,
            DType::Uint8,
            DType::Uint16,
            DType::Uint32,
            DType::Int8,
            DType::Int16,
            DType::Int32,
            DType::Int64,
            DType::Float16,
            DType::Bfloat16,
            DType::Float32,
            DType::Float64,
        ];
        ALL.into_iter().find(|dtype| dtype.name() == name)
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            DType::Bool | DType::Uint8 | DType::Int8 => 1,
            DType::Uint16 | DType::Int16 | DType::Float16 | DType::Bfloat16 => 2,
            DType::Uint32 | DType::Int32 | DType::Float32 => 4,
            DType::Int64 | DType::Float64 => 8,
        }
    }

    /// Floating point of any width.
    pub fn is_float(self) -> bool {
        matches!(
            self,
            DType::Float16 | DType::Bfloat16 | DType::Float32 | DType::Float64
        )
    }

    /// Signed, unsigned or boolean integer.
    pub fn is_integral(self) -> bool {
        !self.is_float()
    }

    /// Sixteen-bit floating point, which PyTorch computes in `Float32` and rounds once per operator.
    pub fn is_half(self) -> bool {
        matches!(self, DType::Float16 | DType::Bfloat16)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
