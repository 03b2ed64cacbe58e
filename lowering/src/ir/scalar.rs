// SPDX-License-Identifier: Apache-2.0
//! Constants and float attributes.

use super::Dim;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A float attribute, compared and hashed by its bits and written so that it reads back exactly.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Float(u64);

impl Float {
    /// The bits of `value`.
    pub fn new(value: f64) -> Float {
        Float(value.to_bits())
    }

    /// The number.
    pub fn get(self) -> f64 {
        f64::from_bits(self.0)
    }
}

impl fmt::Debug for Float {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.get())
    }
}

impl fmt::Display for Float {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.get())
    }
}

impl Serialize for Float {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{:?}", self.get()))
    }
}

impl<'de> Deserialize<'de> for Float {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Float, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse()
            .map(Float::new)
            .map_err(serde::de::Error::custom)
    }
}

/// A rank-0 constant. The dtype stands in the node's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scalar {
    Bool(bool),
    Int(i64),
    Float(Float),
    /// The value of a symbolic size.
    Size(Dim),
}

impl Scalar {
    /// The number as a float; `None` for a size that only a step knows.
    pub fn as_f64(self) -> Option<f64> {
        match self {
            Scalar::Bool(value) => Some(f64::from(u8::from(value))),
            Scalar::Int(value) => Some(value as f64),
            Scalar::Float(value) => Some(value.get()),
            Scalar::Size(dim) => dim.fixed().map(|value| value as f64),
        }
    }
}
