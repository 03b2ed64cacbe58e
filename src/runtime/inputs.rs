// SPDX-License-Identifier: Apache-2.0
//! A graph's inputs: matched by name, checked, and the symbols bound by their sizes.

use super::dlpack::Imported;
use super::error::{Error, Result};
use super::host::HostTensor;
use super::mlx::{self, Array, Mlx};
use super::weights;
use lowering::ir::{DType, Dim, TensorType};
use lowering::plan::{Binding, GraphPlan};
use std::collections::HashMap;

/// One input of a run.
pub enum Input {
    /// Copied to MLX.
    Host(HostTensor),
    /// Used where it lies, if MLX can.
    Foreign(Imported),
    /// Built before, perhaps not evaluated.
    Array(Array),
    /// Token ids of which some are being sampled.
    Sampled(Sampled),
    /// The value of the symbol of that name.
    Size(i64),
}

/// Token ids, some of which the last step is still sampling.
pub struct Sampled {
    /// All, where those are anything.
    pub known: HostTensor,
    /// int32[num_sampled], each below `vocab_size`.
    pub tokens: Array,
    pub vocab_size: i64,
    /// Pairs of a place in `known` and the index of the token that belongs there.
    pub places: Vec<(usize, usize)>,
}

/// Inputs ready to run with.
pub struct Bound {
    /// In the plan's order.
    pub arrays: Vec<Array>,
    /// Values of the plan's symbols.
    pub symbols: Vec<i64>,
    /// Size of the symbol with the role `num_tokens`; 0 where the graph has none.
    pub num_tokens: usize,
}

/// Matches inputs with the plan. Symbols that are not given take their values from the inputs.
///
/// # Errors
/// A missing or unknown name, a dtype or size that is not the plan's, or an index out of `bounds`.
pub fn bind(
    mlx: &Mlx,
    graph: &GraphPlan,
    bounds: &[Option<i64>],
    mut inputs: HashMap<String, Input>,
) -> Result<Bound> {
    let wrong = |reason: String| Error::Inputs {
        graph: graph.name.clone(),
        reason,
    };
    let mut symbols: Vec<Option<i64>> = vec![None; graph.symbols.len()];
    for (symbol, value) in graph.symbols.iter().zip(&mut symbols) {
        if let Some(Input::Size(size)) = inputs.get(&symbol.name) {
            *value = Some(*size);
            inputs.remove(&symbol.name);
        }
    }
    let mut arrays = Vec::with_capacity(graph.inputs.len());
    for (index, binding) in graph.inputs.iter().enumerate() {
        let Binding { name, value } = binding;
        let input = inputs
            .remove(name)
            .ok_or_else(|| wrong(format!("input {name:?} is missing")))?;
        if let Some(Some(bound)) = bounds.get(index) {
            let checked = match &input {
                Input::Host(tensor) => check_bound(tensor, *bound),
                Input::Foreign(tensor) => check_bound(&HostTensor::from(tensor), *bound),
                Input::Sampled(sampled) => sampled.check_bound(*bound),
                Input::Array(_) | Input::Size(_) => Ok(()),
            };
            checked.map_err(|reason| wrong(format!("input {name:?}: {reason}")))?;
        }
        let array = to_array(mlx, input, value.dtype)?
            .ok_or_else(|| wrong(format!("input {name:?}: expected {value}, found a number")))?;
        if !matches(&array, value, &mut symbols) {
            let found = mlx::dtype(&array).map_or("?", DType::name);
            let reason = format!(
                "input {name:?}: expected {value}, found {found}{:?}",
                array.shape()
            );
            return Err(wrong(reason));
        }
        arrays.push(array);
    }
    if let Some(name) = inputs.keys().min() {
        let known: Vec<&str> = graph
            .inputs
            .iter()
            .map(|input| input.name.as_str())
            .collect();
        return Err(wrong(format!(
            "there is no input {name:?}; its inputs are {known:?}"
        )));
    }
    let role = |role: &str| graph.symbols.iter().position(|symbol| symbol.role == role);
    let num_tokens = role("num_tokens")
        .and_then(|index| symbols[index])
        .unwrap_or(0);
    let unbound = symbols.iter().position(Option::is_none);
    if let Some(index) = unbound {
        let symbol = &graph.symbols[index].name;
        return Err(wrong(format!(
            "no input's size gives the symbol {symbol:?}"
        )));
    }
    Ok(Bound {
        arrays,
        symbols: symbols.into_iter().flatten().collect(),
        num_tokens: num_tokens as usize,
    })
}

