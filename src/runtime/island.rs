// SPDX-License-Identifier: Apache-2.0
//! Nodes without a lowering, which PyTorch runs.

use super::dlpack::Imported;
use super::error::{Error, Result};
use super::mlx::{Array, Mlx};
use super::owner::Owner;
use super::tensor::{self, Exported};
use super::weights;
use std::sync::Arc;

/// Runs an island's FX call on CPU tensors. Called on the owner's thread, while it waits.
pub trait IslandRunner: Send {
    /// `operands` replace `{"operand": i}` in the call `target(*arguments)`; the results in order.
    ///
    /// # Errors
    /// What PyTorch raised.
    fn run(&self, target: &str, arguments: &str, operands: Vec<Exported>) -> Result<Vec<Imported>>;
}

/// Has a runner make `count` results of operands that are evaluated.
///
/// # Errors
/// There is no runner, it fails, or it makes another number.
pub fn call_out(
    mlx: &Mlx,
    owner: &Arc<Owner>,
    runner: Option<&dyn IslandRunner>,
    [target, arguments]: [&str; 2],
    operands: &[&Array],
    count: usize,
) -> Result<Vec<Array>> {
    let failed = |reason: String| Error::Island {
        target: target.to_owned(),
        reason,
    };
    let runner = runner.ok_or_else(|| failed("no runner was given at load".to_owned()))?;
    let exported = operands
        .iter()
        .map(|array| tensor::export_evaluated(mlx, owner, (*array).clone()))
        .collect::<Result<_>>()?;
    let results = runner.run(target, arguments, exported)?;
    if results.len() != count {
        return Err(failed(format!(
            "{} results instead of {count}",
            results.len()
        )));
    }
    let results = results.into_iter();
    results.map(|result| weights::borrow(mlx, result)).collect()
}
