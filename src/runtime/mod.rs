// SPDX-License-Identifier: Apache-2.0
//! Runs plans on MLX: parameters, KV caches, attention and the executor, on a thread of their own.

mod attention;
mod bounds;
pub mod dlpack;
pub mod error;
mod executor;
mod handle;
pub mod host;
mod inputs;
pub mod island;
pub mod kernels;
mod kv_cache;
mod loaded_model;
pub mod memory;
mod mlx;
mod model;
mod operands;
mod owner;
mod replay;
pub mod sample;
mod state;
mod step;
mod step_graph;
pub mod tensor;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod weights;

pub use attention::{Metadata, Pages};
pub use handle::{Loading, Runtime};
pub use kv_cache::CacheSpec;
pub use loaded_model::{Argument, LayerMetadata, LoadedModel, Requests};
pub use mlx::Device;
pub use model::Head;
pub use replay::KEPT_SHAPES;
pub use state::{StateMetadata, StateSpec};
