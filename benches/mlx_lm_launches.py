# SPDX-License-Identifier: Apache-2.0
"""What mlx-lm launches on Metal for one layer of a decode step, from its graph.

    python benches/mlx_lm_launches.py [--model llama|mistral|qwen3]

The graph of a step is traced on any machine, and `metal_launches.toml` says what each of its
primitives launches. MLX writes its fused functions out where it has no GPU, so arrays stand for
their results, and the functions themselves are counted.
"""

import argparse
import re
import tempfile
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

TABLE = Path(__file__).with_name("metal_launches.toml")
FUSED = {
    "rms_norm": "RMSNorm",
    "rope": "RoPE",
    "scaled_dot_product_attention": "ScaledDotProductAttention",
}
# mlx-lm runs Mistral by its Llama.
MODULES = {"llama": "llama", "mistral": "llama", "qwen3": "qwen3"}


def table() -> dict[str, int]:
    """Launches by primitive."""
    rows = tomllib.loads(TABLE.read_text())["primitive"]
    return {row["name"]: row["launches"] for row in rows}


@contextmanager
def fused_counted() -> Iterator[tuple[list[str], list[mx.array]]]:
    """The fused functions called meanwhile, and the arrays that they were called with."""
    called: list[str] = []
    operands: list[mx.array] = []

    def stand_in(name: str) -> Callable[..., mx.array]:
        def call(x: mx.array, *others: Any, **named: Any) -> mx.array:
            called.append(name)
            given = (x, *others, *named.values())
            operands.extend(value for value in given if isinstance(value, mx.array))
            result = mx.zeros(x.shape, x.dtype)
            mx.eval(result)
            return result

        return call

    with mock.patch.multiple(mx.fast, **{of: stand_in(name) for of, name in FUSED.items()}):
        yield called, operands


def fields(name: str, layers: int) -> dict[str, Any]:
    """Configuration of a small model of that name."""
    return {
        "model_type": name,
        "hidden_size": 256,
        "num_hidden_layers": layers,
        "intermediate_size": 512,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "rms_norm_eps": 1e-6,
        "vocab_size": 320,
        "rope_theta": 10000.0,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    }


def step(name: str, layers: int) -> Counter[str]:
    """Primitives of a decode step of the model with so many layers."""
    module = import_module(f"mlx_lm.models.{MODULES[name]}")
    model = module.Model(module.ModelArgs.from_dict(fields(name, layers)))
    cache = make_prompt_cache(model)
    mx.eval(model.parameters(), model(mx.zeros((1, 8), dtype=mx.int32), cache=cache))
    with fused_counted() as (called, operands):
        logits = model(mx.array([[7]]), cache=cache)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "step.dot")
        mx.export_to_dot(str(path), logits, *operands)
        names = re.findall(r'label ="([^"]+)"', path.read_text())
    # mx.compile names what it joins after all its parts.
    names = ["Compiled" if found.startswith("Compiled") else found for found in names]
    return Counter(names) + Counter(called)


def layer(name: str) -> dict[str, tuple[int, int]]:
    """Primitives of one layer of a decode step: how many there are, and what they launch.

    Raises KeyError for a primitive that the table lacks.
    """
    launches = table()
    found = step(name, 3) - step(name, 2)
    return {of: (count, count * launches[of]) for of, count in sorted(found.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODULES, default="qwen3")
    name = parser.parse_args().model
    mx.set_default_device(mx.cpu)
    found = layer(name)
    for of, (count, launched) in found.items():
        print(f"{of:26} x{count:<3} {launched:3} launches")
    print(f"{name}: {sum(launched for _, launched in found.values())} launches a layer")


if __name__ == "__main__":
    main()
