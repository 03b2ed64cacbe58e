# SPDX-License-Identifier: Apache-2.0
"""Makes Rust use the very libmlx that Python's `mlx` package loads.

The process must hold one MLX: one allocator, one device. The mlx-sys crate would build its own, so
this module does the work of mlx-sys's build script against the library in the `mlx` wheel instead:

1. `libmlxc.a`: mlx-c, from the sources inside the mlx-sys crate, built by CMake against the wheel;
2. `bindings.rs`: the Rust declarations of mlx-c, by bindgen (the crate `mlx_bindings` beside this);
3. a Cargo configuration that overrides the `mlx` links key, so that Cargo takes both from here and
   skips mlx-sys's build script.

`python -m build_backend.mlx` writes that configuration to `.cargo/config.toml`, for plain `cargo`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).resolve().parent
BUILD = ROOT / ".build"
COMPAT_HEADER = SOURCE / "compat.h"


class BuildError(RuntimeError):
    """A build step failed; the message says what is missing and how to get it."""


@dataclass(frozen=True)
class Mlx:
    """The MLX to build against: its version and the folder that holds `include/` and `lib/`."""

    version: str
    root: Path

    @property
    def library(self) -> Path:
        return self.root / "lib" / ("libmlx.dylib" if sys.platform == "darwin" else "libmlx.so")


def find_mlx() -> Mlx:
    """The `mlx` distribution that this interpreter imports."""
    try:
        distribution = importlib.metadata.distribution("mlx")
    except importlib.metadata.PackageNotFoundError:
        raise BuildError("the Python package mlx is not installed in this environment") from None
    root = Path(str(distribution.locate_file("mlx"))).resolve()
    mlx = Mlx(distribution.version, root)
    if not mlx.library.is_file():
        raise BuildError(
            f"{mlx.library} is missing: the package mlx needs its backend package, "
            f"mlx-metal on macOS or mlx-cpu on Linux, at version {mlx.version}"
        )
    return mlx


def run(command: list[str], **variables: str) -> str:
    """Runs a build command and returns its output; the whole output is shown when it fails.

    `variables` are added to the environment. The scripts of this Python environment (cmake, ninja)
    come first on the path.
    """
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    result = subprocess.run(
        command,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PATH": path, **variables},
    )
    if result.returncode != 0:
        sys.stderr.write(result.stdout)
        raise BuildError(f"`{' '.join(command)}` failed with status {result.returncode}")
    return str(result.stdout)


def require_tools() -> None:
    """Refuses early, in one sentence, when the machine has no Rust or no C++ compiler."""
    if shutil.which("cargo") is None:
        raise BuildError(
            "Rust is missing: install it with rustup, then open a new shell and try again"
        )
    if compiler() is None:
        how = (
            "run `xcode-select --install`"
            if sys.platform == "darwin"
            else "install g++ or clang++ (on Debian and Ubuntu: `apt-get install g++`)"
        )
        raise BuildError(f"a C++ compiler is missing: {how}, then try again")


def compiler() -> str | None:
    """The C++ compiler: `$CXX`, or the first of the usual names that exists."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((path for path in map(shutil.which, names) if path), None)


def host_triple() -> str:
    """The target triple that Cargo builds for."""
    if target := os.environ.get("CARGO_BUILD_TARGET"):
        return target
    lines = run(["rustc", "--version", "--verbose"]).splitlines()
    return next(line.removeprefix("host: ") for line in lines if line.startswith("host: "))


