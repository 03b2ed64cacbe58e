# SPDX-License-Identifier: Apache-2.0
"""The same prompts served in several manners, which must not change an answer."""

import itertools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.case import Case, prepare
from zoo.compare import ask, prompts

NUM_TOKENS = 16
LONGEST = 96
"""Tokens of a request at most."""
REFUSED = 7
"""One in so many requests for cache blocks is refused where requests shall be preempted."""
MANNERS: dict[str, dict[str, Any]] = {
    "together": {},
    "one by one": {},
    "in chunks": {"max_num_batched_tokens": 16},
    "preempted": {},
    "cached": {"enable_prefix_caching": True},
}
"""With the arguments of `LLM` that they need."""


@dataclass
class Served:
    """Answers in one manner, log-probabilities by prompt, step and token; how often vLLM preempted
    a request, and how many tokens of prompts it found in its cache."""

    answers: list[list[dict[int, float]]]
    preemptions: int
    cached_tokens: int
    caches_prefixes: bool


def serve(case: Case, directory: Path, manner: str) -> Served:
    """Runs in a process of its own. Raises what vLLM raises."""
    os.environ["VLLM_METAL_USE_MLX"] = "1"
    _, options, _ = prepare(case, directory, [])
    options |= {"max_model_len": LONGEST, "enable_prefix_caching": False} | MANNERS[manner]
    if manner == "preempted":
        _refuse_blocks()
    return _served(directory, options, manner)


def _refuse_blocks() -> None:
    """As a full cache does, whatever the size of a model's blocks and states."""
    from vllm.v1.core.kv_cache_manager import KVCacheManager

    allocate, calls = KVCacheManager.allocate_slots, itertools.count(1)

    def refuse(manager: KVCacheManager, *arguments: Any, **named: Any) -> Any:
        return allocate(manager, *arguments, **named) if next(calls) % REFUSED else None

    KVCacheManager.allocate_slots = refuse  # type: ignore[method-assign]


def _served(directory: Path, options: dict[str, Any], manner: str) -> Served:
    from vllm import LLM

    llm = LLM(model=str(directory), disable_log_stats=False, **options)
    batches = [[prompt] for prompt in prompts()] if manner == "one by one" else [prompts()]
    if manner == "cached":
        ask(llm, prompts(), NUM_TOKENS)
    answers = [answer for batch in batches for answer in ask(llm, batch, NUM_TOKENS)]
    counters = {metric.name: getattr(metric, "value", 0) for metric in llm.get_metrics()}
    return Served(
        [answer.logprobs for answer in answers],
        counters["vllm:num_preemptions"],
        counters["vllm:prefix_cache_hits"],
        llm.llm_engine.vllm_config.cache_config.enable_prefix_caching,
    )
