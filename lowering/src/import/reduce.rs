// SPDX-License-Identifier: Apache-2.0
//! Reductions.

use super::call::{Call, Item};
use super::dispatch::{Claims, Lowered};
use super::formula::Formula;
use super::graph::Importer;
use crate::ir::{Binary, DType, Dim, Op, Reduction, Unary, Value, product};

/// Claims that are a reduction of the IR.
macro_rules! reductions {
    ($lower:ident: $($target:literal => $function:ident,)*) => {
        &[$(($target, |importer, call| $lower(importer, call, Reduction::$function))),*]
    };
}

/// Reductions of the IR.
pub const PLAIN: Claims = reductions! { reduce:
    "aten.sum.default" => Sum,
    "aten.sum.dim_IntList" => Sum,
    "aten.mean.default" => Mean,
    "aten.mean.dim" => Mean,
    "aten.amax.default" => Max,
    "aten.max.default" => Max,
    "aten.amin.default" => Min,
    "aten.min.default" => Min,
    "aten.prod.default" => Prod,
    "aten.prod.dim_int" => Prod,
    "aten.all.default" => All,
    "aten.all.dim" => All,
    "aten.all.dims" => All,
    "aten.any.default" => Any,
    "aten.any.dim" => Any,
    "aten.any.dims" => Any,
};

/// Those whose value is an index.
pub const INDICES: Claims = reductions! { arg_reduce:
    "aten.argmax.default" => Argmax,
    "aten.argmin.default" => Argmin,
};

/// Other reductions.
pub const CLAIMS: Claims = &[
    ("aten.aminmax.default", aminmax),
    ("aten.count_nonzero.default", count_nonzero),
    ("aten.count_nonzero.dim_IntList", count_nonzero),
    ("aten.logsumexp.default", logsumexp),
    ("aten.max.dim", |i, call| {
        reduce_with_indices(i, call, Reduction::Max, Reduction::Argmax)
    }),
    ("aten.min.dim", |i, call| {
        reduce_with_indices(i, call, Reduction::Min, Reduction::Argmin)
    }),
    ("aten.nansum.default", nansum),
    ("aten.trace.default", trace),
];

/// A tensor along one axis. One without axes has one of size 1 here, as in PyTorch.
pub struct Line {
    pub value: Value,
    pub axis: usize,
    scalar: bool,
}

impl Line {
    /// The tensor along the axis that `dim` names.
    pub fn new(
        importer: &mut Importer,
        x: Value,
        dim: &Item,
        default: i64,
    ) -> Result<Line, String> {
        let rank = importer.builder.shape(x).len();
        let axis = dim.axis(rank, default)?;
        let value = match rank {
            0 => importer.builder.reshape(x, vec![Dim::Fixed(1)])?,
            _ => x,
        };
        Ok(Line {
            value,
            axis,
            scalar: rank == 0,
        })
    }

    /// Another tensor along the same axis.
    pub fn of(&self, value: Value) -> Line {
        Line { value, ..*self }
    }

    /// Size of the axis.
    pub fn length(&self, importer: &Importer) -> Dim {
        importer.builder.shape(self.value)[self.axis]
    }

    /// A result of the tensor's rank, without the axis that was added.
    pub fn close(&self, importer: &mut Importer, result: Value) -> Result<Value, String> {
        match self.scalar {
            true => importer.builder.reshape(result, vec![]),
            false => Ok(result),
        }
    }
}

/// The operand cast, and the axes that `dim` names in it.
pub fn operand(
    importer: &mut Importer,
    x: &Item,
    dim: &Item,
    dtype: DType,
) -> Result<(Value, Vec<usize>), String> {
    let value = importer.value(x)?;
    let value = importer.builder.cast(value, dtype)?;
    let rank = importer.builder.shape(value).len();
    let axes = dim.axes(rank)?;
    Ok((value, if rank == 0 { Vec::new() } else { axes }))
}

