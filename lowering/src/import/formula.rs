// SPDX-License-Identifier: Apache-2.0
//! Formulas: pointwise operators that are several of the IR's. Sixteen-bit floats are computed in
//! float32 and rounded once, as PyTorch computes them.

use super::call::{Call, Item};
use super::graph::Importer;
use super::promote::{Operand, materialise, operand, promote};
use crate::ir::{Binary, DType, Float, Op, Scalar, Unary, Value};
use std::ops::{Add, Div, Mul, Neg, Not, Sub};

/// An expression over values of one dtype, which its numbers take, and over conditions.
#[derive(Clone)]
pub enum Formula {
    Value(Value),
    Number(f64),
    Unary(Unary, Box<Formula>),
    Binary(Binary, Box<Formula>, Box<Formula>),
    Where(Box<[Formula; 3]>),
    /// A condition as 0 or 1.
    Indicator(Box<Formula>),
}

impl From<f64> for Formula {
    fn from(value: f64) -> Formula {
        Formula::Number(value)
    }
}

impl From<Value> for Formula {
    fn from(value: Value) -> Formula {
        Formula::Value(value)
    }
}

macro_rules! operators {
    ($($name:ident $method:ident $function:ident,)*) => {
        $(
            impl<T: Into<Formula>> $name<T> for Formula {
                type Output = Formula;
                fn $method(self, other: T) -> Formula {
                    self.with(Binary::$function, other)
                }
            }
        )*
    };
}
operators! { Add add Add, Sub sub Sub, Mul mul Mul, Div div Div, }

macro_rules! functions {
    ($($method:ident $function:ident,)*) => {
        $(
            #[doc = concat!("[`Unary::", stringify!($function), "`]")]
            pub fn $method(self) -> Formula {
                Formula::Unary(Unary::$function, Box::new(self))
            }
        )*
    };
}

macro_rules! relations {
    ($($method:ident $function:ident,)*) => {
        $(
            #[doc = concat!("[`Binary::", stringify!($function), "`]")]
            pub fn $method(self, other: impl Into<Formula>) -> Formula {
                self.with(Binary::$function, other)
            }
        )*
    };
}

impl Neg for Formula {
    type Output = Formula;
    fn neg(self) -> Formula {
        Formula::Unary(Unary::Neg, Box::new(self))
    }
}

impl Not for Formula {
    type Output = Formula;
    fn not(self) -> Formula {
        Formula::Unary(Unary::LogicalNot, Box::new(self))
    }
}

impl Formula {
    functions! {
        abs Abs, square Square, sqrt Sqrt, exp Exp, expm1 Expm1, log Log, log1p Log1p,
        sin Sin, tanh Tanh, erf Erf, floor Floor, ceil Ceil, round Round, sigmoid Sigmoid,
        softplus Softplus, nan Isnan, infinite Isinf,
    }
    relations! {
        maximum Maximum, minimum Minimum, pow Pow, remainder Remainder, floor_divide FloorDivide,
        equal Equal, less Less, less_equal LessEqual, greater Greater, greater_equal GreaterEqual,
        and LogicalAnd, or LogicalOr, xor LogicalXor,
    }

    fn with(self, function: Binary, other: impl Into<Formula>) -> Formula {
        Formula::Binary(function, Box::new(self), Box::new(other.into()))
    }

    /// `self` is the condition.
    pub fn choose(self, then: impl Into<Formula>, otherwise: impl Into<Formula>) -> Formula {
        Formula::Where(Box::new([self, then.into(), otherwise.into()]))
    }

    /// A condition as 0 or 1.
    pub fn indicator(self) -> Formula {
        Formula::Indicator(Box::new(self))
    }

    /// Rounds towards 0.
    pub fn trunc(self) -> Formula {
        let below = self.clone().less(0.0);
        below.choose(self.clone().ceil(), self.floor())
    }

    /// Whether the sign bit of a number is set; a negative zero has it.
    pub fn sign_bit(self) -> Formula {
        let zero = self.clone().equal(0.0);
        let inverse = Formula::Number(1.0) / self.clone();
        self.less(0.0).or(zero.and(inverse.less(0.0)))
    }
}

impl Importer<'_> {
    /// The formula's value, its numbers in the dtype.
    pub fn formula(&mut self, formula: &Formula, dtype: DType) -> Result<Value, String> {
        Ok(match formula {
            Formula::Value(value) => *value,
            Formula::Number(number) => {
                let scalar = match dtype.is_float() {
                    true => Scalar::Float(Float::new(*number)),
                    false => Scalar::Int(*number as i64),
                };
                self.builder.scalar(scalar, dtype)
            }
            Formula::Unary(function, x) => {
                let x = self.formula(x, dtype)?;
                self.builder.unary(*function, x)?
            }
            Formula::Binary(function, x, y) => {
                let (x, y) = (self.formula(x, dtype)?, self.formula(y, dtype)?);
                self.builder.binary(*function, x, y)?
            }
            Formula::Where(parts) => {
                let [condition, x, y] = parts.as_ref();
                let condition = self.formula(condition, dtype)?;
                let (x, y) = (self.formula(x, dtype)?, self.formula(y, dtype)?);
                self.builder.add(Op::Where, &[condition, x, y])?
            }
            Formula::Indicator(condition) => {
                let condition = self.formula(condition, dtype)?;
                self.builder.cast(condition, dtype)?
            }
        })
    }

    /// `f` of tensors and numbers in PyTorch's arithmetic: promoted, computed and cast to the
    /// call's result.
    pub fn compute<const N: usize>(
        &mut self,
        call: &Call,
        items: [&Item; N],
        f: impl FnOnce([Formula; N]) -> Formula,
    ) -> Result<Item, String> {
        let result = call.result_dtype()?;
        let value = self.compute_value(items, result, f)?;
        Ok(self.fresh(value))
    }

    /// As [`Importer::compute`], with the result's dtype given.
    pub fn compute_value<const N: usize>(
        &mut self,
        items: [&Item; N],
        result: DType,
        f: impl FnOnce([Formula; N]) -> Formula,
    ) -> Result<Value, String> {
        let mut operands = Vec::with_capacity(N);
        for item in items {
            operands.push(operand(self, item)?);
        }
        let dtype = compute_dtype(self, &operands, result)?;
        let mut formulas = Vec::with_capacity(N);
        for operand in &operands {
            formulas.push(Formula::Value(materialise(self, operand, dtype)?));
        }
        let formulas: [Formula; N] = formulas.try_into().map_err(|_| "an operand is missing")?;
        let value = self.formula(&f(formulas), dtype)?;
        self.builder.cast(value, result)
    }
}

/// The dtype to compute in: that of the operands, or of a floating result of whole numbers; float32
/// for sixteen-bit floats.
fn compute_dtype(
    importer: &Importer,
    operands: &[Operand],
    result: DType,
) -> Result<DType, String> {
    let promoted = promote(importer, operands)?;
    let dtype = match result.is_float() && !promoted.is_float() {
        true => result,
        false => promoted,
    };
    Ok(match dtype.is_half() {
        true => DType::Float32,
        false => dtype,
    })
}
