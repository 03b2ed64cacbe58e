# SPDX-License-Identifier: Apache-2.0
"""One step of the engine: inputs, forward, logits, sample. All that leans on vLLM's V1 runner.

vLLM's own runner does the batching, chunked prefill, prefix caching, log-probabilities, structured
output, pooling and bookkeeping; this subclass says where the model, its KV cache and its numbers
come from. vLLM calls, in a step,

    execute_model    _prepare_inputs -> _model_forward -> hidden_states[logits_indices]
                     -> model.compute_logits
    sample_tokens    apply_grammar_bitmask -> _sample -> _bookkeeping_sync (-> prompt logprobs)

and with asynchronous scheduling both of the next step before it reads this one's `StepOutput`.

The way to V2 (vllm/v1/worker/gpu/model_runner.py): it keeps the batch in a `RequestState` on the
device and calls Triton kernels for the inputs, for which there must be overrides in
triton_overrides.py; the hooks here become its `model`, `kv_cache` and `sampler` parts.
"""

import time
from contextlib import AbstractContextManager, ExitStack
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from vllm import envs as vllm_envs
from vllm.config import VllmConfig
from vllm.logger import init_logger
from vllm.model_executor.model_loader import get_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.sequence import IntermediateTensors
from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.outputs import SamplerOutput
from vllm.v1.spec_decode.metadata import SpecDecodeMetadata
from vllm.v1.worker import gpu_model_runner
from vllm.v1.worker.cpu_model_runner import CPUModelRunner

from vllm_metal import checkpoint, envs, layers, patches
from vllm_metal.cuda_placeholder import without_streams
from vllm_metal.kernels.contract import Run
from vllm_metal.kernels.usable import check_kernels
from vllm_metal.lowered import HiddenStates, Logits, LoweredModel, log_report, lower
from vllm_metal.mapped_weights import mapped_weights
from vllm_metal.memory import MemoryBudget, human
from vllm_metal.plan_cache import PlanCache
from vllm_metal.run_ahead import SampledTokens, StepOutput
from vllm_metal.sampler import Draw, DrawingSampler, Draws, MetalSampler, is_plain

logger = init_logger("vllm.metal")


