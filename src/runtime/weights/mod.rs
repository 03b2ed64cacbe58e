// SPDX-License-Identifier: Apache-2.0
//! A plan's parameters: taken over from tensors or mapped files, checked, and folded.

mod bind;
mod checkpoint;
mod file;
mod layout;
mod load;
mod pieces;
mod recipe;

pub(super) use bind::Parameters;
pub use bind::required;
pub use checkpoint::Checkpoint;
pub use file::FileTensor;
pub(super) use load::borrow;
pub use load::{LoadReport, Source};
pub use recipe::Recipe;
