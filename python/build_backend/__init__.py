# SPDX-License-Identifier: Apache-2.0
"""In-tree build: prepares MLX for Rust (`mlx`), then lets maturin build the package (`backend`)."""
