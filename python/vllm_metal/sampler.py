# SPDX-License-Identifier: Apache-2.0
"""vLLM's sampler, with log-probabilities that stay right when requests ask for different kinds, and
with the runtime's random numbers."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from vllm.v1.outputs import LogprobsTensors, SamplerOutput
from vllm.v1.sample.logits_processor import (
    LogitBiasLogitsProcessor,
    MinPLogitsProcessor,
    MinTokensLogitsProcessor,
)
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler, apply_top_k_top_p
from vllm.v1.sample.sampler import Sampler
from vllm.v1.worker.gpu_input_batch import CachedRequestState

Draw = tuple[float, int, float, float, int, int]
"""Temperature, top_k, top_p, min_p, seed and step of a request's next token: what
`core.Runtime.sample` takes. Of temperature 0, the most likely token."""

# Below this vLLM's sampler takes the most likely token.
_LEAST_TEMPERATURE = 1e-5


class Draws:
    """What requests draw with: each has a random stream of its own, so that its tokens depend
    neither on the batch nor on which sampler drew those before."""

    def __init__(self) -> None:
        self._seeds: dict[str, int] = {}

    def of(
        self, request_ids: Sequence[str], requests: Mapping[str, CachedRequestState]
    ) -> list[Draw]:
        """A draw for each of the requests, by vLLM's state of them."""
        if len(self._seeds) > 2 * len(requests) + 64:
            self._seeds = {of: seed for of, seed in self._seeds.items() if of in requests}
        return [self._draw(request_id, requests[request_id]) for request_id in request_ids]

    def _draw(self, request_id: str, state: CachedRequestState) -> Draw:
        params, step = state.sampling_params, len(state.output_token_ids)
        if params is None or params.temperature < _LEAST_TEMPERATURE:
            return (0.0, 0, 1.0, 0.0, 0, step)
        if params.seed is not None:
            seed = params.seed % 2**64
        elif request_id in self._seeds:
            seed = self._seeds[request_id]
        else:
            # Of vLLM's own generator, which the engine's --seed starts.
            seed = int(torch.randint(2**62, (1,)))
            self._seeds[request_id] = seed
        top_k = max(params.top_k, 0)
        return (params.temperature, top_k, params.top_p, params.min_p, seed, step)


def is_plain(metadata: SamplingMetadata, draws: Sequence[Draw]) -> bool:
    """Whether the tokens depend on the logits as the model gives them and on `draws` alone, and
    nothing besides tokens is asked."""
    thinking = metadata.thinking_budget_state_holder
    processors = metadata.logitsprocs
    return (
        metadata.max_num_logprobs is None
        and not metadata.logprob_token_ids
        and metadata.no_penalties
        and metadata.allowed_token_ids_mask is None
        and not metadata.bad_words_token_ids
        and (thinking is None or not thinking.has_tracked_requests())
        and all(map(_is_idle, processors.non_argmax_invariant))
        and all(isinstance(of, MinPLogitsProcessor) for of in processors.argmax_invariant)
        and all(math.isfinite(temperature) for temperature, *_ in draws)
    )


def _is_idle(processor: Any) -> bool:
    if isinstance(processor, LogitBiasLogitsProcessor):
        return not processor.biases
    if isinstance(processor, MinTokensLogitsProcessor):
        return not processor.min_toks
    return False


class DrawingSampler(TopKTopPSampler):
    """vLLM's top-k and top-p, and then the draw that the runtime would make of what they leave."""

    def __init__(
        self, logprobs_mode: Any, draw: Callable[[torch.Tensor, list[Draw]], torch.Tensor]
    ) -> None:
        """`draw` gives int64[num_requests] of logits float32[num_requests, vocab_size]."""
        super().__init__(logprobs_mode)
        self.draws: list[Draw] = []
        self._draw = draw
        self.forward = self._forward

    def _forward(
        self,
        logits: torch.Tensor,
        generators: dict[int, torch.Generator],
        k: torch.Tensor | None,
        p: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As `TopKTopPSampler.forward_native`; logits are divided by temperatures already."""
        kept = apply_top_k_top_p(logits, k, p)
        returned = None
        if self.logprobs_mode == "processed_logits":
            returned = kept
        elif self.logprobs_mode == "processed_logprobs":
            returned = kept.log_softmax(dim=-1, dtype=torch.float32)
        warm = [
            (float(temperature > 0), 0, 1.0, 0.0, seed, step)
            for temperature, _, _, _, seed, step in self.draws
        ]
        return self._draw(kept, warm), returned


class MetalSampler(Sampler):
    """vLLM's answers `logprob_token_ids` of one request by replacing the top log-probabilities of
    all others in the batch; this one keeps each request's own."""

    _num_logprobs: int | None = None

    def forward(
        self, logits: torch.Tensor, sampling_metadata: SamplingMetadata, *args: Any, **kwargs: Any
    ) -> SamplerOutput:
        self._num_logprobs = sampling_metadata.max_num_logprobs
        return super().forward(logits, sampling_metadata, *args, **kwargs)

    def gather_specific_token_logprobs(
        self,
        logprobs: torch.Tensor,
        logprob_token_ids: dict[int, list[int]],
        sampled: torch.Tensor,
    ) -> LogprobsTensors | None:
        """logprobs float32[num_requests, vocab_size] -> the given tokens' for the requests in
        `logprob_token_ids`, the top ones for the others; short rows end in -inf."""
        specific = super().gather_specific_token_logprobs(logprobs, logprob_token_ids, sampled)
        if specific is None or self._num_logprobs is None:
            return specific
        top = self.gather_logprobs(logprobs, self._num_logprobs, token_ids=sampled)
        rows = torch.tensor(list(logprob_token_ids))
        width = max(specific.logprobs.shape[1], top.logprobs.shape[1])
        token_ids = _widen(top.logprob_token_ids, width, 0)
        values = _widen(top.logprobs, width, float("-inf"))
        token_ids[rows] = _widen(specific.logprob_token_ids, width, 0)[rows]
        values[rows] = _widen(specific.logprobs, width, float("-inf"))[rows]
        return LogprobsTensors(token_ids, values, top.selected_token_ranks)


def _widen(rows: torch.Tensor, width: int, fill: float) -> torch.Tensor:
    return torch.nn.functional.pad(rows, (0, width - rows.shape[1]), value=fill)
