# SPDX-License-Identifier: Apache-2.0
"""Peak memory and time of capturing a large Llama from a bare ``config.json``, without weights.

    python benches/capture_memory.py [--layers 80] [--hidden 8192] [--limit-gb 3]

The default is the shape of Llama-3.1-70B. Exit status 1 if the peak is above the limit.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path


def main() -> int:
    """Capture, print one line per figure, compare the peak with the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=80)
    parser.add_argument("--hidden", type=int, default=8192)
    parser.add_argument("--intermediate", type=int, default=28672)
    parser.add_argument("--heads", type=int, default=64)
    parser.add_argument("--limit-gb", type=float, default=3.0)
    arguments = parser.parse_args()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

    seconds: dict[str, float] = {}
    start = time.perf_counter()
    # Architectures are imported as they are configured; this one counts as an import.
    import vllm.model_executor.models.llama  # noqa: F401

    from vllm_metal.capture import capture, capture_config, construct, single_process

    seconds["import"] = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "config.json")
        path.write_text(json.dumps(_config(arguments)))
        start = time.perf_counter()
        vllm_config = capture_config(path)
        seconds["config"] = time.perf_counter() - start
        start = time.perf_counter()
        with single_process(vllm_config):
            model = construct(vllm_config)
            seconds["construct"] = time.perf_counter() - start
            start = time.perf_counter()
            captured = capture(model, vllm_config)
            seconds["capture"] = time.perf_counter() - start
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
    weights = sum(p.numel() * p.element_size() for p in model.parameters()) / 1e9
    for stage, value in seconds.items():
        print(f"{stage:<10} {value:6.2f} s")
    print(f"document   {len(captured.document) / 1e6:6.2f} MB")
    print(f"weights    {weights:6.2f} GB, not allocated")
    print(f"peak RSS   {peak:6.2f} GB (limit {arguments.limit_gb:g} GB)")
    return int(peak > arguments.limit_gb)


def _config(arguments: argparse.Namespace) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "hidden_size": arguments.hidden,
        "intermediate_size": arguments.intermediate,
        "num_hidden_layers": arguments.layers,
        "num_attention_heads": arguments.heads,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    }


if __name__ == "__main__":
    sys.exit(main())
