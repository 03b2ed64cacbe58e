# SPDX-License-Identifier: Apache-2.0
"""Runs a lowered model against vLLM's PyTorch model on the same weights and tokens."""

import copy
import itertools
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.model_loader import get_model_loader

from vllm_metal._native import core
from vllm_metal.capture import IrOps, construct, fill_parameters, gives_logits, prefill
from vllm_metal.lowered import LoweredModel, Lowering, lower

# Prompts of these lengths, each cut into a prefill, a chunk and single tokens.
PROMPT_LENGTHS = (1, 2, 7, 33, 100)
BLOCK_SIZE = 16
# Largest difference of log-probabilities that float32 rounding explains.
FLOAT32_TOLERANCE = 1e-4
# 16-bit errors against float32 may be this multiple of PyTorch's own.
ERROR_RATIO = 1.5


@dataclass(frozen=True)
class Verification:
    """The outcome; `str()` is a line for people."""

    equal: bool
    prompts: int
    positions: int
    largest_difference: float
    same_tokens: float
    """Share of positions with the same greedy token."""
    seconds: float
    error_ratio: float | None = None
    """16-bit dtypes: mean error against float32, over PyTorch's."""

    def __str__(self) -> str:
        verdict = "equal" if self.equal else "not equal"
        ratio = (
            ""
            if self.error_ratio is None
            else f", error against float32 {self.error_ratio:.2f} of PyTorch's"
        )
        return (
            f"{verdict}: {self.prompts} prompts, {self.positions:,} positions, largest "
            f"log-probability difference {self.largest_difference:.1e}{ratio}, "
            f"{100 * self.same_tokens:.1f} % same greedy tokens   [{self.seconds:.1f} s]"
        )


def verify(model_path: str, vllm_config: VllmConfig, ir_ops: IrOps = "whole") -> Verification:
    """Compare the lowered model with PyTorch on real weights, or on random ones without a
    checkpoint. Raises ValueError for a model without a logits head."""
    start = time.perf_counter()
    model = _load(model_path, vllm_config)
    if not gives_logits(model, vllm_config):
        raise ValueError("--verify compares logits, and this model has none")
    lowering = lower(model, vllm_config, ir_ops=ir_ops)
    limit = vllm_config.model_config.max_model_len
    prompts = _prompts(vllm_config, [length for length in PROMPT_LENGTHS if length <= limit])
    reference = [_torch_log_probabilities(model, vllm_config, ids) for ids in prompts]
    found = _lowered_log_probabilities(lowering, model, vllm_config, prompts)
    dtype = vllm_config.model_config.dtype
    truth = None
    if dtype != torch.float32:
        truth = _float32_log_probabilities(model, vllm_config, prompts)
    return _compare(reference, found, truth, time.perf_counter() - start)


def _load(model_path: str, vllm_config: VllmConfig) -> nn.Module:
    """vLLM's model with the checkpoint's weights, or random ones where there is no checkpoint."""
    path = Path(model_path)
    is_local = path.exists()
    if is_local and not list(path.glob("*.safetensors")) and not list(path.glob("*.bin")):
        model = construct(vllm_config)
        fill_parameters(model)
        return model.eval()
    load_config = copy.copy(vllm_config.load_config)
    load_config.load_format = "auto"
    loader = get_model_loader(load_config)
    return loader.load_model(vllm_config=vllm_config, model_config=vllm_config.model_config)


def _prompts(vllm_config: VllmConfig, lengths: list[int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    vocab_size = vllm_config.model_config.get_vocab_size()
    return [
        torch.randint(0, vocab_size, (length,), generator=generator, dtype=torch.int32)
        for length in lengths
    ]


def _torch_log_probabilities(
    model: nn.Module, vllm_config: VllmConfig, ids: torch.Tensor
) -> torch.Tensor:
    """float32[num_tokens, vocab_size]"""
    with prefill(vllm_config, len(ids)):
        hidden = model(input_ids=ids, positions=torch.arange(len(ids)))
        return model.compute_logits(hidden).float().log_softmax(-1)


def _lowered_log_probabilities(
    lowering: Lowering, model: nn.Module, vllm_config: VllmConfig, prompts: list[torch.Tensor]
) -> list[torch.Tensor]:
    runtime = core.Runtime("cpu")
    try:
        lowered = LoweredModel(runtime, lowering, model)
        num_blocks = -(-max(len(ids) for ids in prompts) // BLOCK_SIZE)
        dtype = str(vllm_config.model_config.dtype).removeprefix("torch.")
        lowered.allocate_uniform_kv_cache(num_blocks, BLOCK_SIZE, dtype)
        return [_in_chunks(lowered, ids, num_blocks) for ids in prompts]
    finally:
        runtime.close()


def _in_chunks(lowered: LoweredModel, ids: torch.Tensor, num_blocks: int) -> torch.Tensor:
    """A prefill, a chunk on top of it, then token by token, as a server would."""
    length = len(ids)
    cuts = sorted({length // 3, length // 2, *range(max(length - 3, 0), length + 1), 0})
    parts = []
    for start, end in itertools.pairwise(cuts):
        slots = torch.arange(start, end)
        metadata = core.AttentionMetadata(
            block_table=torch.arange(num_blocks, dtype=torch.int32)[None],
            slot_mapping=slots,
            query_start_loc=torch.tensor([0, end - start], dtype=torch.int32),
            seq_lens=torch.tensor([end], dtype=torch.int32),
            num_actual_tokens=end - start,
        )
        hidden = lowered.run(ids[start:end], slots, metadata)
        parts.append(lowered.compute_logits(hidden).float().log_softmax(-1))
    return torch.cat(parts)


def _float32_log_probabilities(
    model: nn.Module, vllm_config: VllmConfig, prompts: list[torch.Tensor]
) -> list[torch.Tensor]:
    """The same weights in float32 arithmetic: the truth that 16-bit results are measured by."""
    wide_config = copy.deepcopy(vllm_config)
    wide_config.model_config.dtype = torch.float32
    wide_config.compilation_config.static_forward_context.clear()
    with set_current_vllm_config(wide_config):
        wide = construct(wide_config)
        narrow = dict(model.named_parameters())
        for path, parameter in list(wide.named_parameters()):
            values = nn.Parameter(narrow[path].detach().float(), requires_grad=False)
            kind, attributes = type(parameter), dict(parameter.__dict__)
            torch.utils.swap_tensors(parameter, values)
            parameter.__class__ = kind
            parameter.__dict__.update(attributes)
        wide.eval()
        return [_torch_log_probabilities(wide, wide_config, ids) for ids in prompts]


def _compare(
    reference: list[torch.Tensor],
    found: list[torch.Tensor],
    truth: list[torch.Tensor] | None,
    seconds: float,
) -> Verification:
    expected, actual = torch.cat(reference), torch.cat(found)
    largest = float((expected - actual).abs().max())
    same = float((expected.argmax(-1) == actual.argmax(-1)).float().mean())
    ratio = None
    if truth is None:
        equal = largest <= FLOAT32_TOLERANCE
    else:
        exact = torch.cat(truth)
        ratio = float((actual - exact).abs().mean() / (expected - exact).abs().mean())
        equal = ratio <= ERROR_RATIO
    return Verification(equal, len(found), len(actual), largest, same, seconds, ratio)
