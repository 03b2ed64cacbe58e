# SPDX-License-Identifier: Apache-2.0
"""vLLM's sampler, with log-probabilities that stay right when requests ask for different kinds."""

from typing import Any

import torch
from vllm.v1.outputs import LogprobsTensors, SamplerOutput
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.sampler import Sampler


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
