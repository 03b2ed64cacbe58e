// SPDX-License-Identifier: Apache-2.0
//! The MLX graph of one step: built, traced or replayed.

use super::error::{Error, Result};
use super::inputs::{Input, bind};
use super::island::IslandRunner;
use super::kernels::Kernels;
use super::mlx::{Array, Mlx};
use super::model::Prepared;
use super::operands::Operands;
use super::owner::Owner;
use super::replay::{Replays, Shape};
use super::step::{Caches, Layers, StepEffects};
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

/// What steps of one shape have in common.
pub struct Parts<'a> {
    pub mlx: &'a Mlx,
    pub owner: &'a Arc<Owner>,
    pub graph: &'a Prepared,
    /// The graph from its result to logits, where those are wanted.
    pub head: Option<&'a Prepared>,
    pub layers: Layers<'a>,
    pub islands: Option<&'a dyn IslandRunner>,
    pub kernels: &'a RefCell<Kernels>,
    /// Values of the graph's symbols.
    pub symbols: &'a [i64],
    pub num_tokens: usize,
}

/// What they differ in, besides the caches.
pub struct Changing {
    pub inputs: Vec<Array>,
    /// Rows of the result that the head takes, int32; `None` is all.
    pub rows: Option<Array>,
    pub operands: Operands,
}

impl Changing {
    fn arrays_mut(&mut self) -> impl Iterator<Item = &mut Array> {
        let operands = self.operands.arrays_mut();
        self.inputs.iter_mut().chain(&mut self.rows).chain(operands)
    }
}

/// The results of a step, lazily; the caches hold what it writes.
pub fn step_of(
    parts: &Parts,
    mut changing: Changing,
    caches: &mut Caches,
    replays: &mut Replays,
) -> Result<Vec<Array>> {
    let shape = parts.shape(&changing);
    let Some(shape) = shape.filter(|shape| replays.find(shape).is_some() || replays.is_due(shape))
    else {
        replays.builds.direct += 1;
        let Changing {
            inputs,
            rows,
            operands,
        } = changing;
        let mut effects = parts.effects(caches, &operands);
        let outputs = parts.build(inputs, rows.as_ref(), &mut effects)?;
        effects.commit();
        return Ok(outputs);
    };
    let mut arrays: Vec<Array> = changing.arrays_mut().map(|array| array.clone()).collect();
    arrays.extend(caches.arrays().cloned());
    let num_caches = caches.arrays().count();
    if replays.find(&shape).is_none() {
        let mut failure = None;
        let traced = parts.mlx.trace(&arrays, &mut |placeholders| {
            let outcome = parts.trace(placeholders, &mut changing, caches);
            outcome.map_err(|error| failure = Some(error)).ok()
        });
        replays.keep(
            shape.clone(),
            traced.map_err(|error| failure.unwrap_or(error.into()))?,
        );
        replays.builds.traced += 1;
    } else {
        replays.builds.replayed += 1;
    }
    let tape = replays
        .find(&shape)
        .ok_or_else(|| Error::Internal("a graph that was kept is gone".to_owned()))?;
    let outputs = tape.replay(parts.mlx, &arrays)?;
    Ok(take_over(outputs, num_caches, caches))
}

/// The last arrays are the new caches.
fn take_over(mut outputs: Vec<Array>, num_caches: usize, caches: &mut Caches) -> Vec<Array> {
    let written = outputs.split_off(outputs.len().saturating_sub(num_caches));
    caches.replace(written.into_iter().map(Some));
    outputs
}

impl Parts<'_> {
    /// What the graph depends on besides shapes and dtypes, where it is one to keep.
    fn shape(&self, changing: &Changing) -> Option<Shape> {
        let has_islands = |graph: &Prepared| graph.has_islands;
        if has_islands(self.graph) || self.head.is_some_and(has_islands) {
            return None;
        }
        let mut shape = changing.operands.shape()?;
        let rows = changing.rows.as_ref().map(|rows| rows.size() as i64);
        shape.extend([i64::from(self.head.is_some()), rows.unwrap_or(-1)]);
        shape.extend(self.symbols);
        Some(shape)
    }

    fn effects<'b>(&'b self, caches: &'b mut Caches, operands: &'b Operands) -> StepEffects<'b> {
        let Parts {
            mlx,
            owner,
            layers,
            islands,
            kernels,
            ..
        } = self;
        StepEffects::new(mlx, owner, *layers, caches, operands, *islands, kernels)
    }

    /// Results of the graph, then of the head.
    fn build(
        &self,
        inputs: Vec<Array>,
        rows: Option<&Array>,
        effects: &mut StepEffects,
    ) -> Result<Vec<Array>> {
        let mlx = self.mlx;
        let mut outputs = self.graph.graph.run(mlx, self.symbols, inputs, effects)?;
        let (Some(head), Some(hidden)) = (self.head, outputs.first()) else {
            return Ok(outputs);
        };
        let hidden = match rows {
            Some(_) if hidden.shape().first() != Some(&(self.num_tokens as i32)) => {
                let reason = format!(
                    "a result of shape {:?} has no row for each token",
                    hidden.shape()
                );
                return Err(Error::Unsupported(reason));
            }
            Some(rows) => mlx.take(hidden, rows, 0)?,
            None => hidden.clone(),
        };
        let plan = &head.graph.plan;
        let name = plan.inputs.first().map(|input| input.name.clone());
        let named: HashMap<String, Input> = name
            .map(|name| (name, Input::Array(hidden)))
            .into_iter()
            .collect();
        let bound = bind(mlx, plan, &head.bounds, named)?;
        let logits = head.graph.run(mlx, &bound.symbols, bound.arrays, effects)?;
        outputs.extend(logits);
        Ok(outputs)
    }

    /// As `build` on placeholders of all that changes and of the caches; their new values follow.
    fn trace(
        &self,
        placeholders: Vec<Array>,
        changing: &mut Changing,
        caches: &mut Caches,
    ) -> Result<Vec<Array>> {
        let mut placeholders = placeholders.into_iter();
        for (array, placeholder) in changing.arrays_mut().zip(&mut placeholders) {
            *array = placeholder;
        }
        let mut effects = self.effects(caches, &changing.operands);
        effects.substitute(placeholders);
        let inputs = changing.inputs.clone();
        let mut outputs = self.build(inputs, changing.rows.as_ref(), &mut effects)?;
        outputs.extend(effects.substituted());
        Ok(outputs)
    }
}