/// The array of a tensor; none for a number.
fn to_array(mlx: &Mlx, input: Input, expected: DType) -> Result<Option<Array>> {
    let array = match input {
        // vLLM's token ids are int32 and its positions int64; callers may have either.
        Input::Host(tensor) if tensor.dtype == DType::Int64 && expected == DType::Int32 => {
            let bytes = tensor
                .integers_32()?
                .iter()
                .flat_map(|value| value.to_ne_bytes())
                .collect();
            HostTensor {
                dtype: expected,
                bytes,
                ..tensor
            }
            .to_array()?
        }
        Input::Host(tensor) if tensor.dtype == DType::Int32 && expected == DType::Int64 => {
            mlx.cast(&tensor.to_array()?, expected)?
        }
        Input::Host(tensor) => tensor.to_array()?,
        Input::Foreign(tensor) => weights::borrow(mlx, tensor)?,
        Input::Array(array) => array,
        Input::Sampled(sampled) => mlx.ensure(sampled.to_array(mlx)?, expected)?,
        Input::Size(_) => return Ok(None),
    };
    Ok(Some(array))
}

impl Sampled {
    fn to_array(&self, mlx: &Mlx) -> Result<Array> {
        let ids = self.known.integers_32()?;
        let num_sampled = self.tokens.size();
        let wrong = self
            .places
            .iter()
            .find(|(place, token)| *place >= ids.len() || *token >= num_sampled);
        if let Some((place, token)) = wrong {
            let reason = format!(
                "sampled token {token} of {num_sampled} at place {place} of {}",
                ids.len()
            );
            return Err(Error::Tensor(reason));
        }
        let unchanged = |(index, place): (usize, &(usize, usize))| *place == (index, index);
        let in_order = self.places.iter().enumerate().all(unchanged);
        if in_order && self.places.len() == ids.len() && num_sampled == ids.len() {
            return Ok(self.tokens.clone());
        }
        // One of the sampled tokens is one of the known ones, further on.
        let mut rows: Vec<i32> = (0..ids.len() as i32).collect();
        for (place, token) in &self.places {
            rows[*place] = (ids.len() + token) as i32;
        }
        let known = mlx::int_array(&ids, &[ids.len() as i32])?;
        let all = mlx.concatenate(&[&known, &self.tokens], 0)?;
        Ok(mlx.take(&all, &mlx::int_array(&rows, &[ids.len() as i32])?, 0)?)
    }

    fn check_bound(&self, bound: i64) -> std::result::Result<(), String> {
        let mut values = self.known.integers().map_err(|error| error.to_string())?;
        for (place, _) in &self.places {
            if let Some(value) = values.get_mut(*place) {
                *value = self.vocab_size - 1;
            }
        }
        check_values(&values, bound)
    }
}

fn check_bound(tensor: &HostTensor, bound: i64) -> std::result::Result<(), String> {
    check_values(
        &tensor.integers().map_err(|error| error.to_string())?,
        bound,
    )
}

fn check_values(values: &[i64], bound: i64) -> std::result::Result<(), String> {
    match values.iter().position(|value| !(0..bound).contains(value)) {
        None => Ok(()),
        Some(index) => Err(format!(
            "element {index} is {}, and it must be from 0 to {}",
            values[index],
            bound - 1
        )),
    }
}

/// Whether an array has the type, where symbols that are not bound yet take the size they meet. A
/// size in several symbols needs those bound.
fn matches(array: &Array, expected: &TensorType, symbols: &mut [Option<i64>]) -> bool {
    let shape = array.shape();
    mlx::dtype(array) == Some(expected.dtype)
        && shape.len() == expected.shape.len()
        && shape.iter().zip(&expected.shape).all(|(size, dim)| {
            let size = i64::from(*size);
            if let Dim::Affine { symbol, mul, add } = *dim
                && let Some(free @ None) = symbols.get_mut(symbol as usize)
            {
                let exact = mul != 0 && (size - add) % mul == 0 && (size - add) / mul >= 0;
                *free = exact.then(|| (size - add) / mul);
                return exact;
            }
            let bound: Vec<i64> = symbols.iter().map_while(|symbol| *symbol).collect();
            dim.eval(&bound) == Some(size)
        })
}
