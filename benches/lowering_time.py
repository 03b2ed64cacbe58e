# SPDX-License-Identifier: Apache-2.0
"""Time from a bare config.json to a plan, imports of torch and vLLM excluded.

    python benches/lowering_time.py [--layers 32]

The default is the shape of Llama-3.1-8B. Cold: construction, capture and the Rust part (parsing,
import, rewriting, planning) of one run. Warm: the same model found in the plan cache, and the Rust
part of that (reading, hashing and checking the plan), best of 10.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import vllm.model_executor.models.llama  # noqa: F401

from vllm_metal._native import core
from vllm_metal.capture import capture_config, construct, single_process
from vllm_metal.lowered import lower
from vllm_metal.plan_cache import PlanCache


def read_ms(path: str) -> float:
    start = time.perf_counter()
    core.PlanFile(path).plan()
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=32)
    options = parser.parse_args()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": options.layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "torch_dtype": "bfloat16",
    }
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "config.json")
        path.write_text(json.dumps(config))
        vllm_config = capture_config(path)
        with single_process(vllm_config):
            start = time.perf_counter()
            model = construct(vllm_config)
            constructed = time.perf_counter()
            report = lower(model, vllm_config).report
            end = time.perf_counter()
            cache = PlanCache(Path(directory, "cache"))
            lower(model, vllm_config, cache=cache)
            warm = lower(model, vllm_config, cache=cache).report
            assert warm["plan_cache"]["state"] == "hit"
            warm_rust_ms = min(read_ms(warm["plan_cache"]["path"]) for _ in range(10))
    timings = dict(report["timings_ms"])
    capture_ms = timings.pop("capture")
    print(f"{options.layers} layers: {report['nodes']['captured']:,} captured nodes")
    print(f"construct        {constructed - start:6.2f} s")
    print(f"capture          {capture_ms / 1e3:6.2f} s")
    rust = ", ".join(f"{name} {ms:.1f}" for name, ms in timings.items())
    print(f"lowering (Rust)  {sum(timings.values()):6.1f} ms   ({rust})")
    print(f"in all           {end - start:6.2f} s")
    warm_ms = warm["timings_ms"]["cache"]
    print(f"warm             {warm_ms:6.1f} ms   (key and plan; Rust {warm_rust_ms:.1f})")


if __name__ == "__main__":
    main()
