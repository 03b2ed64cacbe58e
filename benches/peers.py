# SPDX-License-Identifier: Apache-2.0
"""Ours against mlx-lm on the same MLX, device and weights, in one run.

    python benches/peers.py [--shape qwen3-0.6b] [--device cpu|gpu] [--dtype bfloat16] [--pairs 5]

Prefill, time to first token, decoding at batch 1 and 8, the host time that a decode step takes to
build, launches, and peak memory. Weights are random, of the shape's size, from one checkpoint that
both load. The two alternate pair by pair; a figure is the median with its range, and a ratio is the
median of the pairs' ratios (ours over mlx-lm's: below 1 is faster). Greedy tokens of both are
compared before anything is timed. `--plot FILE` draws the ratios.

On Linux MLX has a slow BLAS: read ratios and host times there, not tokens per second.
"""

import argparse
import contextlib
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import mlx.core as mx
import torch
from mlx_lm import utils as mlx_lm_utils
from mlx_lm.models import cache as mlx_lm_cache
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    PretrainedConfig,
    Qwen3Config,
)

from vllm_metal._native import core
from vllm_metal.capture import capture_config, single_process
from vllm_metal.lowered import LoweredModel, lower

BLOCK_SIZE = 16

SHAPES: dict[str, Callable[[], PretrainedConfig]] = {
    "tiny": lambda: Qwen3Config(
        vocab_size=1024,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=28,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=True,
        architectures=["Qwen3ForCausalLM"],
    ),
    "qwen3-0.6b": lambda: Qwen3Config(
        vocab_size=151936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
        architectures=["Qwen3ForCausalLM"],
    ),
    "llama-3-8b": lambda: LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
    ),
}


def write_checkpoint(config: PretrainedConfig, directory: Path, dtype: torch.dtype) -> None:
    """A random checkpoint of the shape; matrices at a scale at which layers matter."""
    fields = config.to_dict()
    # mlx-lm reads the names of transformers 4.
    fields["rope_theta"] = config.rope_parameters["rope_theta"]
    config.save_pretrained(directory)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory))
    generator = torch.Generator().manual_seed(0)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    tensors = {}
    for name, parameter in model.named_parameters():
        if name in tied:
            continue
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
        scale = 0.5 / parameter.shape[-1] ** 0.5 if parameter.dim() > 1 else 0.1
        tensors[name] = (noise * scale + (parameter.dim() == 1)).to(dtype)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(fields | {"dtype": str(dtype)[6:]}))