fn reduce(importer: &mut Importer, call: &Call, function: Reduction) -> Lowered {
    let [x, dim, keepdim, _] = call.bind(["self", "dim", "keepdim", "dtype"])?;
    let dtype = call.result_dtype()?;
    let compute = match function {
        Reduction::All | Reduction::Any => DType::Bool,
        _ => dtype,
    };
    let (value, axes) = operand(importer, &x, &dim, compute)?;
    let keepdims = keepdim.bool_or(false)?;
    let result = extreme_of_bools(importer, function, value, &axes, keepdims)?;
    let result = importer.builder.cast(result, dtype)?;
    Ok(importer.fresh(result))
}

/// A reduction; the largest boolean is whether there is any true one.
fn extreme_of_bools(
    importer: &mut Importer,
    function: Reduction,
    value: Value,
    axes: &[usize],
    keepdims: bool,
) -> Result<Value, String> {
    let function = match (importer.builder.dtype(value), function) {
        (DType::Bool, Reduction::Max) => Reduction::Any,
        (DType::Bool, Reduction::Min) => Reduction::All,
        (_, function) => function,
    };
    importer
        .builder
        .reduce(function, value, axes.to_vec(), keepdims)
}

fn aminmax(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, dim, keepdim] = call.bind(["self", "dim", "keepdim"])?;
    let dtype = tensor_dtype(importer, &x)?;
    let (value, axes) = operand(importer, &x, &dim, dtype)?;
    let keepdims = keepdim.bool_or(false)?;
    let low = extreme_of_bools(importer, Reduction::Min, value, &axes, keepdims)?;
    let high = extreme_of_bools(importer, Reduction::Max, value, &axes, keepdims)?;
    Ok(Item::Tuple(vec![importer.fresh(low), importer.fresh(high)]))
}

pub fn tensor_dtype(importer: &mut Importer, x: &Item) -> Result<DType, String> {
    let value = importer.value(x)?;
    Ok(importer.builder.dtype(value))
}

/// Booleans compare as numbers do.
pub fn comparable(importer: &mut Importer, x: Value) -> Result<Value, String> {
    match importer.builder.dtype(x) {
        DType::Bool => importer.builder.cast(x, DType::Int32),
        _ => Ok(x),
    }
}

fn arg_reduce(importer: &mut Importer, call: &Call, function: Reduction) -> Lowered {
    let [x, dim, keepdim] = call.bind(["self", "dim", "keepdim"])?;
    let value = importer.value(&x)?;
    let mut value = comparable(importer, value)?;
    let shape = importer.builder.shape(value).to_vec();
    let keepdims = keepdim.bool_or(false)?;
    if dim.is_none() {
        let total = product(&shape).ok_or("a size that overflows")?;
        value = importer.builder.reshape(value, vec![total])?;
    }
    let line = Line::new(importer, value, &dim, 0)?;
    let result = importer
        .builder
        .reduce(function, line.value, vec![line.axis], false)?;
    let mut result_shape = match dim.is_none() {
        true => vec![Dim::Fixed(1); shape.len()],
        false => shape,
    };
    match (keepdims, dim.is_none()) {
        (true, false) if !result_shape.is_empty() => result_shape[line.axis] = Dim::Fixed(1),
        (false, true) => result_shape.clear(),
        (false, false) if !result_shape.is_empty() => {
            result_shape.remove(line.axis);
        }
        _ => {}
    }
    let result = importer.builder.reshape(result, result_shape)?;
    Ok(importer.fresh(result))
}

fn reduce_with_indices(
    importer: &mut Importer,
    call: &Call,
    of: Reduction,
    index: Reduction,
) -> Lowered {
    let [x, dim, keepdim] = call.bind(["self", "dim", "keepdim"])?;
    let value = importer.value(&x)?;
    let line = Line::new(importer, value, &dim, 0)?;
    let keepdims = keepdim.bool_or(false)?;
    let axes = [line.axis];
    let best = extreme_of_bools(importer, of, line.value, &axes, keepdims)?;
    let keys = comparable(importer, line.value)?;
    let place = importer
        .builder
        .reduce(index, keys, axes.to_vec(), keepdims)?;
    let (best, place) = match line.scalar {
        true => (
            importer.builder.reshape(best, vec![])?,
            importer.builder.reshape(place, vec![])?,
        ),
        false => (best, place),
    };
    Ok(Item::Tuple(vec![
        importer.fresh(best),
        importer.fresh(place),
    ]))
}