class MetalModelRunner(CPUModelRunner):
    """vLLM's runner with vLLM's PyTorch model on the CPU: the reference for the lowered path."""

    model: nn.Module

    def __init__(self, vllm_config: VllmConfig, device: torch.device, budget: MemoryBudget) -> None:
        with without_streams():
            super().__init__(vllm_config, device)
        self.dtype: torch.dtype
        self.sampler = MetalSampler(self.model_config.logprobs_mode)
        self.budget = budget
        self.weight_bytes = 0
        self.load_seconds = 0.0

    # ---- loading

    def load_model(self, load_dummy_weights: bool = False) -> None:
        if load_dummy_weights:
            raise ValueError("elastic expert parallelism is not supported")
        start = time.perf_counter()
        layers.register()
        self.model = self._load_model()
        if self.lora_config:
            self.model = self.load_lora_model(self.model, self.vllm_config, self.device)
        if hasattr(self, "drafter") and hasattr(self.drafter, "load_model"):
            self.drafter.load_model(self.model)
        self._setup_eagle3_aux_hidden_state_outputs()
        self.load_seconds = time.perf_counter() - start

    def _load_model(self) -> nn.Module:
        """The model with its weights; the lowered path captures, lowers and maps them instead."""
        patches.prepare(self.model_config)
        loader = get_model_loader(self.load_config)
        with ExitStack() as loading:
            if isinstance(loader, DefaultModelLoader):  # the others read formats of their own
                tensors = self._check_checkpoint(loader)
                loading.enter_context(mapped_weights())
                loading.enter_context(checkpoint.naming_bad_weights(loader, tensors))
            loading.enter_context(without_streams())
            model = loader.load_model(vllm_config=self.vllm_config, model_config=self.model_config)
        patches.apply()
        storages = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for tensor in model.state_dict().values()
        }
        self.weight_bytes = sum(storages.values())
        return model

    def _check_checkpoint(self, loader: DefaultModelLoader) -> list[checkpoint.StoredTensor]:
        """Downloads the checkpoint where needed, and refuses it when a file is damaged or when it
        does not fit in memory, before a byte of it is loaded."""
        folder, files, is_safetensors, _ = loader._prepare_weights(
            self.model_config.model, None, self.model_config.revision, True, None
        )
        if not is_safetensors:
            return []
        names = {file.rsplit("/", 1)[-1] for file in files}
        tensors = [t for t in checkpoint.check_directory(folder) if t.file.name in names]
        needed = sum(tensor.loaded_bytes(self.dtype) for tensor in tensors)
        if needed > self.budget.limit:
            raise ValueError(
                f"{self.model_config.model} needs {human(needed)} of weights and this machine "
                f"gives {self.budget}. Use a 4-bit checkpoint (about {human(needed * 4.5 / 16)}) "
                "or a smaller model."
            )
        return tensors

    # ---- KV cache

    def initialize_kv_cache(
        self, kv_cache_config: KVCacheConfig, *args: Any, **kwargs: Any
    ) -> None:
        # torch.zeros of this size takes no memory before its pages are written.
        size = max((tensor.size for tensor in kv_cache_config.kv_cache_tensors), default=0)
        if self.weight_bytes + size > self.budget.limit:
            raise ValueError(
                f"{human(self.weight_bytes)} of weights and a KV cache of {human(size)} do not fit "
                f"in {self.budget}: lower --num-gpu-blocks-override or --kv-cache-memory-bytes."
            )
        super().initialize_kv_cache(kv_cache_config, *args, **kwargs)
        logger.info(
            "metal: weights %s loaded in %.1f s; KV cache %s = %s tokens",
            human(self.weight_bytes),
            self.load_seconds,
            human(size),
            f"{num_cached_tokens(kv_cache_config):,}",
        )

    def _init_kv_zero_meta(self) -> None:
        """See `_zero_block_ids`."""

    def _zero_block_ids(self, block_ids: list[int]) -> None:
        """New blocks need not be cleared: only what was written to them is read."""

    def _get_mamba_bufs(self) -> Any:
        """Nor are states copied before a step (`recurrent.alignment`)."""
        return SimpleNamespace(preprocess=None, postprocess_align=None)

    # ---- sampling

    def _sample(
        self, logits: torch.Tensor | None, spec_decode_metadata: SpecDecodeMetadata | None
    ) -> SamplerOutput:
        # A request whose prefill goes on draws a token that is thrown away: its seeded generator
        # must not move, or the text would depend on how the prompt was cut.
        states = {
            index: generator.get_state()
            for index, generator in self.input_batch.generators.items()
            if self.discard_request_mask.np[index]
        }
        output = super()._sample(logits, spec_decode_metadata)
        for index, state in states.items():
            self.input_batch.generators[index].set_state(state)
        return output

    def _bookkeeping_sync(self, *args: Any, **kwargs: Any) -> Any:
        # vLLM winds those generators back by an offset, which CPU generators do not have.
        generators = self.input_batch.generators
        discarded = np.nonzero(self.discard_request_mask.np[: self.input_batch.num_reqs])[0]
        aside = {int(i): generators.pop(int(i)) for i in discarded if int(i) in generators}
        try:
            return super()._bookkeeping_sync(*args, **kwargs)
        finally:
            generators.update(aside)


