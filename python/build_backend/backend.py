# SPDX-License-Identifier: Apache-2.0
"""PEP 517 and PEP 660 hooks: prepare MLX, then let maturin build.

Two things maturin can't know are added: the Cargo configuration that points Rust at the libmlx of
the `mlx` wheel, and where pip finds vLLM as pure Python (the project `python/vllm_wheel`).
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import sysconfig
import zipfile
from pathlib import Path
from typing import Any

import maturin

from build_backend import mlx

VLLM_WHEEL = mlx.ROOT / "python" / "vllm_wheel"

build_sdist = maturin.build_sdist


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    """PEP 517: nothing beyond the static requirements; the first hook, so it checks the tools."""
    try:
        mlx.require_tools()
    except mlx.BuildError as error:
        raise SystemExit(f"error: {error}") from None
    return []


get_requires_for_build_editable = get_requires_for_build_wheel
get_requires_for_build_sdist = get_requires_for_build_wheel


def with_local_vllm(metadata: str) -> str:
    """METADATA with the requirement on vllm pointing at `python/vllm_wheel` in this checkout.

    The index's vllm is built for CUDA, or compiles on macOS. uv reads `tool.uv.sources` instead;
    pip has nothing of the kind but a direct reference. `VLLM_METAL_PORTABLE_WHEEL=1` keeps the
    plain requirement, for a wheel that goes to another machine.
    """
    if os.environ.get("VLLM_METAL_PORTABLE_WHEEL") == "1":
        return metadata
    head, blank, body = metadata.partition("\n\n")
    lines = [
        f"Requires-Dist: vllm @ {VLLM_WHEEL.as_uri()}"
        if line.startswith("Requires-Dist: vllm==")
        else line
        for line in head.split("\n")
    ]
    return "\n".join(lines) + blank + body


def rewrite_wheel(path: Path) -> None:
    """Applies `with_local_vllm` to the METADATA of a wheel, and to its RECORD."""
    rewritten = path.with_suffix(".rewritten")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(rewritten, "w") as target:
        name = next(item for item in source.namelist() if item.endswith(".dist-info/METADATA"))
        content = with_local_vllm(source.read(name).decode()).encode()
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        for entry in source.infolist():
            data = source.read(entry)
            if entry.filename == name:
                data = content
            elif entry.filename.endswith(".dist-info/RECORD"):
                lines = data.decode().splitlines()
                lines = [
                    f"{name},sha256={digest},{len(content)}"
                    if line.startswith(name + ",")
                    else line
                    for line in lines
                ]
                data = ("\n".join(lines) + "\n").encode()
            target.writestr(entry, data, compress_type=zipfile.ZIP_DEFLATED)
    shutil.move(rewritten, path)


def rewrite_metadata(folder: Path) -> None:
    """Applies `with_local_vllm` to a .dist-info folder."""
    path = folder / "METADATA"
    path.write_text(with_local_vllm(path.read_text(encoding="utf-8")), encoding="utf-8")


def editable_runtime_paths() -> list[Path]:
    """Where libmlx may be at run time when the native module stays in the checkout.

    pip builds with the interpreter of the environment it installs to; uv with another one, for the
    active environment or the project's `.venv`.
    """
    platlib = Path(sysconfig.get_path("platlib"))
    inside = Path("lib", platlib.parent.name, platlib.name)
    prefixes = [os.environ.get("VIRTUAL_ENV"), os.environ.get("UV_PROJECT_ENVIRONMENT")]
    environments = [Path(prefix) for prefix in prefixes if prefix] + [mlx.ROOT / ".venv"]
    candidates = [platlib, *(mlx.ROOT / environment / inside for environment in environments)]
    return [path / "mlx" / "lib" for path in dict.fromkeys(candidates)]


def maturin_settings(
    config_settings: dict[str, Any] | None, runtime_paths: list[Path]
) -> dict[str, Any]:
    """The settings of the front end, with the prepared MLX added to maturin's arguments."""
    configuration = mlx.BUILD / "cargo.toml"
    try:
        mlx.write_if_changed(configuration, mlx.prepare(runtime_paths))
    except mlx.BuildError as error:
        raise SystemExit(f"error: {error}") from None
    arguments = [*maturin.get_maturin_pep517_args(config_settings), f"--config={configuration}"]
    return {**(config_settings or {}), "maturin.build-args": arguments}


def prepare_metadata_for_build_wheel(
    metadata_directory: str, config_settings: dict[str, Any] | None = None
) -> str:
    """PEP 517: writes the .dist-info folder."""
    name: str = maturin.prepare_metadata_for_build_wheel(metadata_directory, config_settings)
    rewrite_metadata(Path(metadata_directory) / name)
    return name


prepare_metadata_for_build_editable = prepare_metadata_for_build_wheel


def build_wheel(
    wheel_directory: str,
    config_settings: dict[str, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    """PEP 517: builds a wheel whose native module finds libmlx beside it in site-packages."""
    settings = maturin_settings(config_settings, [])
    name: str = maturin.build_wheel(wheel_directory, settings)
    rewrite_wheel(Path(wheel_directory) / name)
    return name


def build_editable(
    wheel_directory: str,
    config_settings: dict[str, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    """PEP 660: builds the native module into `python/vllm_metal`."""
    settings = maturin_settings(config_settings, editable_runtime_paths())
    name: str = maturin.build_editable(wheel_directory, settings)
    rewrite_wheel(Path(wheel_directory) / name)
    return name
