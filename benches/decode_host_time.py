# SPDX-License-Identifier: Apache-2.0
"""Host time of a decode step, to build its graph and until its token: ours against mlx-lm.

    python benches/decode_host_time.py [--layers 28] [--hidden 64] [--rounds 200]

Qwen3 shape with small matrices, batch 1, float32, random weights, MLX on the CPU. What is timed is
building the lazy graph from the token id to the logits, and then a step until the greedy token
is on the host. The two alternate, and the figures are medians with the 10th and 90th percentile.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import mlx.core as mx
import torch
from mlx_lm.models import cache as mlx_lm_cache
from mlx_lm.models import qwen3 as mlx_lm_qwen3
from transformers import Qwen3Config

from vllm_metal._native import core
from vllm_metal.capture import capture_config, construct, fill_parameters, single_process
from vllm_metal.lowered import LoweredModel, lower

BLOCK_SIZE = 16


def hugging_face_config(layers: int, hidden: int) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=1024,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        architectures=["Qwen3ForCausalLM"],
    )


def ours(
    config: Qwen3Config, context: int
) -> tuple[Callable[[], float], Callable[[], float], int, Any]:
    """A function that builds a step and returns its seconds, one that runs a step to its token and
    returns its seconds, the instructions of a step, and the runtime that runs it."""
    with tempfile.TemporaryDirectory() as directory:
        config.save_pretrained(directory)
        vllm_config = capture_config(directory, "float32")
        with single_process(vllm_config):
            model = construct(vllm_config)
            fill_parameters(model)
            lowering = lower(model, vllm_config)
    runtime = core.Runtime("cpu")
    lowered = LoweredModel(runtime, lowering, model)
    num_blocks = context // BLOCK_SIZE + 1
    lowered.allocate_uniform_kv_cache(num_blocks, BLOCK_SIZE, "float32")
    position = context - 1
    ids = torch.tensor([7], dtype=torch.int32)
    positions = torch.tensor([position])
    metadata = core.AttentionMetadata(
        block_table=torch.arange(num_blocks, dtype=torch.int32)[None],
        slot_mapping=positions,
        query_start_loc=torch.tensor([0, 1], dtype=torch.int32),
        seq_lens=torch.tensor([position + 1], dtype=torch.int32),
        num_actual_tokens=1,
    )

    inputs = lowered._inputs(ids, positions)
    attention = dict.fromkeys(lowered.plan.layers, metadata)

    def whole() -> float:
        start = time.perf_counter()
        _, logits = lowered._model.step_with_logits(inputs, attention)
        int(torch.utils.dlpack.from_dlpack(logits).argmax())
        return time.perf_counter() - start

    def step() -> float:
        start = time.perf_counter()
        lazy = lowered._model.step(inputs, attention, logits=True)
        seconds = time.perf_counter() - start
        torch.from_dlpack(lazy[-1])
        return seconds

    return step, whole, lowering.report["nodes"]["plan"], runtime


def theirs(config: Qwen3Config, context: int) -> tuple[Callable[[], float], Callable[[], float]]:
    """The two functions for mlx-lm."""
    fields = config.to_dict()
    fields["rope_theta"] = config.rope_parameters["rope_theta"]
    fields["rope_scaling"] = None
    model = mlx_lm_qwen3.Model(mlx_lm_qwen3.ModelArgs.from_dict(fields))
    mx.eval(model.parameters())
    cache = mlx_lm_cache.make_prompt_cache(model)
    mx.eval(model(mx.zeros((1, context - 1), dtype=mx.int32), cache=cache))
    token = mx.array([[7]])

    def step() -> float:
        start = time.perf_counter()
        logits = model(token, cache=cache)
        seconds = time.perf_counter() - start
        mx.eval(logits)
        mlx_lm_cache.trim_prompt_cache(cache, 1)
        return seconds

    def whole() -> float:
        start = time.perf_counter()
        model(token, cache=cache)[0, -1].argmax().item()
        seconds = time.perf_counter() - start
        mlx_lm_cache.trim_prompt_cache(cache, 1)
        return seconds

    return step, whole


def own_share(step: Callable[[], float], runtime: Any, rounds: int) -> tuple[list[float], int]:
    """Seconds of each of `rounds` steps outside MLX, and the calls into MLX of one step.

    The runtime takes the time of each call into MLX; what that adds to the step (two readings of
    the clock a call) counts as ours. Releasing arrays is MLX's work too and counts as ours as well.
    """
    seconds, calls = [], 0
    for _ in range(rounds):
        runtime.meter(True)
        whole = step()
        calls, inside = runtime.meter(False)
        seconds.append(whole - inside)
    return seconds, calls


def compare(
    what: str, ours: Callable[[], float], theirs: Callable[[], float], rounds: int
) -> list[float]:
    """Runs both in turns and prints their times; gives ours."""
    for _ in range(10):  # fills allocator caches
        ours()
        theirs()
    pairs = [(ours(), theirs()) for _ in range(rounds)]
    ratio = statistics.median(a / b for a, b in pairs)
    for name, side in ((f"{what}, ours", 0), (f"{what}, mlx-lm", 1)):
        print(describe(name, [pair[side] for pair in pairs]))
    print(f"{what}, ratio {ratio:.3f} (median of {rounds} pairs)")
    return [a for a, _ in pairs]


def describe(name: str, seconds: list[float]) -> str:
    tenths = statistics.quantiles(seconds, n=10)
    median = statistics.median(seconds)
    return f"{name:14} {median * 1e3:7.3f} ms   ({tenths[0] * 1e3:.3f} .. {tenths[-1] * 1e3:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    mx.set_default_device(mx.cpu)
    torch.set_num_threads(1)
    config = hugging_face_config(options.layers, options.hidden)
    our_step, our_whole, instructions, runtime = ours(config, options.context)
    their_step, their_whole = theirs(config, options.context)
    print(f"{options.layers} layers, hidden {options.hidden}, context {options.context}, MLX CPU")
    our_times = compare("build", our_step, their_step, options.rounds)
    compare("token", our_whole, their_whole, options.rounds)
    own, calls = own_share(our_step, runtime, options.rounds)
    print(describe("own", own) + f"   outside the {calls} calls into MLX")
    whole, ours_alone = (statistics.median(t) / instructions * 1e6 for t in (our_times, own))
    print(f"{instructions} plan instructions: {whole:.2f} us each, {ours_alone:.2f} us outside MLX")


if __name__ == "__main__":
    main()
