// SPDX-License-Identifier: Apache-2.0
//! PyTorch's views and in-place writes, as values.
//!
//! A tensor is a chain of movements from the value of its storage. Writing to it computes the
//! storage's next value; tensors of the same storage are read through their chains from then on.

use crate::ir::{Builder, DType, Dim, Op, TensorType, Value};
use std::rc::Rc;

/// A tensor of the FX graph.
#[derive(Clone, Debug)]
pub struct Tensor {
    storage: usize,
    last: Option<Rc<Move>>,
    value: Value,
    version: u32,
}

/// A movement, and those before it. Views of a view share them. It is an operator of one operand, or
/// of the tensor and the indices `places`.
#[derive(Debug)]
struct Move {
    step: Op,
    places: Option<Value>,
    before: Option<Rc<Move>>,
}

impl Move {
    fn apply(&self, builder: &mut Builder, value: Value) -> Result<Value, String> {
        match self.places {
            None => builder.apply(&self.step, value),
            Some(places) => builder.add(self.step.clone(), &[value, places]),
        }
    }
}

impl Tensor {
    /// Movements from the storage on.
    fn moves(&self) -> Vec<&Move> {
        let last = std::iter::successors(self.last.as_deref(), |step| step.before.as_deref());
        let mut moves: Vec<&Move> = last.collect();
        moves.reverse();
        moves
    }
}

/// All storages of a graph.
#[derive(Default)]
pub struct Storages {
    storages: Vec<Storage>,
}

struct Storage {
    value: Value,
    version: u32,
}

impl Storages {
    /// A tensor with a storage of its own.
    pub fn fresh(&mut self, value: Value) -> Tensor {
        self.storages.push(Storage { value, version: 0 });
        Tensor {
            storage: self.storages.len() - 1,
            last: None,
            value,
            version: 0,
        }
    }

    /// The tensor's value after all writes so far.
    pub fn read(&self, builder: &mut Builder, tensor: &Tensor) -> Result<Value, String> {
        let storage = &self.storages[tensor.storage];
        if storage.version == tensor.version {
            return Ok(tensor.value);
        }
        tensor
            .moves()
            .into_iter()
            .try_fold(storage.value, |value, step| step.apply(builder, value))
    }

    /// A view of the tensor: `step` of it, or of it and the indices `places`.
    pub fn view(
        &self,
        builder: &mut Builder,
        tensor: &Tensor,
        step: Op,
        places: Option<Value>,
    ) -> Result<Tensor, String> {
        let value = self.read(builder, tensor)?;
        let step = Move {
            step,
            places,
            before: tensor.last.clone(),
        };
        let value = step.apply(builder, value)?;
        let version = self.storages[tensor.storage].version;
        Ok(Tensor {
            storage: tensor.storage,
            last: Some(Rc::new(step)),
            value,
            version,
        })
    }

    /// Writes the tensor's elements.
    pub fn write(
        &mut self,
        builder: &mut Builder,
        tensor: &Tensor,
        new: Value,
    ) -> Result<(), String> {
        let mut before = vec![self.storages[tensor.storage].value];
        let moves = tensor.moves();
        for step in &moves {
            let last = before[before.len() - 1];
            before.push(step.apply(builder, last)?);
        }
        let target = builder.type_of(before[before.len() - 1]).clone();
        if *builder.type_of(new) != target {
            return Err(format!("a write of {} to {target}", builder.type_of(new)));
        }
        let mut value = new;
        for (step, old) in moves.iter().zip(&before).rev() {
            value = unapply(builder, &step.step, *old, value)?;
        }
        let storage = &mut self.storages[tensor.storage];
        storage.value = value;
        storage.version += 1;
        Ok(())
    }
}

/// The value before `step` whose image under `step` is `new`, other elements as in `old`.
fn unapply(builder: &mut Builder, step: &Op, old: Value, new: Value) -> Result<Value, String> {
    let TensorType { shape, .. } = builder.type_of(old).clone();
    match step {
        Op::Reshape { .. } => builder.reshape(new, shape),
        Op::Transpose { permutation } => {
            let mut inverse = vec![0; permutation.len()];
            for (to, from) in permutation.iter().enumerate() {
                inverse[*from] = to;
            }
            builder.transpose(new, inverse)
        }
        Op::Slice {
            axis,
            start,
            stop,
            step: 1,
            length,
        } => {
            let head = builder.slice(old, *axis, Dim::Fixed(0), *start, 1)?;
            let tail = builder.slice(old, *axis, *stop, *length, 1)?;
            builder.concat(&[head, new, tail], *axis)
        }
        Op::Slice {
            axis, start, step, ..
        } => {
            let shape = builder.shape(new).to_vec();
            let length = *shape.get(*axis).ok_or("a slice of rank 0")?;
            if length == Dim::Fixed(0) {
                return Ok(old);
            }
            let places = Op::Arange {
                start: *start,
                step: *step,
                length,
            };
            let types = vec![TensorType {
                dtype: DType::Int64,
                shape: vec![length],
            }];
            let node = builder.node(places, &[], types);
            let mut column = vec![Dim::Fixed(1); shape.len()];
            column[*axis] = length;
            let places = builder.reshape(Value { node, output: 0 }, column)?;
            let places = builder.broadcast(places, shape)?;
            builder.add(Op::PutAlongAxis { axis: *axis }, &[old, places, new])
        }
        other => Err(format!("a write through {}", other.name())),
    }
}
