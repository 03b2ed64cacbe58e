# SPDX-License-Identifier: Apache-2.0
"""The in-tree build backend: what it tells Cargo, and what it tells pip about vLLM."""

import importlib
import shutil
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest


@pytest.mark.parametrize(
    ("system", "triple", "cxx"),
    [
        ("linux", "x86_64-unknown-linux-gnu", "dylib=stdc++"),
        ("darwin", "aarch64-apple-darwin", "dylib=c++"),
    ],
)
def test_cargo_takes_mlx_from_the_wheel(
    mlx_build: ModuleType, monkeypatch: pytest.MonkeyPatch, system: str, triple: str, cxx: str
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    mlx = mlx_build.Mlx("0.32.2", Path("/env/mlx"))
    paths = [Path("/a"), Path("/b")]
    text = mlx_build.cargo_configuration(triple, mlx, Path("/mlx-c"), Path("/out dir"), paths)
    assert tomllib.loads(text)["target"][triple]["mlx"] == {
        "rustc-link-search": ["native=/out dir", "native=/env/mlx/lib"],
        "rustc-link-lib": ["static=mlxc", "dylib=mlx", cxx],
        "rustc-env": {"OUT_DIR": "/out dir"},
        "version": "0.32.2",
        "include": "/env/mlx/include:/mlx-c",
        "runtime-paths": "/a:/b",
    }


@pytest.mark.parametrize(
    ("present", "sentence"),
    [
        ({"c++"}, "Rust is missing: install it with rustup"),
        ({"cargo"}, "a C\\+\\+ compiler is missing: install g\\+\\+"),
    ],
)
def test_a_missing_tool_is_named(
    mlx_build: ModuleType, monkeypatch: pytest.MonkeyPatch, present: set[str], sentence: str
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: name if name in present else None)
    with pytest.raises(mlx_build.BuildError, match=sentence):
        mlx_build.require_tools()


def test_a_failing_build_step_is_named(mlx_build: ModuleType) -> None:
    with pytest.raises(mlx_build.BuildError, match=r"`false` failed with status 1"):
        mlx_build.run(["false"])


def test_mlx_without_its_library_is_refused(
    mlx_build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "mlx-0.32.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mlx\nVersion: 0.32.2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        mlx_build.BuildError, match=r"needs its backend package, mlx-metal on macOS"
    ):
        mlx_build.find_mlx()


METADATA = """\
Metadata-Version: 2.4
Name: vllm-metal
Requires-Dist: mlx[cpu]==0.32.2
Requires-Dist: vllm==0.33.0

Requires-Dist: vllm==0.33.0 is what the description says.
"""


def test_pip_is_sent_to_the_pure_vllm(
    mlx_build: ModuleType, monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    backend = importlib.import_module("build_backend.backend")
    monkeypatch.delenv("VLLM_METAL_PORTABLE_WHEEL", raising=False)
    lines = backend.with_local_vllm(METADATA).splitlines()
    assert lines[3] == f"Requires-Dist: vllm @ {(root / 'python' / 'vllm_wheel').as_uri()}"
    assert lines[:3] + lines[4:] == METADATA.splitlines()[:3] + METADATA.splitlines()[4:]


def test_a_portable_wheel_names_no_path(
    mlx_build: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = importlib.import_module("build_backend.backend")
    monkeypatch.setenv("VLLM_METAL_PORTABLE_WHEEL", "1")
    assert backend.with_local_vllm(METADATA) == METADATA