class Ours:
    """The lowered model, driven a step at a time."""

    name = "ours"

    def __init__(self, directory: Path, device: str, dtype: str, batch: int, length: int) -> None:
        vllm_config = capture_config(str(directory), dtype, load_format="auto")
        with single_process(vllm_config):
            from vllm.model_executor.model_loader import get_model_loader

            loader = get_model_loader(vllm_config.load_config)
            model = loader.load_model(
                vllm_config=vllm_config, model_config=vllm_config.model_config
            )
            self.lowering = lower(model, vllm_config)
        self.runtime = core.Runtime(device)
        self.model = LoweredModel(self.runtime, self.lowering, model, release=True)
        self.blocks = -(-length // BLOCK_SIZE)
        self.model.allocate_uniform_kv_cache(batch * self.blocks, BLOCK_SIZE, dtype)

    def prefill(self, ids: torch.Tensor) -> torch.Tensor:
        """ids int32[batch, length] -> next tokens [batch]; the cache is begun anew."""
        return self._step(ids, 0)

    def _step(self, ids: torch.Tensor, context: int) -> torch.Tensor:
        inputs, attention = self._arguments(ids, context)
        batch, length = ids.shape
        last = torch.arange(length - 1, batch * length, length) if length > 1 else None
        _, logits = self.model._model.step_with_logits(inputs, attention, last)
        return torch.utils.dlpack.from_dlpack(logits).argmax(-1)

    def build(self, ids: torch.Tensor, context: int) -> Any:
        """The lazy logits of a decode step."""
        inputs, attention = self._arguments(ids, context)
        return self.model._model.step(inputs, attention, logits=True)[-1]

    def _arguments(self, ids: torch.Tensor, context: int) -> tuple[dict[str, Any], dict[str, Any]]:
        batch, length = ids.shape
        positions = torch.arange(context, context + length).repeat(batch)
        table = torch.arange(batch * self.blocks, dtype=torch.int32).view(batch, self.blocks)
        rows = torch.arange(batch).repeat_interleave(length)
        metadata = core.AttentionMetadata(
            block_table=table,
            slot_mapping=rows * self.blocks * BLOCK_SIZE + positions,
            query_start_loc=torch.arange(0, batch * length + 1, length, dtype=torch.int32),
            seq_lens=torch.full((batch,), context + length, dtype=torch.int32),
            num_actual_tokens=batch * length,
        )
        inputs = self.model._inputs(ids.reshape(-1), positions)
        return inputs, dict.fromkeys(self.model.plan.layers, metadata)

    def finish(self, lazy: Any) -> torch.Tensor:
        """Computes the step; greedy tokens [batch]."""
        return torch.from_dlpack(lazy).argmax(-1)

    def decode(self, tokens: torch.Tensor, context: int, steps: int) -> torch.Tensor:
        """Greedy tokens [batch, steps] after `context` tokens in the cache. A step is begun before
        the last one's tokens are read, as when serving."""
        ids, found = tokens.to(torch.int32), []
        places = [(row, row) for row in range(len(ids))]
        last = None
        for step in range(steps):
            inputs, attention = self._arguments(ids[:, None], context + step)
            if last is not None:
                inputs["input_ids"] = core.SampledIds(ids, *last, places)
            _, *following = self.model._model.sample(inputs, attention, ahead=True)
            if last is not None:
                found.append(torch.from_dlpack(last[0]))
            last = following
        return torch.stack([*found, torch.from_dlpack(last[0])], 1)

    def close(self) -> None:
        del self.model
        self.runtime.close()


class MlxLm:
    """mlx-lm's model with its plain KV cache."""

    name = "mlx-lm"

    def __init__(self, directory: Path, device: str, dtype: str, batch: int, length: int) -> None:
        self.model, _ = mlx_lm_utils.load_model(directory)
        mx.eval(self.model.parameters())
        self.cache: list[Any] = []

    def prefill(self, ids: torch.Tensor) -> torch.Tensor:
        self.cache = mlx_lm_cache.make_prompt_cache(self.model)
        return self._step(ids)

    def _step(self, ids: torch.Tensor) -> torch.Tensor:
        return self.finish(self.build(ids, 0))

    def build(self, ids: torch.Tensor, context: int) -> mx.array:
        return self.model(mx.array(ids.numpy()), cache=self.cache)

    def finish(self, lazy: mx.array) -> torch.Tensor:
        return torch.tensor(lazy[:, -1].argmax(-1).tolist())

    def decode(self, tokens: torch.Tensor, context: int, steps: int) -> torch.Tensor:
        """As mlx-lm's `generate_step`: a step is begun before the last one's tokens are read."""
        last, found = mx.array(tokens.numpy()), []
        for step in range(steps):
            following = self.model(last[:, None], cache=self.cache)[:, -1].argmax(-1)
            mx.async_eval(following)
            if step > 0:
                found.append(torch.tensor(last.tolist()))
            last = following
        return torch.stack([*found, torch.tensor(last.tolist())], 1)

    def close(self) -> None:
        del self.model
        self.cache = []


@dataclass
class Figure:
    """One measured quantity of both; smaller is better."""

    name: str
    unit: str
    ours: list[float]
    theirs: list[float]

    def row(self) -> str:
        def text(values: list[float]) -> str:
            return f"{statistics.median(values):10.3f} ({min(values):.3f} .. {max(values):.3f})"

        sides = f"{text(self.ours):34} {text(self.theirs):34}"
        return f"{self.name:26} {self.unit:8} {sides} {self.ratio():6.3f}"

    def ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.ours, self.theirs, strict=True)]

    def ratio(self) -> float:
        return statistics.median(self.ratios())


QUANTITIES = ("first token", "decode step", "build of a step")


def run_once(
    engine: Any, ids: torch.Tensor, options: argparse.Namespace
) -> tuple[list[float], torch.Tensor]:
    """Milliseconds of each of QUANTITIES, and the greedy tokens [batch, 1 + options.tokens]."""
    marks = [time.perf_counter()]
    first = engine.prefill(ids)
    marks.append(time.perf_counter())
    rest = engine.decode(first, options.prompt, options.tokens)
    marks.append(time.perf_counter())
    build = build_seconds(engine, rest[:, -1:].to(torch.int32), options.prompt + options.tokens)
    seconds = (marks[1] - marks[0], (marks[2] - marks[1]) / options.tokens, build)
    return [1e3 * value for value in seconds], torch.cat([first[:, None], rest], 1)


