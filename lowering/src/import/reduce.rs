// SPDX-License-Identifier: Apache-2.0
//! Reductions and scans.

use super::call::{Call, Item};
use super::dispatch::Claims;
use super::formula::Formula;
use super::graph::Importer;
use crate::ir::{Binary, DType, Dim, Op, Reduction, Scalar, Scan, Unary, Value, product};

type Lowered = Result<Item, String>;

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
    ("aten.cummax.default", |i, call| {
        extremes(i, call, Scan::Max)
    }),
    ("aten.cummin.default", |i, call| {
        extremes(i, call, Scan::Min)
    }),
    ("aten.dist.default", dist),
    ("aten.linalg_vector_norm.default", vector_norm),
    ("aten.logcumsumexp.default", logcumsumexp),
    ("aten.logsumexp.default", logsumexp),
    ("aten.max.dim", |i, call| {
        reduce_with_indices(i, call, Reduction::Max, Reduction::Argmax)
    }),
    ("aten.min.dim", |i, call| {
        reduce_with_indices(i, call, Reduction::Min, Reduction::Argmin)
    }),
    ("aten.nansum.default", nansum),
    ("aten.norm.Scalar", vector_norm),
    ("aten.norm.ScalarOpt_dim", vector_norm),
    ("aten.norm.ScalarOpt_dim_dtype", vector_norm),
    ("aten.norm.ScalarOpt_dtype", vector_norm),
    ("aten.std.correction", |i, call| spread(i, call, true)),
    ("aten.std_mean.correction", |i, call| {
        spread_and_mean(i, call, true)
    }),
    ("aten.trace.default", trace),
    ("aten.var.correction", |i, call| spread(i, call, false)),
    ("aten.var_mean.correction", |i, call| {
        spread_and_mean(i, call, false)
    }),
];

