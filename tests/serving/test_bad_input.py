# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are damaged or do not fit: one clear error with the file and the tensor."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from vllm import SamplingParams

from vllm_metal import checkpoint, memory

FILE = "model.safetensors"
NORM = "model.layers.1.post_attention_layernorm.weight"


@pytest.fixture
def directory(models, tmp_path) -> Path:
    """A copy of a good checkpoint, to be damaged."""
    shutil.copytree(models("llama").name_or_path, tmp_path / "model")
    return tmp_path / "model"


def change_tensors(directory: Path, change) -> None:
    tensors = load_file(directory / FILE)
    change(tensors)
    save_file(tensors, directory / FILE, metadata={"format": "pt"})


def split(directory: Path) -> dict[str, str]:
    """Turn the checkpoint into one of two files with an index."""
    tensors = load_file(directory / FILE)
    (directory / FILE).unlink()
    names = sorted(tensors)
    weight_map = {}
    for part, chosen in enumerate((names[:5], names[5:]), start=1):
        file = f"model-{part:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in chosen}, directory / file)
        weight_map |= dict.fromkeys(chosen, file)
    (directory / checkpoint.INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    return weight_map


def truncated(directory: Path) -> str:
    last = max(checkpoint.read_header(directory / FILE), key=lambda tensor: tensor.end)
    size = last.end - 100
    with open(directory / FILE, "r+b") as stream:
        stream.truncate(size)
    return (
        f"{FILE} is truncated: tensor {last.name} needs bytes {last.start:,}..{last.end:,} and "
        f"the file ends at {size:,}. Download it again."
    )


def truncated_in_the_header(directory: Path) -> str:
    with open(directory / FILE, "r+b") as stream:
        stream.truncate(50)
    return f"{FILE} is truncated: its header needs"


def empty(directory: Path) -> str:
    (directory / FILE).write_bytes(b"")
    return f"{FILE} is truncated: its header needs 8 bytes and the file ends at 0."


def a_web_page(directory: Path) -> str:
    page = b"<html>" + b"sign in " * 2000
    (directory / FILE).write_bytes(len(page).to_bytes(8, "little") + page)
    return f"{FILE} is not a safetensors file: its header can't be read"


def missing_shard(directory: Path) -> str:
    weight_map = split(directory)
    file = "model-00002-of-00002.safetensors"
    (directory / file).unlink()
    name = next(name for name in weight_map if weight_map[name] == file)
    return f"{file} is missing: {checkpoint.INDEX_FILE} says that it holds tensor {name}."


def shard_without_its_tensor(directory: Path) -> str:
    split(directory)
    file = directory / "model-00002-of-00002.safetensors"
    tensors = load_file(file)
    tensors.pop(NORM)
    save_file(tensors, file)
    return f"{file.name} has no tensor {NORM}, which {checkpoint.INDEX_FILE} says it holds."


def wrong_shape(directory: Path) -> str:
    change_tensors(directory, lambda tensors: tensors.update({NORM: torch.ones(60)}))
    return f"{FILE}: tensor {NORM} has shape [60], which does not fit the model"


def wrong_shape_of_a_fused_part(directory: Path) -> str:
    name = "model.layers.0.self_attn.k_proj.weight"
    change_tensors(directory, lambda tensors: tensors.update({name: torch.ones(48, 64)}))
    return f"{FILE}: tensor {name} has shape [48, 64], which does not fit the model"


def missing_tensor(directory: Path) -> str:
    change_tensors(directory, lambda tensors: tensors.pop(NORM))
    return NORM


def no_weights(directory: Path) -> str:
    (directory / FILE).unlink()
    return "Cannot find any model weights"


def unknown_architecture(directory: Path) -> str:
    config = json.loads((directory / "config.json").read_text())
    config["architectures"] = ["PerpetuumForCausalLM"]
    (directory / "config.json").write_text(json.dumps(config))
    return "PerpetuumForCausalLM"


DAMAGES = [
    truncated,
    truncated_in_the_header,
    empty,
    a_web_page,
    missing_shard,
    shard_without_its_tensor,
    wrong_shape,
    wrong_shape_of_a_fused_part,
    missing_tensor,
    no_weights,
    unknown_architecture,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_is_named(damage, directory, make_engine):
    message = damage(directory)
    wanted = re.escape(message)
    with pytest.raises((ValueError, RuntimeError), match=wanted), make_engine(directory):
        pass


def test_split_checkpoint_is_served(directory, make_engine):
    split(directory)
    with make_engine(directory) as llm:
        params = SamplingParams(max_tokens=3, detokenize=False)
        found = llm.generate({"prompt_token_ids": [5, 6]}, params, use_tqdm=False)
        assert len(found[0].outputs[0].token_ids) == 3


def test_nan_weights_are_served(directory, make_engine):
    """Nonsense, but no crash: whatever is asked of it."""
    change_tensors(directory, lambda tensors: [t.fill_(float("nan")) for t in tensors.values()])
    options = [
        {"temperature": 0},
        {"temperature": 1.0, "top_p": 0.5, "seed": 1},
        {"temperature": 1.0, "top_k": 3, "min_p": 0.1},
        {"temperature": 0, "logprobs": 2, "repetition_penalty": 1.2},
    ]
    with make_engine(directory) as llm:
        for option in options:
            params = SamplingParams(max_tokens=4, ignore_eos=True, detokenize=False, **option)
            found = llm.generate({"prompt_token_ids": [5, 6]}, params, use_tqdm=False)
            assert len(found[0].outputs[0].token_ids) == 4


def test_header_that_contradicts_itself(tmp_path):
    entry = {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}
    header = json.dumps({"weight": entry}).encode()
    file = tmp_path / FILE
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(ValueError, match=r"damaged: tensor weight is F32\[3\]"):
        checkpoint.read_header(file)


# ---- memory


def test_weights_that_do_not_fit(directory, make_engine, monkeypatch):
    monkeypatch.setattr(memory, "total_memory", lambda: 100_000)
    stored = sum(t.end - t.start for t in checkpoint.read_header(directory / FILE))
    message = f"needs {memory.human(stored)} of weights and this machine gives 0.1 MB of 0.1 MB"
    with pytest.raises(ValueError, match=message), make_engine(directory):
        pass


def test_one_request_that_does_not_fit(directory, make_engine, monkeypatch):
    monkeypatch.setattr(memory, "total_memory", lambda: 3_000_000)
    message = (
        r"needs 0\.\d MB of weights, about \d\.\d MB of working memory, and 0\.1 MB of KV cache "
        r"for one request of 256 tokens; the budget is 2.7 MB of 3.0 MB "
        r"\(VLLM_METAL_MEMORY_FRACTION=0.9\), of which .* Lower --max-model-len"
    )
    options = {"max_num_batched_tokens": 2048}
    with pytest.raises(ValueError, match=message), make_engine(directory, **options):
        pass


def test_cache_that_does_not_fit(directory, make_engine, monkeypatch):
    monkeypatch.setattr(memory, "total_memory", lambda: 50_000_000)
    options = {"num_gpu_blocks_override": 100_000}
    message = "lower --num-gpu-blocks-override"
    with pytest.raises(ValueError, match=message), make_engine(directory, **options):
        pass


def test_cache_takes_no_more_than_it_can_use(directory, make_engine):
    """8 requests of 256 tokens, twice: not the 20 GB that the machine may have."""
    with make_engine(directory) as llm:
        blocks = llm.llm_engine.vllm_config.cache_config.num_gpu_blocks
        assert blocks == 2 * 8 * 256 // 16


def test_cache_of_a_given_size(directory, make_engine):
    with make_engine(directory, kv_cache_memory_bytes=1 << 20) as llm:
        page = 2 * 2 * 16 * 16 * 4  # K and V, 2 heads, 16 tokens of 16 float32
        assert llm.llm_engine.vllm_config.cache_config.num_gpu_blocks == (1 << 20) // (2 * page)
