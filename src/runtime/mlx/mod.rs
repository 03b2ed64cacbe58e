// SPDX-License-Identifier: Apache-2.0
//! MLX operations on one explicit stream.
//!
//! Arrays and their lifetime are mlx-rs's. Its operations, though, look the stream up in a
//! thread-local and allocate a copy of it each time, and some that the runtime needs (scatter, array
//! over foreign memory) are not public, so operations go straight to MLX's C interface, all of them
//! through [`Mlx::make`].

mod adjacent;
mod array;
mod compile;
mod convolution;
mod error;
mod index;
mod metal_kernel;
mod ops;
mod recording;
mod rms_norm;
mod shared;
mod stream;
mod tape;
mod words;

pub use array::{
    data_pointer, dtype, float_array, foreign_array, host_array, int_array, is_contiguous,
    is_in_place, scalar,
};
pub use convolution::Windows;
pub use error::{MlxError, MlxResult};
pub use metal_kernel::MetalKernel;
pub use stream::{Device, Meter, Mlx, dtype_code};
pub use tape::Tape;
pub use words::{word, word_array};

pub use mlx_rs::Array;

/// MLX's memory counters and limits; see [`crate::runtime::memory`].
pub use mlx_rs::memory;
