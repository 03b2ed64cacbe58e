# SPDX-License-Identifier: Apache-2.0
"""Peak memory of loading a checkpoint and serving one request, as a multiple of its weights.

    python benches/loading_memory.py [--gigabytes 2] [--dtype bfloat16] [--limit 1.5]

Writes a random Llama checkpoint of several safetensors files, then starts `vllm.LLM` on it in a
process of its own. What the peak exceeds the process's size after its imports by is held against
the weights; KV cache, capture and the first step are in it. Exit status 1 above the limit.
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
    """In the child: load, generate two tokens, print the resident size before and its peak."""
    from vllm import LLM, SamplingParams

    import vllm_metal.lowered  # noqa: F401

    before = peak()
    llm = LLM(
        directory,
        dtype=dtype,
        skip_tokenizer_init=True,
        max_model_len=64,
        max_num_seqs=1,
        kv_cache_memory_bytes=32 << 20,
    )
    llm.generate([{"prompt_token_ids": [1, 2, 3]}], SamplingParams(max_tokens=2, detokenize=False))
    print("sizes", before, peak())


def peak() -> int:
    """Largest resident size of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux's ru_maxrss begins with the size of the process that forked
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(directory: Path, dtype: str) -> tuple[int, int]:

    environment = os.environ | {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, __file__, "--serve", str(directory), "--dtype", dtype]
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    before, after = output.stdout.split("sizes")[-1].split()
    return int(before), int(after)


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
        weights = write_checkpoint(Path(root), layers, options.dtype)
        files = len(list(Path(root).glob("*.safetensors")))
        before, after = measure(Path(root), options.dtype)
    extra = (after - before) / weights
    figures = {
        "weights_gb": weights / 1e9,
        "files": files,
        "before_gb": before / 1e9,
        "peak_gb": after / 1e9,
        "peak_per_weight_byte": round(extra, 3),
    }
    print(json.dumps(figures, indent=2))
    return int(extra > options.limit)


if __name__ == "__main__":
    sys.exit(main())