class LoweredModelRunner(MetalModelRunner):
    """The same runner with the model lowered to MLX. A step stays one lazy MLX graph from the token
    ids to the logits of the rows that are sampled, and is computed once."""

    def __init__(
        self,
        vllm_config: VllmConfig,
        device: torch.device,
        budget: MemoryBudget,
        runtime: Any,
        run_kernel: Run | None = None,
    ) -> None:
        """`run_kernel` runs Metal kernels here, for their self-check; None: references run."""
        super().__init__(vllm_config, device, budget)
        self.runtime = runtime
        self.run_kernel = run_kernel
        self.debug: bool = envs.DEBUG.value()
        self.lowered: LoweredModel
        # vLLM's runner makes one at the end of each step that nobody waits for.
        gpu_model_runner.AsyncGPUModelRunnerOutput = StepOutput  # type: ignore[misc,assignment]
        self._logits_are_lazy = False
        self.execute_model_state: Any
        self._draws = Draws()
        self._drawing = DrawingSampler(self.model_config.logprobs_mode, self._draw)
        self.sampler.topk_topp_sampler = self._drawing
        self._sampled: tuple[SampledTokens, list[tuple[int, int]]] | None = None

    def _load_model(self) -> nn.Module:
        model = super()._load_model()
        lowering = lower(model, self.vllm_config, cache=PlanCache.configured())
        log_report(lowering.report)
        kernels = check_kernels(lowering.plan, self.run_kernel)
        kernels.log()
        self.lowered = LoweredModel(
            self.runtime, lowering, model, release=True, kernels=kernels.usable
        )
        # vLLM's runner asks the model for logits; all else it asks for is the torch model's.
        model.compute_logits = self._compute_logits  # type: ignore[assignment]
        return model

    def execute_model(self, *args: Any, **kwargs: Any) -> Any:
        # What is sampled from stays lazy until it is known how.
        self._logits_are_lazy = True
        try:
            return super().execute_model(*args, **kwargs)
        finally:
            self._logits_are_lazy = False

    def _compute_logits(self, hidden: HiddenStates) -> torch.Tensor | Logits:
        return Logits(hidden) if self._logits_are_lazy else self.lowered.compute_logits(hidden)

    # ---- sampling, and inputs of what is being sampled

    def sample_tokens(self, grammar_output: GrammarOutput | None) -> Any:
        state = self.execute_model_state
        # A grammar writes into logits, and a check for NaNs reads them.
        are_used = grammar_output is not None or vllm_envs.VLLM_COMPUTE_NANS_IN_LOGITS
        if are_used and state is not None and isinstance(state.logits, Logits):
            self.execute_model_state = state._replace(logits=state.logits.torch())
        return super().sample_tokens(grammar_output)

    def _sample(
        self,
        logits: torch.Tensor | Logits | None,
        spec_decode_metadata: SpecDecodeMetadata | None,
    ) -> SamplerOutput:
        start = time.perf_counter()
        metadata = self.input_batch.sampling_metadata
        draws: list[Draw] = []
        if not metadata.all_greedy:
            draws = self._draws.of(self.input_batch.req_ids, self.requests)
        if isinstance(logits, Logits) and is_plain(metadata, draws):
            tokens = logits.sample(draws or None, ahead=self.use_async_scheduling)
            output = SamplerOutput(sampled_token_ids=tokens, logprobs_tensors=None)  # type: ignore[arg-type]
        else:
            computed = logits.torch() if isinstance(logits, Logits) else logits
            self._drawing.draws = draws
            output = super()._sample(computed, spec_decode_metadata)
        if self.debug:
            milliseconds = (time.perf_counter() - start) * 1e3
            count = self.input_batch.num_reqs
            logger.info("metal: sampling for %d requests in %.2f ms", count, milliseconds)
        return output

    def _draw(self, logits: torch.Tensor, draws: list[Draw]) -> torch.Tensor:
        """Of logits float32[num_requests, vocab_size] that vLLM's sampler worked on."""
        tokens = self.runtime.sample(self.runtime.borrow(logits), draws)
        return torch.from_dlpack(tokens).long()

    def _prepare_input_ids(
        self,
        scheduler_output: SchedulerOutput,
        num_reqs: int,
        total_num_scheduled_tokens: int,
        cu_num_tokens: np.ndarray,
    ) -> None:
        tokens = self.input_batch.prev_sampled_token_ids
        self._sampled = None
        if isinstance(tokens, SampledTokens):
            # A request's last token is the one sampled for it in the last step, if it took part.
            previous = self.prev_positions.np[:num_reqs]
            places = zip((cu_num_tokens[:num_reqs] - 1).tolist(), previous.tolist(), strict=True)
            self._sampled = tokens, [(place, index) for place, index in places if index >= 0]
            return
        super()._prepare_input_ids(
            scheduler_output, num_reqs, total_num_scheduled_tokens, cu_num_tokens
        )

    def initialize_kv_cache_tensors(
        self,
        kv_cache_config: KVCacheConfig,
        kernel_block_sizes: list[int],
        kv_cache_allocation_context: AbstractContextManager[None] | None = None,
    ) -> dict[str, torch.Tensor]:
        # Layers that share another's cache find it by the plan.
        self.lowered.allocate_kv_cache(kv_cache_config, kernel_block_sizes)
        return {}

    def _model_forward(
        self,
        input_ids: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        **model_kwargs: Any,
    ) -> HiddenStates:
        if input_ids is None or positions is None or inputs_embeds is not None or model_kwargs:
            raise ValueError("inputs other than tokens and positions are not lowered yet")
        return self.lowered.step(input_ids, positions, token_type_ids, self._sampled)

    def _pool(self, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        return super()._pool(hidden_states.torch(), *args, **kwargs)


def num_cached_tokens(kv_cache_config: KVCacheConfig) -> int:
    """Tokens that fit in the cache; each takes a place in every group of layers."""
    groups = kv_cache_config.kv_cache_groups
    if not groups:
        return 0
    block_size = min(group.kv_cache_spec.block_size for group in groups)
    return kv_cache_config.num_blocks // len(groups) * block_size
