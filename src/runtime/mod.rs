// SPDX-License-Identifier: Apache-2.0
//! Runs plans on MLX: parameters, KV caches, attention and the executor, on a thread of their own.

pub mod attention;
mod bounds;
pub mod dlpack;
pub mod error;
pub mod executor;
mod handle;
pub mod host;
mod inputs;
pub mod island;
pub mod kv_cache;
pub mod memory;
pub mod mlx;
mod model;
mod owner;
mod step;
pub mod tensor;
#[cfg(test)]
mod testing;
pub mod weights;

pub use handle::{Argument, LayerMetadata, LoadedModel, Runtime};
