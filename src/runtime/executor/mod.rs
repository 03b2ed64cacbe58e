// SPDX-License-Identifier: Apache-2.0
//! Runs the graphs of a plan: a loop over steps, and in each region a loop over instructions.

mod attention;
mod convolution;
mod experts;
mod fusion;
mod graph;
mod instruction;
mod joint_norm;
mod kernel;
mod movement;
mod norm;
mod pointwise;
mod reduction;
mod rope;
mod run;
#[cfg(test)]
mod tests;

pub use graph::{Effects, Graph};
pub use instruction::{Context, Outputs, execute};
