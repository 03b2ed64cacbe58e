// SPDX-License-Identifier: Apache-2.0
//! A call's arguments, resolved and bound to the names of its schema.

use super::document::{FxNode, FxValue, parse_dtype};
use super::storage::Tensor;
use crate::ir::{DType, Dim, Scalar};

/// What an FX node yields, or what stands at an argument's place.
#[derive(Clone, Debug)]
pub enum Item {
    None,
    Tensor(Tensor),
    Tuple(Vec<Item>),
    /// A whole number, perhaps symbolic.
    Size(Dim),
    Float(f64),
    Bool(bool),
    Str(String),
    DType,
    Layer(String),
    /// Devices, layouts and the like, which mean nothing to MLX.
    Other,
}

/// Keywords that say where or how PyTorch would lay memory out.
const IGNORED_KEYWORDS: [&str; 6] = [
    "device",
    "layout",
    "pin_memory",
    "memory_format",
    "non_blocking",
    "requires_grad",
];

/// One call of an FX graph.
pub struct Call<'a> {
    pub node: &'a FxNode<'a>,
    pub args: Vec<Item>,
    pub kwargs: Vec<(&'a str, Item)>,
}

impl Call<'_> {
    /// Target of the call, such as `aten.view.default`.
    pub fn target(&self) -> &str {
        &self.node.target
    }

    /// The argument that an in-place call writes to.
    pub fn first(&self) -> Result<&Item, String> {
        let keyword = || self.kwargs.iter().find(|(name, _)| *name == "self");
        let first = self.args.first().or_else(|| Some(&keyword()?.1));
        first.ok_or_else(|| "it has no argument".into())
    }

    /// The arguments in the order of the schema's names; a missing one is [`Item::None`], and one
    /// that the schema does not name is an error.
    pub fn bind<const N: usize>(&self, names: [&str; N]) -> Result<[Item; N], String> {
        if self.args.len() > N {
            return Err(format!(
                "it has {} arguments and the lowering knows {N}",
                self.args.len()
            ));
        }
        let mut bound = [const { Item::None }; N];
        for (slot, item) in bound.iter_mut().zip(&self.args) {
            *slot = item.clone();
        }
        for (name, item) in &self.kwargs {
            match names.iter().position(|known| known == name) {
                Some(position) => bound[position] = item.clone(),
                None if IGNORED_KEYWORDS.contains(name) => {}
                None => {
                    return Err(format!(
                        "it has an argument that the lowering does not know: {name}"
                    ));
                }
            }
        }
        Ok(bound)
    }

    /// Dtype that PyTorch recorded for one of the call's results.
    pub fn output_dtype(&self, index: usize) -> Result<DType, String> {
        match &self.node.value {
            Some(FxValue::Tuple { tuple }) => match tuple.get(index) {
                Some(Some(FxValue::Tensor { dtype, .. })) => parse_dtype(dtype),
                _ => Err(format!("no dtype is recorded for its result {index}")),
            },
            _ => self.result_dtype(),
        }
    }

    /// Dtype that PyTorch recorded for the call's only result.
    pub fn result_dtype(&self) -> Result<DType, String> {
        match &self.node.value {
            Some(FxValue::Tensor { dtype, .. }) => parse_dtype(dtype),
            _ => Err("no dtype is recorded for it".into()),
        }
    }
}

impl Item {
    /// Whether the argument is absent.
    pub fn is_none(&self) -> bool {
        matches!(self, Item::None)
    }

    /// A size.
    pub fn dim(&self) -> Result<Dim, String> {
        match self {
            Item::Size(dim) => Ok(*dim),
            Item::Bool(flag) => Ok(Dim::Fixed(i64::from(*flag))),
            other => Err(format!("{other:?} where a size is expected")),
        }
    }

    /// A whole number known now.
    pub fn int(&self) -> Result<i64, String> {
        self.dim()?
            .fixed()
            .ok_or_else(|| format!("{self:?} where a fixed number is expected"))
    }

    /// A whole number, or the default when absent.
    pub fn int_or(&self, default: i64) -> Result<i64, String> {
        if self.is_none() {
            Ok(default)
        } else {
            self.int()
        }
    }

    /// A flag, or the default when absent.
    pub fn bool_or(&self, default: bool) -> Result<bool, String> {
        match self {
            Item::None => Ok(default),
            Item::Bool(flag) => Ok(*flag),
            other => Err(format!("{other:?} where a flag is expected")),
        }
    }

    /// A number.
    pub fn float(&self) -> Result<f64, String> {
        match self {
            Item::Float(value) => Ok(*value),
            Item::Size(Dim::Fixed(value)) => Ok(*value as f64),
            Item::Bool(flag) => Ok(f64::from(u8::from(*flag))),
            other => Err(format!("{other:?} where a number is expected")),
        }
    }

    /// A number, or the default when absent.
    pub fn float_or(&self, default: f64) -> Result<f64, String> {
        if self.is_none() {
            Ok(default)
        } else {
            self.float()
        }
    }

    /// A constant.
    pub fn scalar(&self) -> Result<Scalar, String> {
        match self {
            Item::Float(value) => Ok(Scalar::Float(crate::ir::Float::new(*value))),
            Item::Size(Dim::Fixed(value)) => Ok(Scalar::Int(*value)),
            Item::Size(dim) => Ok(Scalar::Size(*dim)),
            Item::Bool(flag) => Ok(Scalar::Bool(*flag)),
            other => Err(format!("{other:?} where a constant is expected")),
        }
    }

    /// The items of a list; a lone number counts as a list of one.
    pub fn list(&self) -> Result<&[Item], String> {
        match self {
            Item::Tuple(items) => Ok(items),
            Item::None => Ok(&[]),
            Item::Size(_) => Ok(std::slice::from_ref(self)),
            other => Err(format!("{other:?} where a list is expected")),
        }
    }

    /// Sizes.
    pub fn dims(&self) -> Result<Vec<Dim>, String> {
        self.list()?.iter().map(Item::dim).collect()
    }

    /// An axis, counted from the end when negative.
    pub fn axis(&self, rank: usize, default: i64) -> Result<usize, String> {
        normalise_axis(self.int_or(default)?, rank)
    }

    /// Axes; absent or empty means all.
    pub fn axes(&self, rank: usize) -> Result<Vec<usize>, String> {
        let items = self.list()?;
        if items.is_empty() {
            return Ok((0..rank).collect());
        }
        items
            .iter()
            .map(|item| normalise_axis(item.int()?, rank))
            .collect()
    }
}

/// A size that has to be known.
pub fn fixed(dim: Dim) -> Result<i64, String> {
    dim.fixed()
        .ok_or_else(|| format!("the symbolic size {dim} where a fixed one is expected"))
}

/// An axis from PyTorch's convention; rank 0 has one axis there.
pub fn normalise_axis(axis: i64, rank: usize) -> Result<usize, String> {
    let bound = rank.max(1) as i64;
    let positive = if axis < 0 { axis + bound } else { axis };
    if (0..bound).contains(&positive) {
        Ok(positive as usize)
    } else {
        Err(format!("axis {axis} of a rank {rank} tensor"))
    }
}