impl Importer<'_> {
    /// `0, 1, ..` in int64.
    pub fn range(&mut self, length: Dim) -> Result<Value, String> {
        self.affine_range(Dim::Fixed(0), 1, length)
    }

    /// `start + step * i` in int64.
    pub fn affine_range(&mut self, start: Dim, step: i64, length: Dim) -> Result<Value, String> {
        let value = crate::ir::TensorType {
            dtype: DType::Int64,
            shape: vec![length],
        };
        value.check_sizes()?;
        let op = Op::Arange {
            start,
            step,
            length,
        };
        let node = self.builder.node(op, &[], vec![value]);
        Ok(Value { node, output: 0 })
    }

    /// Each element's index along the axis, in int64 and of the shape of `x`.
    pub fn positions(&mut self, x: Value, axis: usize) -> Result<Value, String> {
        let shape = self.builder.shape(x).to_vec();
        let range = self.range(shape[axis])?;
        let mut column = vec![Dim::Fixed(1); shape.len()];
        column[axis] = shape[axis];
        let column = self.builder.reshape(range, column)?;
        self.builder.broadcast(column, shape)
    }
}

fn nansum(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, dim, keepdim, _] = call.bind(["self", "dim", "keepdim", "dtype"])?;
    let dtype = call.result_dtype()?;
    let (mut value, axes) = operand(importer, &x, &dim, dtype)?;
    if dtype.is_float() {
        let x = Formula::Value(value);
        value = importer.formula(&x.clone().nan().choose(0.0, x), dtype)?;
    }
    let keepdims = keepdim.bool_or(false)?;
    let result = importer
        .builder
        .reduce(Reduction::Sum, value, axes, keepdims)?;
    Ok(importer.fresh(result))
}

fn count_nonzero(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, dim] = call.bind(["self", "dim"])?;
    let (value, axes) = operand(importer, &x, &dim, DType::Bool)?;
    let ones = importer.builder.cast(value, DType::Int64)?;
    let result = importer.builder.reduce(Reduction::Sum, ones, axes, false)?;
    Ok(importer.fresh(result))
}

fn trace(importer: &mut Importer, call: &Call) -> Lowered {
    let [x] = call.bind(["self"])?;
    let diagonal = super::diagonal::diagonal_view(importer, &x, 0, 0, 1)?;
    let value = importer.value(&diagonal)?;
    let value = importer.builder.cast(value, call.result_dtype()?)?;
    let result = importer
        .builder
        .reduce(Reduction::Sum, value, vec![0], false)?;
    Ok(importer.fresh(result))
}

/// `log(sum(exp(x)))`, relative to the largest element, or to 0 where that is infinite.
fn logsumexp(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, dim, keepdim] = call.bind(["self", "dim", "keepdim"])?;
    let dtype = call.result_dtype()?;
    let (value, axes) = operand(importer, &x, &dim, DType::Float32)?;
    let keepdims = keepdim.bool_or(false)?;
    let shape = importer.builder.shape(value);
    let empty = axes.iter().any(|axis| shape[*axis] == Dim::Fixed(0));
    let builder = &mut importer.builder;
    let shifted = if empty {
        value
    } else {
        let peak = builder.reduce(Reduction::Max, value, axes.clone(), true)?;
        let peak = Formula::Value(peak);
        let peak = peak.clone().infinite().choose(0.0, peak);
        let peak = importer.formula(&peak, DType::Float32)?;
        let shifted = importer.builder.binary(Binary::Sub, value, peak)?;
        let powers = importer.builder.unary(Unary::Exp, shifted)?;
        let builder = &mut importer.builder;
        let total = builder.reduce(Reduction::Sum, powers, axes.clone(), keepdims)?;
        let log = builder.unary(Unary::Log, total)?;
        let shape = builder.shape(log).to_vec();
        let peak = builder.reshape(peak, shape)?;
        let result = builder.binary(Binary::Add, log, peak)?;
        let result = builder.cast(result, dtype)?;
        return Ok(importer.fresh(result));
    };
    let total = builder.reduce(Reduction::Sum, shifted, axes, keepdims)?;
    let log = builder.unary(Unary::Log, total)?;
    let result = builder.cast(log, dtype)?;
    Ok(importer.fresh(result))
}
