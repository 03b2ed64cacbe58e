// SPDX-License-Identifier: Apache-2.0
//! Nodes without a lowering, which PyTorch runs.

use super::dlpack::Imported;
use super::error::Result;
use super::tensor::Exported;

/// Runs an island's FX call on CPU tensors. Called on the owner's thread, while it waits.
pub trait IslandRunner: Send {
    /// `operands` replace `{"operand": i}` in the call `target(*arguments)`; the results in order.
    ///
    /// # Errors
    /// What PyTorch raised.
    fn run(&self, target: &str, arguments: &str, operands: Vec<Exported>) -> Result<Vec<Imported>>;
}
