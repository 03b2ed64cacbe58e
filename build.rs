// SPDX-License-Identifier: Apache-2.0
//! Tells the linker where libmlx is at run time, and the crate which MLX it is built against; builds
//! the crate's C++ files.
//!
//! The values come from the Cargo configuration that `python/build_backend/mlx.py` writes.

use std::env;

/// What the crate needs of MLX's C++ interface.
const SOURCES: [&str; 4] = [
    "src/runtime/mlx/adjacent.cpp",
    "src/runtime/mlx/rms_norm.cpp",
    "src/runtime/mlx/shared.cpp",
    "src/runtime/mlx/tape.cpp",
];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=DEP_MLX_VERSION");
    println!("cargo:rerun-if-env-changed=DEP_MLX_RUNTIME_PATHS");
    println!("cargo:rerun-if-env-changed=DEP_MLX_INCLUDE");
    for source in SOURCES {
        println!("cargo:rerun-if-changed={source}");
    }

    let (Ok(version), Some(include)) =
        (env::var("DEP_MLX_VERSION"), env::var_os("DEP_MLX_INCLUDE"))
    else {
        println!(
            "cargo::error=MLX is not prepared: run ./install.sh first, or \
             `python -m build_backend.mlx` in the folder python/ of an environment with mlx"
        );
        return;
    };
    println!("cargo:rustc-env=VLLM_METAL_MLX_VERSION={version}");

    cc::Build::new()
        .cpp(true)
        .std("c++20")
        .opt_level(3)
        .warnings(false)
        .includes(env::split_paths(&include))
        .files(SOURCES)
        .compile("vllm_metal_mlx");

    // An installed module sits in site-packages/vllm_metal, beside site-packages/mlx.
    let macos = env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("macos");
    let here = if macos { "@loader_path" } else { "$ORIGIN" };
    println!("cargo:rustc-link-arg-cdylib=-Wl,-rpath,{here}/../mlx/lib");

    // In a checkout it sits elsewhere, and so do test binaries.
    let paths = env::var_os("DEP_MLX_RUNTIME_PATHS").unwrap_or_default();
    for path in env::split_paths(&paths).filter(|path| !path.as_os_str().is_empty()) {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", path.display());
    }
    if macos {
        pyo3_build_config::add_extension_module_link_args();
    } else if !paths.is_empty() && env::var_os("CARGO_FEATURE_PYTHON").is_some() {
        pyo3_build_config::add_libpython_rpath_link_args();
    }
}
