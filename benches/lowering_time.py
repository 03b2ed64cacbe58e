# SPDX-License-Identifier: Apache-2.0
"""Time from a bare config.json to a plan, for deep models: construction, capture, the Rust part.

    python benches/lowering_time.py [--model llama-70b | gemma-3-27b | llama-8b]

Cold: each model in a process of its own, nothing cached; also the whole process, imports of torch
and vLLM included. The Rust part is parsing, import, rewriting and planning, which
`cargo bench -p lowering` repeats alone.
Warm: the same model found in the plan cache, and the Rust part of that (reading, hashing and
checking the plan), best of 10.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
}

MODELS: dict[str, dict[str, Any]] = {
    "llama-70b": {
        **LLAMA,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
    },
    "gemma-3-27b": {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "num_hidden_layers": 62,
        "num_attention_heads": 32,
        "num_key_value_heads": 16,
        "head_dim": 128,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "sliding_window": 1024,
        "sliding_window_pattern": 6,
        "query_pre_attn_scalar": 168,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "hidden_activation": "gelu_pytorch_tanh",
        "torch_dtype": "bfloat16",
    },
    "llama-8b": {
        **LLAMA,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
}


def measure(name: str) -> dict[str, Any]:
    """Seconds of each part, in this process."""
    from vllm_metal.capture import capture_config, construct, single_process
    from vllm_metal.lowered import lower
    from vllm_metal.plan_cache import PlanCache

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "config.json")
        path.write_text(json.dumps(MODELS[name]))
        vllm_config = capture_config(path)
        with single_process(vllm_config):
            start = time.perf_counter()
            model = construct(vllm_config)
            constructed = time.perf_counter()
            report = lower(model, vllm_config, progress=False).report
            cache = PlanCache(Path(directory, "cache"))
            lower(model, vllm_config, cache=cache, progress=False)
            warm = lower(model, vllm_config, cache=cache, progress=False).report
        assert warm["plan_cache"]["state"] == "hit"
        warm_rust = min(read_ms(warm["plan_cache"]["path"]) for _ in range(10))
    return {
        "construct": constructed - start,
        "report": report,
        "warm_ms": warm["timings_ms"]["cache"],
        "warm_rust_ms": warm_rust,
    }


def read_ms(path: str) -> float:
    """Milliseconds to read a plan from a file."""
    from vllm_metal._native import core

    start = time.perf_counter()
    core.PlanFile(path).plan()
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=list(MODELS), help="all, if absent")
    parser.add_argument("--one", choices=list(MODELS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one)))
        return
    for name in [options.model] if options.model else list(MODELS):
        start = time.perf_counter()
        command = [sys.executable, __file__, "--one", name]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        process = time.perf_counter() - start
        measured = json.loads(result.stdout.splitlines()[-1])
        report = measured["report"]
        timings = dict(report["timings_ms"])
        capture = timings.pop("capture") / 1e3
        rust = ", ".join(f"{part} {ms:.1f}" for part, ms in timings.items())
        layers = MODELS[name]["num_hidden_layers"]
        print(f"{name}: {layers} layers, {report['nodes']['captured']:,} captured nodes")
        print(f"  construct        {measured['construct']:6.2f} s")
        print(f"  capture          {capture:6.2f} s")
        print(f"  lowering (Rust)  {sum(timings.values()):6.1f} ms   ({rust})")
        print(f"  whole process    {process:6.2f} s   (cold and warm)")
        warm, warm_rust = measured["warm_ms"], measured["warm_rust_ms"]
        print(f"  warm             {warm:6.1f} ms   (key and plan; Rust {warm_rust:.1f})")


if __name__ == "__main__":
    main()
