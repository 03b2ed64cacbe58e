// SPDX-License-Identifier: Apache-2.0
//! Which MLX this library is built against, and which one the process has loaded.

use std::ffi::CStr;

/// The version of MLX this library is built against. Only that one can be loaded with it, because
/// MLX's C++ interface changes between versions.
pub const BUILT_AGAINST: &str = env!("VLLM_METAL_MLX_VERSION");

/// The version of the libmlx in this process, or `None` if MLX failed to tell.
pub fn loaded() -> Option<String> {
    // SAFETY: `mlx_version` fills the string it is given; its text is null-terminated, is copied
    // before the string is freed, and the string is freed once.
    unsafe {
        let mut string = mlx_sys::mlx_string_new();
        let status = mlx_sys::mlx_version(&mut string);
        let text = (status == 0)
            .then(|| CStr::from_ptr(mlx_sys::mlx_string_data(string)))
            .map(|text| text.to_string_lossy().into_owned());
        mlx_sys::mlx_string_free(string);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loaded_library_is_the_one_built_against() {
        assert_eq!(loaded().as_deref(), Some(BUILT_AGAINST));
    }
}
