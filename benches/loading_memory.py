# SPDX-License-Identifier: Apache-2.0
"""Peak memory of loading a checkpoint and serving one request, as a multiple of its weights.

    python benches/loading_memory.py [--gigabytes 2] [--dtype bfloat16] [--limit 1.5]

Writes a random Llama checkpoint of several safetensors files, then starts `vllm.LLM` in a process
of its own, once on that checkpoint and once on a tiny one of the same architecture: the difference
of their peaks is what the weights cost. Exit status 1 above the limit.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

HIDDEN, INTERMEDIATE, VOCABULARY = 2048, 5504, 32000
LAYER_PARAMETERS = 4 * HIDDEN * HIDDEN + 3 * HIDDEN * INTERMEDIATE


def write_checkpoint(directory: Path, layers: int, dtype: str) -> int:
    """A random Llama checkpoint; returns the bytes of its weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=16,
        max_position_embeddings=256,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(getattr(torch, dtype))
    model = model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.normal_(0.0, 0.02)
    model.save_pretrained(directory, max_shard_size="500MB")
    return sum(p.numel() * p.element_size() for p in model.parameters())


def serve(directory: str, dtype: str) -> None:
    """In the child: load, generate a token, print the peak resident size in bytes."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        directory,
        dtype=dtype,
        skip_tokenizer_init=True,
        max_model_len=64,
        max_num_seqs=1,
        kv_cache_memory_bytes=32 << 20,
    )
    llm.generate([{"prompt_token_ids": [1, 2, 3]}], SamplingParams(max_tokens=2, detokenize=False))
    unit = 1 if sys.platform == "darwin" else 1024
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def peak_of(directory: Path, dtype: str) -> int:

    environment = os.environ | {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, __file__, "--serve", str(directory), "--dtype", dtype]
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return int(output.stdout.split("peak")[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--limit", type=float, default=1.5)
    parser.add_argument("--serve", metavar="DIRECTORY", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.dtype)
        return 0
    size = 2 if options.dtype == "bfloat16" else 4
    layers = max(
        1, round((options.gigabytes * 1e9 / size - 2 * VOCABULARY * HIDDEN) / LAYER_PARAMETERS)
    )
    with tempfile.TemporaryDirectory() as root:
        large, small = Path(root, "large"), Path(root, "small")
        weights = write_checkpoint(large, layers, options.dtype)
        base = write_checkpoint(small, 1, options.dtype)
        files = len(list(large.glob("*.safetensors")))
        large_peak, small_peak = peak_of(large, options.dtype), peak_of(small, options.dtype)
    extra = (large_peak - small_peak) / (weights - base)
    figures = {
        "weights_gb": weights / 1e9,
        "files": files,
        "peak_gb": large_peak / 1e9,
        "peak_of_one_layer_gb": small_peak / 1e9,
        "peak_per_weight_byte": round(extra, 3),
    }
    print(json.dumps(figures, indent=2))
    return int(extra > options.limit)


if __name__ == "__main__":
    sys.exit(main())
