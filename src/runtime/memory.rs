// SPDX-License-Identifier: Apache-2.0
//! MLX's memory: counters, limits, and the question whether something fits.

use super::error::{Error, Result};
use super::mlx::{MlxError, memory};

/// Limits in bytes; `None` keeps MLX's own.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Memory that MLX may hold before it waits and frees its cache.
    pub memory: Option<usize>,
    /// Freed memory that MLX keeps for reuse.
    pub cache: Option<usize>,
    /// Memory that macOS keeps resident for the GPU.
    pub wired: Option<usize>,
}

/// Counters in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// In arrays.
    pub active: usize,
    /// The most that was active at once.
    pub peak: usize,
    /// Freed, and kept for reuse.
    pub cache: usize,
    /// Set or MLX's own.
    pub limit: usize,
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::Mlx(MlxError(error.to_string()))
}

/// Sets the limits that are given.
pub fn set_limits(limits: Limits) -> Result<()> {
    if let Some(bytes) = limits.memory {
        memory::set_memory_limit(bytes).map_err(failed)?;
    }
    if let Some(bytes) = limits.cache {
        memory::set_cache_limit(bytes).map_err(failed)?;
    }
    if let Some(bytes) = limits.wired {
        memory::set_wired_limit(bytes).map_err(failed)?;
    }
    Ok(())
}

/// The counters now.
pub fn usage() -> Result<Usage> {
    Ok(Usage {
        active: memory::active_memory().map_err(failed)?,
        peak: memory::peak_memory().map_err(failed)?,
        cache: memory::cache_memory().map_err(failed)?,
        limit: memory::memory_limit().map_err(failed)?,
    })
}

/// Starts the peak counter anew.
pub fn reset_peak() -> Result<()> {
    memory::reset_peak_memory().map_err(failed)
}

/// Returns freed memory to the system.
pub fn clear_cache() -> Result<()> {
    memory::clear_cache().map_err(failed)
}

/// Checks that so many bytes fit below the limit.
///
/// # Errors
/// [`Error::Memory`] with both numbers and the remedy.
pub fn require(what: &str, need: u64, remedy: &'static str) -> Result<()> {
    let usage = usage()?;
    let limit = usage.limit as u64;
    let available = limit.saturating_sub(usage.active as u64);
    if need > available {
        return Err(Error::Memory {
            what: what.to_owned(),
            need,
            available,
            limit,
            remedy,
        });
    }
    Ok(())
}