def mlx_sys_crate() -> Path:
    """The folder of the mlx-sys crate that Cargo.lock names; Cargo fetches it when needed."""
    result = subprocess.run(
        ["cargo", "metadata", "--format-version=1"],
        check=False,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    if result.returncode != 0:
        raise BuildError("`cargo metadata` could not resolve the Rust crates (see above)")
    for package in json.loads(result.stdout)["packages"]:
        if package["name"] == "mlx-sys":
            return Path(package["manifest_path"]).parent
    raise BuildError("the crate mlx-sys is not among the dependencies in Cargo.toml")


def build_mlx_c(mlx_c: Path, mlx: Mlx, output: Path) -> None:
    """Builds `libmlxc.a` into `output`."""
    work = output / "mlx-c"
    shutil.rmtree(work, ignore_errors=True)
    run(
        [
            "cmake",
            "-S",
            str(mlx_c),
            "-B",
            str(work),
            "-G",
            "Ninja",
            "-DCMAKE_BUILD_TYPE=Release",
            "-DMLX_C_USE_SYSTEM_MLX=ON",
            "-DMLX_C_BUILD_EXAMPLES=OFF",
            "-DBUILD_SHARED_LIBS=OFF",
            f"-DCMAKE_PREFIX_PATH={mlx.root}",
            f"-DCMAKE_CXX_FLAGS=-include {COMPAT_HEADER}",
        ]
    )
    run(["cmake", "--build", str(work), "--parallel", str(os.cpu_count() or 1)])
    shutil.copy2(work / "libmlxc.a", output / "libmlxc.a")
    shutil.rmtree(work)


def clang_arguments() -> list[str]:
    """What libclang needs to find the C headers."""
    if sys.platform == "darwin":
        # Xcode's own libclang is used, which knows where its headers are.
        sdk = run(["xcrun", "--show-sdk-path"]).strip()
        return ["-isysroot", sdk, f"-I{COMPAT_HEADER.parent}"]
    # The libclang wheel has no headers of its own (stddef.h and the like): take the compiler's.
    cxx = compiler()
    assert cxx is not None, "require_tools() ran first"
    include = run([cxx, "-print-file-name=include"]).strip()
    return [f"-isystem{include}", "-include", str(COMPAT_HEADER)]


def write_bindings(mlx_c: Path, output: Path) -> None:
    """Writes `bindings.rs` into `output`."""
    variables = {}
    if sys.platform != "darwin":
        import clang

        variables["LIBCLANG_PATH"] = str(Path(next(iter(clang.__path__))) / "native")
    run(
        [
            "cargo",
            "run",
            "--quiet",
            "--package",
            "mlx-bindings",
            "--",
            str(mlx_c),
            str(output / "bindings.rs"),
            *clang_arguments(),
        ],
        **variables,
    )


def cargo_configuration(
    triple: str, mlx: Mlx, mlx_c: Path, output: Path, runtime_paths: list[Path]
) -> str:
    """The Cargo configuration (TOML) that replaces mlx-sys's build script.

    `mlx_c` are mlx-c's sources. `runtime_paths` are the folders that the built library shall search
    for libmlx beside the relative one: empty for a wheel that is built to be moved.
    """
    cxx_library = "dylib=c++" if sys.platform == "darwin" else "dylib=stdc++"
    values = {
        "rustc-link-search": [f"native={output}", f"native={mlx.library.parent}"],
        "rustc-link-lib": ["static=mlxc", "dylib=mlx", cxx_library],
        "rustc-env": {"OUT_DIR": str(output)},
        "version": mlx.version,
        "include": os.pathsep.join([str(mlx.root / "include"), str(mlx_c)]),
        "runtime-paths": os.pathsep.join(map(str, runtime_paths)),
    }
    lines = ["# Written by `python -m build_backend.mlx`; do not edit.", f"[target.{triple}.mlx]"]
    for key, value in values.items():
        if isinstance(value, dict):
            inner = ", ".join(f"{name} = {json.dumps(text)}" for name, text in value.items())
            lines.append(f"{key} = {{ {inner} }}")
        else:
            lines.append(f"{key} = {json.dumps(value)}")
    return "\n".join(lines) + "\n"


def prepare(runtime_paths: list[Path] | None = None) -> str:
    """Builds what is missing and returns the Cargo configuration to build with."""
    require_tools()
    mlx = find_mlx()
    triple = host_triple()
    crate = mlx_sys_crate()
    mlx_c = crate / "src" / "mlx-c"
    # The headers are the same in every copy of one mlx version, so the key needs no path.
    key = hashlib.sha256(COMPAT_HEADER.read_bytes())
    key.update((SOURCE / "mlx_bindings" / "src" / "main.rs").read_bytes())
    output = BUILD / f"{crate.name}-mlx-{mlx.version}-{triple}-{key.hexdigest()[:8]}"
    done = output / "done"
    if not done.is_file():
        print(f"building mlx-c against mlx {mlx.version}", file=sys.stderr, flush=True)
        output.mkdir(parents=True, exist_ok=True)
        build_mlx_c(mlx_c, mlx, output)
        write_bindings(mlx_c, output)
        done.touch()
    return cargo_configuration(triple, mlx, mlx_c, output, runtime_paths or [])


def write_if_changed(path: Path, text: str) -> None:
    """Keeps the time stamp of an unchanged file, so that Cargo does not build again."""
    if not path.is_file() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m build_backend.mlx", description=__doc__)
    parser.parse_args()
    try:
        configuration = prepare([find_mlx().library.parent])
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    python = f"\n[env]\nPYO3_PYTHON = {json.dumps(os.path.abspath(sys.executable))}\n"
    write_if_changed(ROOT / ".cargo" / "config.toml", configuration + python)
    print("ready: cargo builds against", find_mlx().library)
    return 0


if __name__ == "__main__":
    sys.exit(main())
