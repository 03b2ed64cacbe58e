# SPDX-License-Identifier: Apache-2.0
"""clang, how kernels are compiled with it, and what is kept of it."""

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import mlx.core as mx

from .errors import KernelError

HERE = Path(__file__).resolve().parent
COMPILER = "clang++-19"
MISSING = (
    "clang-19 is missing: kernels are compiled with it, because earlier versions and GCC lack "
    "arithmetic of bfloat16 on x86-64 (on Debian: apt-get install clang-19 libclang-rt-19-dev)"
)

_LANGUAGE = [
    "-std=c++17",
    "-Xclang",
    "-cl-single-precision-constant",  # Metal has no double
    "-Werror=vla",
    "-Wno-unknown-attributes",
    "-Wno-ignored-attributes",
]
_COMPILED = [
    "-O1",
    "-fPIC",
    "-gline-tables-only",
    "-fno-exceptions",
    # Each operation of 16-bit floats rounds, as on the GPU, and none are fused behind our back.
    "-Xclang",
    "-ffloat16-excess-precision=none",
    "-Xclang",
    "-fbfloat16-excess-precision=none",
    "-ffp-contract=off",
]
_CHECKS = [
    "-fsanitize=bounds,shift,integer-divide-by-zero,signed-integer-overflow",
    "-fsanitize-trap=all",
]


def compiler() -> str:
    """Path of the compiler.

    Raises:
        KernelError: it is not installed.
    """
    path = shutil.which(COMPILER)
    if path is None:
        raise KernelError(MISSING)
    return path


def includes() -> list[str]:
    """Our library first: it stands in for two of MLX's headers."""
    own = Path(mx.__file__).parent / "include"
    return ["-I", str(HERE / "include"), "-I", str(own)]


@functools.cache
def _cache() -> Path:
    path = Path(tempfile.gettempdir()) / f"vllm-metal-kernels-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    return path


@functools.cache
def _environment_hash() -> str:
    """Of all that a compiled kernel depends on beside its own text."""
    digest = hashlib.sha256()
    headers = [path for path in (HERE / "include").rglob("*") if path.is_file()]
    for path in [*sorted(headers), *sorted((HERE / "engine").iterdir())]:
        digest.update(path.read_bytes())
    version = subprocess.run([compiler(), "--version"], capture_output=True, check=True)
    digest.update(version.stdout + repr([_LANGUAGE, _COMPILED, _CHECKS]).encode())
    return digest.hexdigest()


def _build(source: str, name: str, flags: list[str], libraries: list[str]) -> Path:
    """The shared library of a C++ text, compiled once."""
    key = hashlib.sha256("\0".join([source, _environment_hash(), *flags, *libraries]).encode())
    path = _cache() / f"{name}-{key.hexdigest()[:20]}.so"
    if path.exists():
        return path
    with tempfile.TemporaryDirectory(dir=_cache()) as scratch:
        text, built = Path(scratch) / "source.cpp", Path(scratch) / "built.so"
        text.write_text(source)
        command = [compiler(), *_LANGUAGE, *_COMPILED, *flags, *includes(), "-shared"]
        done = subprocess.run(
            [*command, "-o", str(built), str(text), *libraries], capture_output=True, text=True
        )
        if done.returncode != 0:
            raise KernelError(f"the kernel does not compile:\n{done.stderr[:8000]}")
        built.rename(path)  # atomic: another process may build the same
    return path


PREFIX = '#include <metal_stdlib>\n#include "mlx/backend/metal/kernels/utils.h"\n'


@functools.cache
def _session() -> tempfile.TemporaryDirectory[str]:
    """For what is kept no longer than this process."""
    return tempfile.TemporaryDirectory(dir=_cache())


@functools.cache
def _precompiled_prefix(flags: tuple[str, ...]) -> Path:
    """The headers of every kernel, parsed once a process: half of what a kernel takes to compile.

    clang refuses one whose headers were touched or stand elsewhere since, so it is not kept.
    """
    path = Path(_session().name) / f"prefix-{len(list(Path(_session().name).iterdir()))}.pch"
    command = [compiler(), *_LANGUAGE, *_COMPILED, *flags, *includes()]
    subprocess.run(
        [*command, "-x", "c++-header", "-o", str(path), "-"], input=PREFIX, text=True, check=True
    )
    return path


def build_engine(sanitize: bool = False) -> Path:
    """The engine. `sanitize`: for kernels built with the thread sanitizer."""
    source = f'#include "{HERE}/engine/engine.cpp"\n'
    # The engine itself is not instrumented: it switches stacks.
    flags = ["-O2", "-DMSL_THREAD_SANITIZER=1"] if sanitize else ["-O2"]
    return _build(source, "engine", flags, [])


def build_kernel(source: str, sanitize: bool = False) -> Path:
    """A kernel that `translate` made.

    Raises:
        KernelError: the compiler's messages; their lines are those of the kernel's text.
    """
    flags = [*_CHECKS, "-fsanitize=thread"] if sanitize else _CHECKS
    prefix = str(_precompiled_prefix(tuple(flags)))
    return _build(source, "kernel", [*flags, "-include-pch", prefix], [str(build_engine(sanitize))])


def check_syntax(source: str, flags: list[str]) -> list[str]:
    """The compiler's errors."""
    command = [compiler(), *_LANGUAGE, "-Wno-everything", "-fsyntax-only", "-ferror-limit=0"]
    command += ["-fno-caret-diagnostics", *flags, *includes(), "-x", "c++", "-"]
    done = subprocess.run(command, input=source, capture_output=True, text=True)
    return [line for line in done.stderr.splitlines() if " error: " in line]


def thread_sanitizer() -> str:
    """Path of the library to preload into a process that runs sanitized kernels.

    Raises:
        KernelError: it is not installed.
    """
    query = [compiler(), "-print-resource-dir"]
    root = Path(subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip())
    path = root / "lib" / "linux" / f"libclang_rt.tsan-{platform.machine()}.so"
    if not path.exists():
        raise KernelError(MISSING)
    return str(path)
