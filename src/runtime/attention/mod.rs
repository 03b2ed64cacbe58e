// SPDX-License-Identifier: Apache-2.0
//! Attention over a paged KV cache, for batches that mix prefill and decode.
//!
//! [`Metadata`] says which tokens belong to which request and where their keys and values lie; a
//! [`Layout`] turns it, once per step and kind of layer, into index arrays and masks; [`compute`]
//! runs one layer on them. Where a kernel reads the cache in place ([`paged`]), nothing is gathered.

mod compute;
mod layout;
mod mask;
mod metadata;
mod paged;
mod paged_step;
mod pieces;
mod select;

#[cfg(test)]
mod tests;

pub use compute::{Layer, attend, encode_rows, write};
pub use layout::Layout;
pub use metadata::{Metadata, Pages};
pub use pieces::{Kind, Source};
pub use select::select;
