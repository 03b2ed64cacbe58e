#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Sets up this checkout: a Python environment in .venv (or $VENV), and the native module built in it.
# Needs Python 3.11 to 3.14, Rust and a C++ compiler; says which one is missing. Safe to run again.
set -eu
cd "$(dirname "$0")"
venv=${VENV:-.venv}
system=$(uname -s)

say() { printf '%s\n' "$*" >&2; }
fail() { say "error: $*"; exit 1; }

find_python() {
    for name in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if command -v "$name" >/dev/null 2>&1 &&
            "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))'; then
            printf '%s\n' "$name"
            return
        fi
    done
    fail "Python 3.11 to 3.14 is missing: install it from your system's packages" \
        "(on Debian and Ubuntu: apt-get install python3 python3-venv; on macOS: brew install python)"
}

check_tools() {
    command -v cargo >/dev/null 2>&1 ||
        fail "Rust is missing: install it with rustup, open a new shell and run this again"
    command -v "${CXX:-c++}" >/dev/null 2>&1 || command -v g++ >/dev/null 2>&1 ||
        command -v clang++ >/dev/null 2>&1 || {
        if [ "$system" = Darwin ]; then
            fail "a C++ compiler is missing: run xcode-select --install, then run this again"
        fi
        fail "a C++ compiler is missing: install g++ or clang++" \
            "(on Debian and Ubuntu: apt-get install g++), then run this again"
    }
}

find_uv() {
    if command -v uv >/dev/null 2>&1; then
        command -v uv
        return
    fi
    if [ ! -x .build/uv/bin/uv ]; then
        say "uv is missing: installing it into .build/uv"
        "$python" -m venv .build/uv >&2 || fail "Python's venv module is missing" \
            "(on Debian and Ubuntu: apt-get install python3-venv)"
        .build/uv/bin/pip install --quiet --require-hashes -r requirements/uv.txt >&2 ||
            fail "pip could not install uv (see above)"
    fi
    printf '%s\n' "$PWD/.build/uv/bin/uv"
}

check_tools
python=$(find_python)
uv=$(find_uv)

[ -x "$venv/bin/python" ] || "$uv" venv --quiet --python "$python" "$venv"
VIRTUAL_ENV=$(cd "$venv" && pwd)
export VIRTUAL_ENV
# `uv pip` takes the exact versions and their hashes from the requirement files alone.
"$uv" pip install --quiet --require-hashes -r requirements/dev.txt
"$uv" pip install --quiet --no-deps ./python/vllm_wheel

# The same libmlx for plain cargo as for the module.
PYTHONPATH=python "$venv/bin/python" -m build_backend.mlx
"$uv" pip install --quiet --no-deps --no-build-isolation --reinstall-package vllm-metal --editable .
"$venv/bin/python" -c 'from vllm_metal._native import core; print("ready: vllm-metal with mlx", core.mlx_version())'
if [ "$system" = Linux ] && ! command -v clang++-19 >/dev/null 2>&1; then
    say "note: the tests of the Metal kernels need clang 19" \
        "(on Debian and Ubuntu: apt-get install clang-19 libclang-rt-19-dev); nothing else does"
fi
