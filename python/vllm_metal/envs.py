# SPDX-License-Identifier: Apache-2.0
"""Every environment variable of vllm-metal: name, default, meaning and check, in one table."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def _switch(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError("expected 0 or 1")
    return text == "1"


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0.0 < value <= 1.0:
        raise ValueError("expected a number above 0 and at most 1")
    return value


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise ValueError("expected a whole number of at least 1")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise ValueError("expected a whole number")
    return int(text)


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"expected {' or '.join(choices)}")
        return text

    return parse


def _folder(text: str) -> Path:
    if not text:
        raise ValueError("expected a folder")
    return Path(text).expanduser()


def _default_cache_dir() -> str:
    if sys.platform == "darwin":
        return "~/Library/Caches/vllm-metal"
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "vllm-metal")


@dataclass(frozen=True)
class Variable:
    """One environment variable; `parse` raises ValueError with what it expected."""

    name: str
    default: str
    parse: Callable[[str], Any]
    meaning: str

    def text(self) -> str:
        return os.environ.get(self.name, self.default)

    def value(self) -> Any:
        try:
            return self.parse(self.text())
        except ValueError as error:
            raise ValueError(f"{self.name}={self.text()!r}: {error}.") from None


MEMORY_FRACTION = Variable(
    "VLLM_METAL_MEMORY_FRACTION",
    "0.9",
    _fraction,
    "share of the machine's memory that weights, KV cache and working memory may take; "
    "--gpu-memory-utilization lowers it further",
)
USE_MLX = Variable(
    "VLLM_METAL_USE_MLX",
    "1",
    _switch,
    "0 runs vLLM's PyTorch model on the CPU instead of the plan lowered to MLX: slow, and the "
    "reference that the lowered plan is compared with",
)
DEVICE = Variable(
    "VLLM_MLX_DEVICE",
    "gpu",
    _one_of("gpu", "cpu"),
    "device that MLX runs on; gpu falls back to cpu, with a warning, where there is none",
)
BLOCK_SIZE = Variable(
    "VLLM_METAL_BLOCK_SIZE",
    "16",
    _positive,
    "tokens in a block of the KV cache; --block-size takes precedence",
)
FALLBACK = Variable(
    "VLLM_METAL_FALLBACK",
    "torch",
    _one_of("torch", "error"),
    "what happens to an operator that has no lowering: torch runs it in PyTorch on the CPU and "
    "says so, error refuses the model",
)
CACHE_DIR = Variable(
    "VLLM_METAL_CACHE_DIR",
    _default_cache_dir(),
    _folder,
    "folder of the plan cache: a model that was captured and lowered once is read from there",
)
DISABLE_CACHE = Variable(
    "VLLM_METAL_DISABLE_CACHE",
    "0",
    _switch,
    "1 captures and lowers every time, and writes nothing to the plan cache",
)
DECODE_SHAPES = Variable(
    "VLLM_METAL_DECODE_SHAPES",
    "32",
    _count,
    "shapes of decode steps whose graphs are kept and replayed; 0 builds every step anew",
)
DEBUG = Variable(
    "VLLM_METAL_DEBUG",
    "0",
    _switch,
    "1 logs the tokens and the host time of every step, and shows where an error of "
    "`python -m vllm_metal.lower` comes from",
)

VARIABLES = (
    MEMORY_FRACTION,
    USE_MLX,
    DEVICE,
    BLOCK_SIZE,
    FALLBACK,
    CACHE_DIR,
    DISABLE_CACHE,
    DECODE_SHAPES,
    DEBUG,
)


def register() -> None:
    """Make the variables known to `vllm.envs`, which warns about VLLM_* names it does not know."""
    import vllm.envs

    for variable in VARIABLES:
        vllm.envs.environment_variables[variable.name] = variable.text


def validate() -> None:
    """Raise ValueError, naming the variable and what it expects, on the first bad value."""
    for variable in VARIABLES:
        variable.value()