def build_seconds(engine: Any, tokens: torch.Tensor, context: int) -> float:
    """Host time until the lazy graph of a decode step stands; it is computed after that."""
    seconds = []
    for step in range(3):
        start = time.perf_counter()
        lazy = engine.build(tokens, context + step)
        seconds.append(time.perf_counter() - start)
        engine.finish(lazy)
    return statistics.median(seconds)


def measure(
    make: Callable[[type, int], Any], vocab_size: int, options: argparse.Namespace
) -> list[Figure]:
    figures = []
    for batch in options.batch:
        generator = torch.Generator().manual_seed(batch)
        ids = torch.randint(vocab_size, (batch, options.prompt), generator=generator)
        ids = ids.to(torch.int32)
        engines = [make(kind, batch) for kind in (Ours, MlxLm)]
        tokens = [run_once(engine, ids, options)[1] for engine in engines]  # warms up, too
        same = float((tokens[0] == tokens[1]).float().mean())
        print(f"batch {batch}: {100 * same:.1f} % of the greedy tokens are the same")
        pairs = [
            [run_once(engine, ids, options)[0] for engine in engines] for _ in range(options.pairs)
        ]
        for index, name in enumerate(QUANTITIES):
            ours, theirs = ([pair[side][index] for pair in pairs] for side in (0, 1))
            figures.append(Figure(f"{name}, batch {batch}", "ms", ours, theirs))
        for engine in engines:
            engine.close()
        gc.collect()
    return figures


def peak_bytes(kind: type, make: Callable[[type, int], Any], options: argparse.Namespace) -> int:
    """MLX's peak of loading, one prompt and ten tokens."""
    gc.collect()
    mx.clear_cache()
    mx.reset_peak_memory()
    engine = make(kind, 1)
    ids = torch.ones((1, options.prompt), dtype=torch.int32)
    engine.decode(engine.prefill(ids), options.prompt, 10)
    peak = int(mx.get_peak_memory())
    engine.close()
    return peak


def plot(figures: list[Figure], title: str, path: str) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    chart, axes = pyplot.subplots(figsize=(8, 0.5 * len(figures) + 1.4))
    axes.boxplot([f.ratios() for f in figures], orientation="horizontal", whis=(0, 100))
    axes.set_yticklabels([f.name for f in figures])
    axes.axvline(1, color="grey", linewidth=1)
    axes.set_xlabel("ours / mlx-lm, below 1 is faster (all pairs)")
    axes.set_title(title)
    axes.invert_yaxis()
    chart.tight_layout()
    chart.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of the prompt")
    parser.add_argument("--tokens", type=int, default=16, help="tokens decoded in a pair")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--plot", metavar="FILE", help="draw the ratios as a PNG")
    options = parser.parse_args()
    device = mx.gpu if options.device == "gpu" else mx.cpu
    mx.set_default_device(device)
    torch.set_num_threads(1)
    config = SHAPES[options.shape]()
    length = options.prompt + options.tokens + 8
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_checkpoint(config, directory, getattr(torch, options.dtype))

        def make(kind: type, batch: int) -> Any:
            return kind(directory, options.device, options.dtype, batch, length)

        peaks = [peak_bytes(kind, make, options) for kind in (Ours, MlxLm)]
        figures = measure(make, config.vocab_size, options)
    title = f"{options.shape} {options.dtype}, MLX {mx.__version__} on the {options.device}"
    print(f"{title}; prompt {options.prompt}, {options.pairs} pairs of {options.tokens} tokens")
    print(f"{'':26} {'':8} {'ours: median (range)':34} {'mlx-lm':34} {'ratio':>6}")
    for figure in figures:
        print(figure.row())
    weights = sum(p.numel() for p in _meta(config).parameters()) * (
        4 if options.dtype == "float32" else 2
    )
    for name, peak in zip(("ours", "mlx-lm"), peaks, strict=True):
        print(f"peak memory, {name}: {peak / 1e6:,.1f} MB, {peak / weights:.2f} of the weights")
    if options.plot:
        plot(figures, title, options.plot)


def _meta(config: PretrainedConfig) -> torch.nn.Module:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


if __name__ == "__main__":
    main()
