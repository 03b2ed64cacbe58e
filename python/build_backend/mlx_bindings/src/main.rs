// SPDX-License-Identifier: Apache-2.0
//! Writes `bindings.rs` for mlx-sys from the headers of mlx-c.
//!
//! Usage: `mlx-bindings MLX_C_DIR OUTPUT [CLANG_ARGUMENT...]`, where `MLX_C_DIR` holds `mlx/c/*.h`.

use std::error::Error;
use std::fs;
use std::path::PathBuf;

/// The half types in the shapes that mlx-rs expects. mlx-c declares them on ARM only; everywhere
/// else `compat.h` defines them as 16-bit integers, which have the same size and calling
/// convention but would give the wrong Rust type.
const HALF_TYPES: &str = "\
#[repr(transparent)]
#[derive(Debug, Default, Copy, Clone, PartialEq, Eq)]
pub struct float16_t(pub u16);
pub type bfloat16_t = u16;
";

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(mlx_c), Some(output)) = (arguments.next(), arguments.next()) else {
        return Err("usage: mlx-bindings MLX_C_DIR OUTPUT [CLANG_ARGUMENT...]".into());
    };
    let mut headers: Vec<PathBuf> = fs::read_dir(PathBuf::from(&mlx_c).join("mlx/c"))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    headers.retain(|path| path.extension().is_some_and(|extension| extension == "h"));
    headers.sort();

    let mut builder = bindgen::Builder::default()
        .clang_arg(format!("-I{mlx_c}"))
        .clang_args(arguments)
        // As mlx-sys does: their `c_ulong` sizes trip a rustc lint.
        .blocklist_function("malloc")
        .blocklist_function("realloc")
        .blocklist_type("float16_t")
        .blocklist_type("bfloat16_t")
        .raw_line(HALF_TYPES);
    for header in headers {
        builder = builder.header(header.to_string_lossy());
    }
    builder.generate()?.write_to_file(output)?;
    Ok(())
}
