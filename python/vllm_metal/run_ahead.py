# SPDX-License-Identifier: Apache-2.0
"""Steps that begin before the one before is done (vLLM's asynchronous scheduling).

A step whose requests want nothing but tokens (`sampler.is_plain`) is sampled by the runtime, and
nobody waits for it: the next step's inputs are built of tokens that are still being computed
(`core.SampledIds`). Every other step is sampled by vLLM's sampler from its computed logits, with
the same random numbers. Both are so with and without asynchronous scheduling; without it, tokens
are waited for at once.
"""

from typing import Any

import torch
from vllm.v1.outputs import AsyncModelRunnerOutput, LogprobsTensors, ModelRunnerOutput

from vllm_metal._native import core


class SampledTokens:
    """int32[num_requests, 1] that may still be computed; the part of a tensor's interface that
    vLLM's runner uses between sampling and its output."""

    def __init__(self, tokens: Any, vocab_size: int) -> None:
        """A LazyTensor int32[num_requests] of ids below `vocab_size`."""
        self._tokens = tokens
        self._vocab_size = vocab_size

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self._tokens), 1))

    def tolist(self) -> list[list[int]]:
        """Waits for them."""
        tokens: list[int] = torch.from_dlpack(self._tokens).tolist()
        return [[token] for token in tokens]

    def in_place(self, input_ids: torch.Tensor, places: list[tuple[int, int]]) -> Any:
        """`input_ids` with, at the first index of each pair, the token of that second index."""
        return core.SampledIds(input_ids, self._tokens, self._vocab_size, places)


class StepOutput(AsyncModelRunnerOutput):
    """What vLLM's runner returns of a step: read when it is done. In the place of
    `AsyncGPUModelRunnerOutput`, which copies from CUDA."""

    def __init__(
        self,
        model_runner_output: ModelRunnerOutput,
        sampled_token_ids: torch.Tensor | SampledTokens,
        logprobs_tensors: LogprobsTensors | None,
        invalid_req_indices: list[int],
        **unused: Any,
    ) -> None:
        """`invalid_req_indices` are requests whose prefill goes on: they have no token."""
        self._output = model_runner_output
        self._logprobs = logprobs_tensors
        self._invalid = invalid_req_indices
        # vLLM's names: what penalties of the next step read, when it comes to that.
        self.sampled_token_ids_cpu = sampled_token_ids
        self.async_copy_ready_event = self

    def synchronize(self) -> None:
        """`tolist` waits."""

    def get_output(self) -> ModelRunnerOutput:
        token_ids = self.sampled_token_ids_cpu.tolist()
        for index in self._invalid:
            token_ids[index].clear()
        self._output.sampled_token_ids = token_ids
        if self._logprobs is not None:
            self._output.logprobs = self._logprobs.tolists()
        return self._output

    def get_kv_connector_output(self) -> Any:
        return self._output.kv_connector_output
