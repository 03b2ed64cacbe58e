// SPDX-License-Identifier: Apache-2.0
//! Values of the interpreter.

use super::round::{round_float, wrap};
use crate::ir::{DType, Scalar};

/// Elements above which a tensor is refused: the interpreter is for small cases.
const MAX_ELEMENTS: usize = 1 << 24;

/// A dense tensor in row-major order.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub dtype: DType,
    pub shape: Vec<usize>,
    pub data: Data,
}

/// Elements: floats of any width as float64, which holds them all; whole numbers and booleans as `i64`.
#[derive(Clone, Debug)]
pub enum Data {
    Float(Vec<f64>),
    Int(Vec<i64>),
}

impl Tensor {
    /// A float tensor; elements are rounded to the dtype.
    pub fn floats(dtype: DType, shape: Vec<usize>, values: Vec<f64>) -> Tensor {
        let values = values.into_iter().map(|x| round_float(dtype, x)).collect();
        Tensor {
            dtype,
            shape,
            data: Data::Float(values),
        }
    }

    /// A tensor of whole numbers; elements are wrapped into the dtype.
    pub fn ints(dtype: DType, shape: Vec<usize>, values: Vec<i64>) -> Tensor {
        let values = values.into_iter().map(|x| wrap(dtype, x.into())).collect();
        Tensor {
            dtype,
            shape,
            data: Data::Int(values),
        }
    }

    /// Every element the value.
    pub fn full(dtype: DType, shape: Vec<usize>, value: Number) -> Result<Tensor, String> {
        let count = elements(&shape)?;
        Ok(if dtype.is_float() {
            Tensor::floats(dtype, shape, vec![value.float(); count])
        } else {
            Tensor::ints(dtype, shape, vec![value.int(dtype); count])
        })
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements as floats.
    pub fn to_f64(&self) -> Vec<f64> {
        match &self.data {
            Data::Float(values) => values.clone(),
            Data::Int(values) => values.iter().map(|x| *x as f64).collect(),
        }
    }

    /// The elements of a float tensor.
    pub(super) fn as_floats(&self) -> Result<&[f64], String> {
        match &self.data {
            Data::Float(values) => Ok(values),
            Data::Int(_) => Err(format!("{} where floats are expected", self.dtype)),
        }
    }

    /// The elements of a tensor of whole numbers or booleans.
    pub(super) fn as_ints(&self) -> Result<&[i64], String> {
        match &self.data {
            Data::Int(values) => Ok(values),
            Data::Float(_) => Err(format!("{} where whole numbers are expected", self.dtype)),
        }
    }

    /// A tensor of that shape whose element at an index is this one's at `source(index)`, or `fill`.
    pub(super) fn rearrange(
        &self,
        shape: Vec<usize>,
        fill: Number,
        mut source: impl FnMut(&[usize]) -> Result<Option<Vec<usize>>, String>,
    ) -> Result<Tensor, String> {
        let mut places = Vec::with_capacity(elements(&shape)?);
        for index in indices(&shape) {
            let place = source(&index)?;
            places.push(match place {
                Some(place) => Some(offset(&place, &self.shape)?),
                None => None,
            });
        }
        let data = match &self.data {
            Data::Float(values) => {
                let fill = round_float(self.dtype, fill.float());
                Data::Float(pick(values, &places, fill))
            }
            Data::Int(values) => Data::Int(pick(values, &places, fill.int(self.dtype))),
        };
        Ok(Tensor {
            dtype: self.dtype,
            shape,
            data,
        })
    }

    /// Broadcast to a shape by NumPy's rule.
    pub(super) fn broadcast(&self, shape: &[usize]) -> Result<Tensor, String> {
        let lead = shape
            .len()
            .checked_sub(self.shape.len())
            .ok_or("a broadcast to a lower rank")?;
        for (own, wanted) in self.shape.iter().zip(&shape[lead..]) {
            if own != wanted && *own != 1 {
                return Err(format!("{:?} does not broadcast to {shape:?}", self.shape));
            }
        }
        self.rearrange(shape.to_vec(), Number::ZERO, |index| {
            let own = index[lead..].iter().zip(&self.shape);
            Ok(Some(
                own.map(|(i, size)| if *size == 1 { 0 } else { *i })
                    .collect(),
            ))
        })
    }
}

fn pick<T: Copy>(values: &[T], places: &[Option<usize>], fill: T) -> Vec<T> {
    let value = |place: &Option<usize>| place.and_then(|place| values.get(place).copied());
    places
        .iter()
        .map(|place| value(place).unwrap_or(fill))
        .collect()
}

/// Number of elements of a shape, if the interpreter takes so many.
pub(super) fn elements(shape: &[usize]) -> Result<usize, String> {
    shape
        .iter()
        .try_fold(1usize, |total, size| total.checked_mul(*size))
        .filter(|total| *total <= MAX_ELEMENTS)
        .ok_or_else(|| format!("{shape:?} is too large to interpret"))
}

/// All indices of a shape in row-major order.
pub(super) fn indices(shape: &[usize]) -> impl Iterator<Item = Vec<usize>> + use<> {
    let shape = shape.to_vec();
    let total: usize = shape.iter().product();
    (0..total).map(move |mut rest| {
        let mut index = vec![0; shape.len()];
        for axis in (0..shape.len()).rev() {
            index[axis] = rest % shape[axis];
            rest /= shape[axis];
        }
        index
    })
}

/// Position of an index in row-major order.
pub(super) fn offset(index: &[usize], shape: &[usize]) -> Result<usize, String> {
    if index.len() != shape.len() || index.iter().zip(shape).any(|(i, size)| i >= size) {
        return Err(format!("element {index:?} of shape {shape:?}"));
    }
    Ok(index
        .iter()
        .zip(shape)
        .fold(0, |total, (i, size)| total * size + i))
}

/// A constant.
#[derive(Clone, Copy, Debug)]
pub enum Number {
    Float(f64),
    Int(i64),
}

impl Number {
    pub(super) const ZERO: Number = Number::Int(0);

    /// The constant under a binding of the symbols.
    pub(super) fn of(scalar: Scalar, symbols: &[i64]) -> Result<Number, String> {
        Ok(match scalar {
            Scalar::Bool(flag) => Number::Int(flag.into()),
            Scalar::Int(value) => Number::Int(value),
            Scalar::Float(value) => Number::Float(value.get()),
            Scalar::Size(dim) => Number::Int(dim.eval(symbols).ok_or("an unbound size")?),
        })
    }

    fn float(self) -> f64 {
        match self {
            Number::Float(value) => value,
            Number::Int(value) => value as f64,
        }
    }

    fn int(self, dtype: DType) -> i64 {
        match self {
            Number::Float(value) if dtype == DType::Bool => (value != 0.0).into(),
            Number::Float(value) => wrap(dtype, (value as i64).into()),
            Number::Int(value) => wrap(dtype, value.into()),
        }
    }
}
