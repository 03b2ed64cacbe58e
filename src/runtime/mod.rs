// SPDX-License-Identifier: Apache-2.0
//! Runs plans on MLX: parameters, KV caches, attention and the executor, on a thread of their own.

pub(crate) mod attention;
mod bounds;
pub(crate) mod dlpack;
pub(crate) mod error;
pub(crate) mod executor;
mod handle;
pub(crate) mod host;
mod inputs;
pub(crate) mod island;
pub(crate) mod kv_cache;
pub(crate) mod memory;
pub(crate) mod mlx;
mod model;
mod owner;
mod step;
pub(crate) mod tensor;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub(crate) mod weights;

pub use attention::{Metadata, Pages};
pub use handle::{Argument, LayerMetadata, LoadedModel, Runtime};
pub use kv_cache::CacheSpec;
pub use mlx::Device;