/// Scans have an in-place form.
pub const WITH_IN_PLACE: Claims = &[
    ("aten.cumprod.default", |i, call| scan(i, call, Scan::Prod)),
    ("aten.cumsum.default", |i, call| scan(i, call, Scan::Sum)),
    ("aten.renorm.default", renorm),
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
fn operand(
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

fn tensor_dtype(importer: &mut Importer, x: &Item) -> Result<DType, String> {
    let value = importer.value(x)?;
    Ok(importer.builder.dtype(value))
}

/// Booleans compare as numbers do.
fn comparable(importer: &mut Importer, x: Value) -> Result<Value, String> {
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

fn scan(importer: &mut Importer, call: &Call, function: Scan) -> Lowered {
    let [x, dim, _] = call.bind(["self", "dim", "dtype"])?;
    let value = importer.value(&x)?;
    let value = importer.builder.cast(value, call.result_dtype()?)?;
    let line = Line::new(importer, value, &dim, 0)?;
    let op = Op::Scan {
        function,
        axis: line.axis,
    };
    let result = importer.builder.add(op, &[line.value])?;
    let result = line.close(importer, result)?;
    Ok(importer.fresh(result))
}

/// `log(cumsum(exp(x)))`: sums of 2, 4, 8.. elements, each of two that were added before (Hillis &
/// Steele 1986), so that no exponential is of more than the distance of two sums.
fn logcumsumexp(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, dim] = call.bind(["self", "dim"])?;
    let dtype = call.result_dtype()?;
    let value = importer.value(&x)?;
    let value = importer.builder.cast(value, DType::Float32)?;
    let mut line = Line::new(importer, value, &dim, 0)?;
    let length = line.length(importer).fixed();
    let length = length.ok_or("a running sum of a symbolic size")?;
    let axis = line.axis;
    let mut reach = 1;
    while reach < length {
        let mut low = vec![0; importer.builder.shape(line.value).len()];
        let high = low.clone();
        low[axis] = reach;
        let stop = Dim::Fixed(length - reach);
        let before = importer
            .builder
            .slice(line.value, axis, Dim::Fixed(0), stop, 1)?;
        let value = Scalar::Float(crate::ir::Float::new(f64::NEG_INFINITY));
        let before = importer
            .builder
            .add(Op::Pad { low, high, value }, &[before])?;
        let sum = super::special::log_add(line.value.into(), before.into(), 1.0);
        line.value = importer.formula(&sum, DType::Float32)?;
        reach *= 2;
    }
    let result = line.close(importer, line.value)?;
    let result = importer.builder.cast(result, dtype)?;
    Ok(importer.fresh(result))
}

/// Running extremes, and where the latest of them stood: an element that equals the extreme so far
/// is the latest, and the largest index up to here is the latest's.
fn extremes(importer: &mut Importer, call: &Call, function: Scan) -> Lowered {
    let [x, dim] = call.bind(["self", "dim"])?;
    let value = importer.value(&x)?;
    let dtype = importer.builder.dtype(value);
    let value = comparable(importer, value)?;
    let line = Line::new(importer, value, &dim, 0)?;
    let axis = line.axis;
    let running = importer
        .builder
        .add(Op::Scan { function, axis }, &[line.value])?;
    let here = Formula::Value(line.value);
    let mut is_extreme = here.clone().equal(running);
    if importer.builder.dtype(line.value).is_float() {
        is_extreme = is_extreme.or(here.nan());
    }
    let is_extreme = importer.formula(&is_extreme, dtype)?;
    let positions = importer.positions(line.value, axis)?;
    let zero = importer.builder.scalar(Scalar::Int(0), DType::Int64);
    let marked = importer
        .builder
        .add(Op::Where, &[is_extreme, positions, zero])?;
    let latest = Op::Scan {
        function: Scan::Max,
        axis,
    };
    let places = importer.builder.add(latest, &[marked])?;
    let running = importer.builder.cast(running, dtype)?;
    let (running, places) = (
        line.close(importer, running)?,
        line.close(importer, places)?,
    );
    Ok(Item::Tuple(vec![
        importer.fresh(running),
        importer.fresh(places),
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
    let diagonal = super::movement::diagonal_view(importer, &x, 0, 0, 1)?;
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

/// Variance and mean over the axes, in float32.
fn moments(
    importer: &mut Importer,
    x: &Item,
    dim: &Item,
    correction: &Item,
    keepdims: bool,
) -> Result<(Value, Value), String> {
    let (value, axes) = operand(importer, x, dim, DType::Float32)?;
    let correction = correction.float_or(1.0)?;
    let builder = &mut importer.builder;
    let sizes: Vec<Dim> = axes
        .iter()
        .map(|axis| builder.shape(value)[*axis])
        .collect();
    let count = product(&sizes).ok_or("a size that overflows")?;
    let count = builder.scalar(Scalar::Size(count), DType::Float32);
    let mean = builder.reduce(Reduction::Mean, value, axes.clone(), true)?;
    let centred = builder.binary(Binary::Sub, value, mean)?;
    let square = builder.unary(Unary::Square, centred)?;
    let total = builder.reduce(Reduction::Sum, square, axes, keepdims)?;
    let shape = builder.shape(total).to_vec();
    let mean = builder.reshape(mean, shape)?;
    let divisor = (Formula::Value(count) - correction).maximum(0.0);
    let variance = importer.formula(&(Formula::Value(total) / divisor), DType::Float32)?;
    Ok((variance, mean))
}

fn spread(importer: &mut Importer, call: &Call, root: bool) -> Lowered {
    let [x, dim, correction, keepdim] = call.bind(["self", "dim", "correction", "keepdim"])?;
    let dtype = call.result_dtype()?;
    let (mut value, _) = moments(importer, &x, &dim, &correction, keepdim.bool_or(false)?)?;
    if root {
        value = importer.builder.unary(Unary::Sqrt, value)?;
    }
    let value = importer.builder.cast(value, dtype)?;
    Ok(importer.fresh(value))
}

fn spread_and_mean(importer: &mut Importer, call: &Call, root: bool) -> Lowered {
    let [x, dim, correction, keepdim] = call.bind(["self", "dim", "correction", "keepdim"])?;
    let dtype = tensor_dtype(importer, &x)?;
    let (mut value, mean) = moments(importer, &x, &dim, &correction, keepdim.bool_or(false)?)?;
    if root {
        value = importer.builder.unary(Unary::Sqrt, value)?;
    }
    let (value, mean) = (
        importer.builder.cast(value, dtype)?,
        importer.builder.cast(mean, dtype)?,
    );
    Ok(Item::Tuple(vec![
        importer.fresh(value),
        importer.fresh(mean),
    ]))
}

/// The norm of order `p` over the axes of a float32 value.
pub fn norm(
    importer: &mut Importer,
    value: Value,
    p: f64,
    axes: Vec<usize>,
    keepdims: bool,
) -> Result<Value, String> {
    let x = Formula::Value(value);
    let (terms, function) = match p {
        0.0 => (
            x.clone().equal(0.0).choose(0.0, Formula::Number(1.0)),
            Reduction::Sum,
        ),
        1.0 => (x.abs(), Reduction::Sum),
        2.0 => (x.square(), Reduction::Sum),
        f64::INFINITY => (x.abs(), Reduction::Max),
        f64::NEG_INFINITY => (x.abs(), Reduction::Min),
        p => (x.abs().pow(p), Reduction::Sum),
    };
    let terms = importer.formula(&terms, DType::Float32)?;
    let total = importer.builder.reduce(function, terms, axes, keepdims)?;
    if p == 0.0 || p == 1.0 || p.is_infinite() {
        return Ok(total);
    }
    let total = Formula::Value(total);
    let root = match p {
        2.0 => total.sqrt(),
        p => total.pow(1.0 / p),
    };
    importer.formula(&root, DType::Float32)
}

fn vector_norm(importer: &mut Importer, call: &Call) -> Lowered {
    let order = match call.target() {
        "aten.linalg_vector_norm.default" => "ord",
        _ => "p",
    };
    let bound = match call.target() {
        "aten.norm.ScalarOpt_dtype" => {
            let [x, order, dtype] = call.bind(["self", order, "dtype"])?;
            [x, order, Item::None, Item::None, dtype]
        }
        _ => call.bind(["self", order, "dim", "keepdim", "dtype"])?,
    };
    let [x, order, dim, keepdim, _] = bound;
    let dtype = call.result_dtype()?;
    let (value, axes) = operand(importer, &x, &dim, DType::Float32)?;
    let order = order.float_or(2.0)?;
    let result = norm(importer, value, order, axes, keepdim.bool_or(false)?)?;
    let result = importer.builder.cast(result, dtype)?;
    Ok(importer.fresh(result))
}

/// The norm of a difference.
fn dist(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, y, p] = call.bind(["self", "other", "p"])?;
    let gap = importer.compute_value([&x, &y], DType::Float32, |[x, y]| x - y)?;
    let axes = (0..importer.builder.shape(gap).len()).collect();
    let result = norm(importer, gap, p.float_or(2.0)?, axes, false)?;
    let result = importer.builder.cast(result, call.result_dtype()?)?;
    Ok(importer.fresh(result))
}

/// Slices along an axis scaled down to a norm; ATen's own formula.
fn renorm(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, p, dim, limit] = call.bind(["self", "p", "dim", "maxnorm"])?;
    let value = importer.value(&x)?;
    let wide = importer.builder.cast(value, DType::Float32)?;
    let rank = importer.builder.shape(wide).len();
    let kept = dim.axis(rank, 0)?;
    let axes = (0..rank).filter(|axis| *axis != kept).collect();
    let length = norm(importer, wide, p.float()?, axes, true)?;
    let limit = limit.float()?;
    let length = Formula::Value(length);
    let factor = Formula::Number(limit) / (length.clone() + 1e-7);
    let factor = length.greater(limit).choose(factor, 1.0);
    let result = importer.formula(&(Formula::Value(wide) * factor), DType::Float32)?;
    let result = importer.builder.cast(result, call.result_dtype()?)?;
    Ok(importer.fresh(result))
}
