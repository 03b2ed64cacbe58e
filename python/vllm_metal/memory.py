# SPDX-License-Identifier: Apache-2.0
"""How much memory the server may take, and how it is divided. All sizes are in bytes."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil
import torch
from vllm.utils.cpu_resource_utils import get_cgroup_memory_limit, get_cgroup_memory_usage

from vllm_metal import envs

if TYPE_CHECKING:  # vllm.config imports the platform, which imports us
    from vllm.config import VllmConfig


def total_memory() -> int:
    """Memory of this machine, or of the container that we run in."""
    return min(psutil.virtual_memory().total, get_cgroup_memory_limit() or 2**63)


def available_memory() -> int:
    """Memory that can be taken now without swapping."""
    available = psutil.virtual_memory().available
    limit, usage = get_cgroup_memory_limit(), get_cgroup_memory_usage()
    return min(available, max(0, limit - usage)) if limit and usage else available


def human(size: float) -> str:
    """Decimal units, as memory and disks are sold: `38.7 GB`, `7.3 MB`."""
    unit, name = (1e9, "GB") if size >= 1e9 else (1e6, "MB")
    return f"{size / unit:,.{0 if size / unit >= 100 else 1}f} {name}"


@dataclass(frozen=True)
class MemoryBudget:
    """What weights, working memory and KV cache together may take."""

    limit: int
    total: int
    reason: str
    """The setting that decides, as the user wrote it."""

    def __str__(self) -> str:
        return f"{human(self.limit)} of {human(self.total)} ({self.reason})"


def memory_budget(vllm_config: "VllmConfig", device_limit: int | None = None) -> MemoryBudget:
    """The smallest of VLLM_METAL_MEMORY_FRACTION, --gpu-memory-utilization and `device_limit`
    (what the GPU may keep resident: Metal's recommended working set)."""
    total = total_memory()
    fraction: float = envs.MEMORY_FRACTION.value()
    utilization = vllm_config.cache_config.gpu_memory_utilization
    limits = [
        (int(total * fraction), f"{envs.MEMORY_FRACTION.name}={fraction:g}"),
        (int(total * utilization), f"--gpu-memory-utilization {utilization:g}"),
    ]
    if device_limit is not None:
        limits.append((device_limit, "the working set that Metal recommends"))
    limit, reason = min(limits)
    return MemoryBudget(limit, total, reason)


def working_memory(vllm_config: "VllmConfig") -> int:
    """Estimate of the largest activations of one step: the widest layer for a full batch of
    tokens, and the logits with the sampler's copies for a full batch of requests."""
    model_config, scheduler_config = vllm_config.model_config, vllm_config.scheduler_config
    parallel_config = vllm_config.parallel_config
    text_config = model_config.hf_text_config
    hidden = model_config.get_hidden_size()
    heads = model_config.get_num_attention_heads(parallel_config)
    kv_heads = model_config.get_num_kv_heads(parallel_config)
    feed_forward = getattr(text_config, "intermediate_size", None) or 4 * hidden
    if isinstance(feed_forward, (list, tuple)):  # layers of different widths
        feed_forward = max(feed_forward)
    width = 4 * hidden + 3 * feed_forward + (heads + 2 * kv_heads) * model_config.get_head_size()
    assert isinstance(model_config.dtype, torch.dtype)
    activations = scheduler_config.max_num_batched_tokens * width * model_config.dtype.itemsize
    sampled_rows = min(scheduler_config.max_num_seqs, scheduler_config.max_num_batched_tokens)
    logits = sampled_rows * model_config.get_vocab_size() * 4 * 4
    return activations + logits
