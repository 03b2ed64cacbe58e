# SPDX-License-Identifier: Apache-2.0
"""The Rust program `generate` against mlx-lm: same MLX, device and weights, in one run.

    python benches/peers_program.py [--checkpoint FOLDER] [--program FILE] [--plan FILE]

Makes the program and the plan where none is given. With both it needs mlx and mlx-lm, and neither
vLLM nor PyTorch, so that it runs where those do not: also with MLX's CUDA wheel. The two alternate,
pair by pair; a figure is the median with its range, a ratio the median of the pairs' (ours over
mlx-lm's: below 1 is faster, or less memory). `--random` first writes weights for the checkpoint's
config.json, with a standard deviation at which layers matter.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.utils
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

ROOT = Path(__file__).parents[1]
DEMO_MODEL = ROOT / "python/vllm_metal/demo_model"
FIGURES = {"prefill": "ms", "decode": "ms a step", "peak": "GB"}


def write_random(directory: Path, dtype: str) -> None:
    """`model.safetensors` with random weights of the sizes that mlx-lm's model has."""
    model, _ = load_model(directory, lazy=True, strict=False)
    key = mx.random.key(0)
    tensors = {}
    for name, value in mlx.utils.tree_flatten(model.parameters()):
        key, own = mx.random.split(key)
        noise = mx.random.normal(value.shape, key=own)
        scale = 0.5 / math.sqrt(value.shape[-1]) if value.ndim > 1 else 0.1
        tensors[name] = (noise * scale + (value.ndim == 1)).astype(getattr(mx, dtype))
        mx.eval(tensors[name])
    mx.save_safetensors(str(directory / "model.safetensors"), tensors, {"format": "pt"})


def build_program() -> Path:
    arguments = ["--release", "--quiet", "--no-default-features", "--example", "generate"]
    subprocess.run(["cargo", "build", *arguments], cwd=ROOT, check=True)
    return ROOT / "target/release/examples/generate"


def make_plan(checkpoint: Path, directory: str) -> Path:
    plan = Path(directory, "model.plan")
    command = [sys.executable, "-m", "vllm_metal.lower", str(checkpoint), "--output", str(plan)]
    subprocess.run(command, check=True, capture_output=True)
    return plan


def ours(options: argparse.Namespace, prompt: str) -> dict[str, Any]:
    command = [options.program, "--plan", options.plan, "--weights", options.checkpoint, "--json"]
    command += ["--device", options.device, "--prompt", prompt]
    command += ["--max-tokens", str(options.tokens), "--batch", str(options.batch)]
    command += ["--runs", "2"]  # the first one compiles
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise SystemExit(f"{options.program}: {run.stderr}")
    found = json.loads(run.stdout)
    prompt_ids = found["prompt_token_ids"]
    return {
        "prompt": prompt_ids,
        "tokens": found["token_ids"],
        "prefill": 1e3 * len(prompt_ids) / found["prefill_tokens_per_second"],
        "decode": 1e3 / found["decode_tokens_per_second"],
        "peak": found["peak_bytes"] / 1e9,
    }


def theirs(model: Any, prompt: list[int], count: int, batch: int) -> dict[str, Any]:
    """As mlx-lm's own loop (`generate_step`): a step is begun before the last one is waited for."""
    mx.clear_cache()
    mx.reset_peak_memory()
    cache = make_prompt_cache(model)
    start = time.perf_counter()
    token = model(mx.array([prompt] * batch), cache=cache)[:, -1].argmax(-1)
    tokens = [token[0].item()]
    middle = time.perf_counter()
    for step in range(count):
        if step + 1 < count:
            following = model(token[:, None], cache=cache)[:, -1].argmax(-1)
            mx.async_eval(following)
        if step > 0:
            tokens.append(token[0].item())
        token = following
    end = time.perf_counter()
    return {
        "tokens": tokens,
        "prefill": 1e3 * (middle - start),
        "decode": 1e3 * (end - middle) / (count - 1),
        "peak": mx.get_peak_memory() / 1e9,
    }


def describe(values: list[float]) -> str:
    return f"{statistics.median(values):9.3f} ({min(values):.3f} .. {max(values):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--program", type=Path)
    parser.add_argument("--plan", type=Path)
    parser.add_argument("--checkpoint", type=Path, default=DEMO_MODEL)
    parser.add_argument("--random", metavar="DTYPE", help="write random weights of this dtype")
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--batch", type=int, default=1, help="texts at once, of one prompt")
    parser.add_argument("--words", type=int, default=128, help="of the prompt")
    options = parser.parse_args()
    mx.set_default_device(mx.gpu if options.device == "gpu" else mx.cpu)
    if options.random:
        write_random(options.checkpoint, options.random)
    options.program = options.program or build_program()
    with tempfile.TemporaryDirectory() as directory:
        options.plan = options.plan or make_plan(options.checkpoint, directory)
        compare(options)


def compare(options: argparse.Namespace) -> None:
    model, _ = load_model(options.checkpoint)
    prompt = " ".join(["path"] * options.words)
    pairs = []
    for _ in range(options.pairs + 1):  # the first is mlx-lm's to compile
        mine = ours(options, prompt)
        pairs.append((mine, theirs(model, mine["prompt"], len(mine["tokens"]), options.batch)))
    mine, other = pairs[0]
    same = next(
        (i for i, (a, b) in enumerate(zip(mine["tokens"], other["tokens"], strict=True)) if a != b),
        len(mine["tokens"]),
    )
    print(
        f"prompt of {len(mine['prompt'])} tokens, {len(mine['tokens'])} more, "
        f"batch {options.batch}, {options.device}"
    )
    print(f"greedy tokens: the first {same} of {len(mine['tokens'])} are the same")
    for name, unit in FIGURES.items():
        mine_values, other_values = ([pair[side][name] for pair in pairs[1:]] for side in (0, 1))
        ratio = statistics.median(a / b for a, b in zip(mine_values, other_values, strict=True))
        print(
            f"{name:8} ours {describe(mine_values)}  mlx-lm {describe(other_values)}  "
            f"{unit:10} ratio {ratio:.3f}"
        )


if __name__ == "__main__":
    main()
