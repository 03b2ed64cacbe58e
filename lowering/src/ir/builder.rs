// SPDX-License-Identifier: Apache-2.0
//! Builds graphs in canonical form: equal nodes are one node, and movements that move nothing vanish.

use super::graph::{Graph, Source, TensorType, Value};
use super::infer::check_bounds;
use super::{Binary, DType, Dim, Float, Op, Reduction, Scalar, Unary, infer, product};
use rustc_hash::{FxBuildHasher, FxHashMap};
use smallvec::SmallVec;
use std::hash::BuildHasher;
use std::sync::Arc;

/// A graph under construction. Methods fail with the reason; the caller knows the place.
#[derive(Default)]
pub struct Builder {
    pub graph: Graph,
    /// Attached to nodes built from now on.
    pub source: Option<Arc<Source>>,
    /// Pure nodes by the hash of operator, operands and types.
    known: FxHashMap<u64, SmallVec<[super::NodeId; 1]>>,
}

type Built = Result<Value, String>;

impl Builder {
    /// Type of a value.
    pub fn type_of(&self, value: Value) -> &TensorType {
        self.graph.value_type(value)
    }

    /// Shape of a value.
    pub fn shape(&self, value: Value) -> &[Dim] {
        &self.graph.value_type(value).shape
    }

    /// Dtype of a value.
    pub fn dtype(&self, value: Value) -> DType {
        self.graph.value_type(value).dtype
    }

    /// Adds a node whose types are not inferred; equal pure nodes are shared.
    pub fn node(&mut self, op: Op, operands: &[Value], types: Vec<TensorType>) -> super::NodeId {
        if op.is_effect() || matches!(op, Op::Island { .. }) {
            return self.graph.add(op, operands, types, self.source.clone());
        }
        let same = self
            .known
            .entry(FxBuildHasher.hash_one((&op, operands, &types)));
        let same = same.or_default();
        let graph = &self.graph;
        let is_same = |id: &super::NodeId| {
            let node = graph.node(*id);
            node.op == op && node.types == types && graph.operands(*id).as_slice() == operands
        };
        if let Some(id) = same.iter().copied().find(is_same) {
            return id;
        }
        let id = self.graph.add(op, operands, types, self.source.clone());
        same.push(id);
        id
    }

    /// Adds a pure operator, inferring its types; returns its first result.
    pub fn add(&mut self, op: Op, operands: &[Value]) -> Built {
        let types: Vec<&TensorType> = operands.iter().map(|value| self.type_of(*value)).collect();
        let inferred =
            infer(&op, &types).ok_or_else(|| format!("{} has no inferred type", op.name()))??;
        inferred.iter().try_for_each(TensorType::check_sizes)?;
        Ok(Value {
            node: self.node(op, operands, inferred),
            output: 0,
        })
    }

    /// A rank-0 constant.
    pub fn scalar(&mut self, value: Scalar, dtype: DType) -> Value {
        let value = match (value, dtype.is_float()) {
            (Scalar::Int(number), true) => Scalar::Float(Float::new(number as f64)),
            (Scalar::Bool(flag), true) => Scalar::Float(Float::new(f64::from(u8::from(flag)))),
            (Scalar::Bool(flag), false) if dtype != DType::Bool => Scalar::Int(i64::from(flag)),
            (value, _) => value,
        };
        let node = self.node(
            Op::Scalar(value),
            &[],
            vec![TensorType {
                dtype,
                shape: vec![],
            }],
        );
        Value { node, output: 0 }
    }

    /// `x` with other sizes.
    pub fn reshape(&mut self, x: Value, shape: Vec<Dim>) -> Built {
        if self.shape(x) == shape {
            return Ok(x);
        }
        let inner = match self.graph.node(x.node).op {
            Op::Reshape { .. } => self.graph.operands(x.node)[0],
            _ => x,
        };
        if self.shape(inner) == shape {
            return Ok(inner);
        }
        self.add(Op::Reshape { shape }, &[inner])
    }

    /// `x` with axis `i` taken from axis `permutation[i]`.
    pub fn transpose(&mut self, x: Value, permutation: Vec<usize>) -> Built {
        if permutation.iter().enumerate().all(|(i, axis)| i == *axis) {
            return Ok(x);
        }
        if let Op::Transpose { permutation: first } = &self.graph.node(x.node).op {
            let composed: Option<Vec<usize>> = permutation
                .iter()
                .map(|axis| first.get(*axis).copied())
                .collect();
            let composed = composed.ok_or("a permutation of another rank")?;
            let inner = self.graph.operands(x.node)[0];
            return self.transpose(inner, composed);
        }
        self.add(Op::Transpose { permutation }, &[x])
    }

    /// `x` broadcast to the shape.
    pub fn broadcast(&mut self, x: Value, shape: Vec<Dim>) -> Built {
        if self.shape(x) == shape {
            return Ok(x);
        }
        self.add(Op::Broadcast { shape }, &[x])
    }

