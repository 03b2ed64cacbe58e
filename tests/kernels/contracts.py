# SPDX-License-Identifier: Apache-2.0
"""The kernels of `lowering/kernels`, from their files, and how they run here."""

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np

from vllm_metal.kernels.contract import Contract, Kernel, Launch, read
from vllm_metal.kernels.tensor import Tensor

from .host import run

FOLDER = Path(__file__).resolve().parents[2] / "lowering" / "kernels"
NAMES = sorted(path.stem for path in FOLDER.glob("*.toml"))


@cache
def contract(name: str) -> Contract:
    """The kernel of that name."""
    text = (FOLDER / f"{name}.toml").read_text()
    headers = tomllib.loads(text).get("headers", [])
    header = "\n".join((FOLDER / file).read_text() for file in headers)
    return read(text, (FOLDER / f"{name}.metal").read_text(), header)


def on_host(kernel: Kernel, inputs: Mapping[str, Tensor], launch: Launch) -> dict[str, Tensor]:
    """Under three orders of threads."""
    return run(kernel, inputs, launch)


def in_one_order(kernel: Kernel, inputs: Mapping[str, Tensor], launch: Launch) -> dict[str, Tensor]:
    """For what is long."""
    return run(kernel, inputs, launch, orders=(0,))


def assert_close(name: str, found: Tensor, expected: np.ndarray, dtype: str) -> None:
    """Within the tolerance of the kernel's contract."""
    difference = contract(name).difference(found, expected, dtype)
    assert difference is None, f"{name} {dtype}: {difference}"
