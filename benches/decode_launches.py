# SPDX-License-Identifier: Apache-2.0
"""What one layer of a decode step of ours launches on Metal, from its graph, next to mlx-lm.

    python benches/decode_launches.py [--model llama|mistral|qwen3] [--context TOKENS]

The graph is that of a runtime which passes for one on a Mac's GPU (`core.Runtime.recorder`), so it
is traced on any machine, and `metal_launches.toml` says what each of its primitives launches.
Kernels of ours are one launch each. The report's `decode` is the lowering's own count. Not run on
Metal.
"""

import argparse
import json
import re
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import mlx_lm_launches
import torch

from vllm_metal._native import core
from vllm_metal.capture import capture_config, construct, fill_parameters, single_process
from vllm_metal.lowered import LoweredModel, lower

CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
BLOCK_SIZE = 16
# Where MLX's kernels depend on how many operands there are.
PER_OPERAND = {"Concatenate"}

Lines = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Count:
    """Launches of one layer: by primitive of the graph (how many, and what they launch), and as the
    report has them."""

    traced: Lines
    reported: Mapping[str, float]

    @property
    def total(self) -> int:
        return sum(launched for _, launched in self.traced.values())


def config(name: str, layers: int) -> dict[str, Any]:
    """The model that mlx-lm's launches are counted for."""
    return {**mlx_lm_launches.fields(name, layers), "architectures": [CLASSES[name]]}


def primitives(dot: str) -> Counter[str]:
    """Nodes of a graph in MLX's DOT by primitive; those that launch by operand count by operand."""
    names = dict(re.findall(r'(\d+) \[label ="([^"]+)", shape=rectangle\]', dot))
    operands = Counter(target for _, target in re.findall(r'"?(\w+)"? -> (\d+)', dot))
    found: Counter[str] = Counter()
    for node, name in names.items():
        name = "Compiled" if name.startswith("Compiled") else name
        found[name] += operands[node] if name in PER_OPERAND else 1
    return found


def step(
    name: str, layers: int, dtype: str, context: int, kernels: bool, rows: int = 1
) -> tuple[Counter[str], dict[str, Any]]:
    """Primitives of a step of one request that then has so many tokens, the last `rows` of which
    it computes, and the report."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "config.json")
        path.write_text(json.dumps(config(name, layers)))
        vllm_config = capture_config(str(directory), dtype=dtype)
        runtime = core.Runtime.recorder()
        try:
            with single_process(vllm_config):
                model = construct(vllm_config)
                lowering = lower(model, vllm_config)
                fill_parameters(model)
                usable = lowering.plan.kernels if kernels else []
                lowered = LoweredModel(runtime, lowering, model, kernels=usable)
                blocks = -(-context // BLOCK_SIZE)
                lowered.allocate_uniform_kv_cache(blocks, BLOCK_SIZE, dtype)
                positions = torch.arange(context - rows, context)
                metadata = core.AttentionMetadata(
                    block_table=torch.arange(blocks, dtype=torch.int32)[None],
                    slot_mapping=positions,
                    query_start_loc=torch.tensor([0, rows], dtype=torch.int32),
                    seq_lens=torch.tensor([context], dtype=torch.int32),
                    num_actual_tokens=rows,
                )
                runtime.recorded([], str(path))
                hidden = lowered.run(torch.full((rows,), 7), positions, metadata)
                called, dot = runtime.recorded([hidden.lazy], str(path))
        finally:
            runtime.close()
    return primitives(dot) + Counter(called), lowering.report


@cache
def layer(
    name: str, dtype: str = "bfloat16", context: int = 512, kernels: bool = True, rows: int = 1
) -> Count:
    """One layer of a step: the difference of three layers and two.

    Raises KeyError for a primitive that neither the table nor the plan's kernels have.
    """
    (three, report), (two, _) = (step(name, n, dtype, context, kernels, rows) for n in (3, 2))
    found = three - two
    assert not two - three, "a step of more layers has less of something"
    launches = mlx_lm_launches.table()
    ours = {kernel: 1 for kernel, *_ in core.kernel_texts()}
    traced = {of: (n, n * {**launches, **ours}[of]) for of, n in sorted(found.items())}
    decode = report["decode"]
    return Count(traced, (decode["kernels"] if kernels else decode)["layer"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=CLASSES, default="qwen3")
    parser.add_argument("--context", type=int, default=512)
    options = parser.parse_args()
    for kernels in (True, False):
        found = layer(options.model, context=options.context, kernels=kernels)
        print(f"{options.model}, {'with' if kernels else 'without'} kernels of ours, by the table:")
        for of, (count, launched) in found.traced.items():
            print(f"  {of:26} x{count:<3} {launched:3} launches")
        print(f"  {'a layer':26}      {found.total:3} launches")
        print("by the report:")
        for of, reported in found.reported.items():
            print(f"  {of:26}      {reported:3.4g} launches")
        print(f"  {'a layer':26}      {sum(found.reported.values()):3.4g} launches")
    theirs = mlx_lm_launches.layer(options.model)
    print("mlx-lm, by the table:")
    for of, (count, launched) in theirs.items():
        print(f"  {of:26} x{count:<3} {launched:3} launches")
    print(f"  {'a layer':26}      {sum(n for _, n in theirs.values()):3} launches")


if __name__ == "__main__":
    main()