    /// `x[start:stop:step]` along the axis; bounds are already inside the axis.
    pub fn slice(&mut self, x: Value, axis: usize, start: Dim, stop: Dim, step: i64) -> Built {
        let length = *self.shape(x).get(axis).ok_or("slice of a missing axis")?;
        check_bounds(start, stop, length)?;
        if start == Dim::Fixed(0) && stop == length && step == 1 {
            return Ok(x);
        }
        // A slice of a slice of the same axis is one slice.
        if let (
            Op::Slice {
                axis: inner_axis,
                start: offset,
                step: 1,
                ..
            },
            true,
        ) = (&self.graph.node(x.node).op, step >= 1)
            && *inner_axis == axis
            && let (Some(start), Some(stop)) = (offset.checked_add(start), offset.checked_add(stop))
        {
            let inner = self.graph.operands(x.node)[0];
            return self.slice(inner, axis, start, stop, step);
        }
        self.add(
            Op::Slice {
                axis,
                start,
                stop,
                step,
                length,
            },
            &[x],
        )
    }

    /// The parts joined along the axis; empty parts vanish.
    pub fn concat(&mut self, parts: &[Value], axis: usize) -> Built {
        let full: Vec<Value> = parts
            .iter()
            .copied()
            .filter(|part| self.shape(*part).get(axis) != Some(&Dim::Fixed(0)))
            .collect();
        match (full.as_slice(), parts) {
            ([], [first, ..]) => Ok(*first),
            ([only], _) => Ok(*only),
            (full, _) => {
                let full = full.to_vec();
                self.add(Op::Concat { axis }, &full)
            }
        }
    }

    /// `x` in another dtype. A widening that is narrowed back to its origin vanishes.
    pub fn cast(&mut self, x: Value, dtype: DType) -> Built {
        if self.dtype(x) == dtype {
            return Ok(x);
        }
        let node = self.graph.node(x.node);
        if let (Op::Cast { dtype: wide }, Op::Cast { .. }) = (&node.op, &Op::Cast { dtype }) {
            let inner = self.graph.operands(x.node)[0];
            if self.dtype(inner) == dtype && widens(dtype, *wide) {
                return Ok(inner);
            }
        }
        if let (Op::Scalar(value), false) = (&node.op, dtype.is_integral()) {
            let value = *value;
            if matches!(value, Scalar::Int(_) | Scalar::Bool(_)) {
                return Ok(self.scalar(value, dtype));
            }
        }
        self.add(Op::Cast { dtype }, &[x])
    }

    /// `f(x)`
    pub fn unary(&mut self, function: Unary, x: Value) -> Built {
        self.add(Op::Unary(function), &[x])
    }

    /// `f(x, y)`, operands of one dtype.
    pub fn binary(&mut self, function: Binary, x: Value, y: Value) -> Built {
        self.add(Op::Binary(function), &[x, y])
    }

    /// `f(x)` over axes.
    pub fn reduce(
        &mut self,
        function: Reduction,
        x: Value,
        mut axes: Vec<usize>,
        keepdims: bool,
    ) -> Built {
        axes.sort_unstable();
        axes.dedup();
        self.add(
            Op::Reduce {
                function,
                axes,
                keepdims,
            },
            &[x],
        )
    }

    /// `x [.., m, k] @ y [.., k, n]`
    pub fn matmul(&mut self, x: Value, y: Value) -> Built {
        self.add(Op::Matmul, &[x, y])
    }

    /// A movement of one operand, in canonical form.
    pub fn apply(&mut self, step: &Op, x: Value) -> Built {
        match step {
            Op::Reshape { shape } => self.reshape(x, shape.clone()),
            Op::Transpose { permutation } => self.transpose(x, permutation.clone()),
            Op::Broadcast { shape } => self.broadcast(x, shape.clone()),
            Op::Slice {
                axis,
                start,
                stop,
                step,
                ..
            } => self.slice(x, *axis, *start, *stop, *step),
            Op::Cast { dtype } => self.cast(x, *dtype),
            other => self.add(other.clone(), &[x]),
        }
    }

    /// `x` with an axis of size 1 inserted.
    pub fn expand_dims(&mut self, x: Value, axis: usize) -> Built {
        let mut shape = self.shape(x).to_vec();
        if axis > shape.len() {
            return Err(format!("axis {axis} inserted in rank {}", shape.len()));
        }
        shape.insert(axis, Dim::Fixed(1));
        self.reshape(x, shape)
    }

    /// Number of elements, where one symbol at most is in it.
    pub fn num_elements(&self, x: Value) -> Option<Dim> {
        product(self.shape(x))
    }
}

/// Every value of `narrow` is a value of `wide`.
pub fn widens(narrow: DType, wide: DType) -> bool {
    use DType::*;
    match narrow {
        Float16 | Bfloat16 => matches!(wide, Float32 | Float64),
        Float32 => wide == Float64,
        Bool => wide != Bool,
        Int8 => matches!(
            wide,
            Int16 | Int32 | Int64 | Float16 | Bfloat16 | Float32 | Float64
        ),
        Uint8 => matches!(
            wide,
            Uint16 | Uint32 | Int16 | Int32 | Int64 | Float16 | Bfloat16 | Float32 | Float64
        ),
        Int16 => matches!(wide, Int32 | Int64 | Float32 | Float64),
        Uint16 => matches!(wide, Uint32 | Int32 | Int64 | Float32 | Float64),
        Int32 => matches!(wide, Int64 | Float64),
        Uint32 => matches!(wide, Int64 | Float64),
        Int64 | Float64 => false,
    }
}
