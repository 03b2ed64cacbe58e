// SPDX-License-Identifier: Apache-2.0
//! A plan's parameters: taken over from tensors or mapped files, checked, and folded.

mod bind;
mod file;

pub use bind::{LoadReport, Source, required};
pub(super) use bind::{Parameters, borrow};
pub use file::FileTensor;
