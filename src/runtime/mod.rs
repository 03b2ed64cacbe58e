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
pub mod memory;
mod mlx;
mod model;
mod owner;
mod state;
mod step;
pub mod tensor;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod weights;

pub use attention::{Metadata, Pages};
pub use handle::{Argument, LayerMetadata, LoadedModel, Loading, Requests, Runtime};
pub use kv_cache::CacheSpec;
pub use mlx::Device;
pub use state::{StateMetadata, StateSpec};
