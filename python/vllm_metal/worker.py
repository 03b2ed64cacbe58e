# SPDX-License-Identifier: Apache-2.0
"""The process that runs the model: device, memory, and the life of the runner."""

import gc
import multiprocessing
from contextlib import AbstractContextManager, nullcontext

import torch
from vllm.config import set_current_vllm_config
from vllm.logger import init_logger
from vllm.platforms import current_platform
from vllm.utils.torch_utils import set_random_seed
from vllm.v1.kv_cache_interface import MambaSpec
from vllm.v1.worker.gpu_worker import Worker, init_worker_distributed_environment
from vllm.v1.worker.worker_base import CompilationTimes

from vllm_metal import envs
from vllm_metal.device import select_device
from vllm_metal.kernels.usable import kernel_runner
from vllm_metal.memory import available_memory, human, memory_budget, working_memory
from vllm_metal.runner import LoweredModelRunner, MetalModelRunner

logger = init_logger("vllm.metal")


class MetalWorker(Worker):
    """vLLM's worker without what it does for CUDA: memory pools, profiling runs, graph capture."""

    model_runner: MetalModelRunner

    def init_device(self) -> None:
        self.device = torch.device("cpu")
        self.metal_device = select_device()
        self.budget = memory_budget(self.vllm_config, self.metal_device.working_set)
        logger.info("metal: %s; memory budget %s", self.metal_device, self.budget)
        init_worker_distributed_environment(
            self.vllm_config,
            self.rank,
            self.distributed_init_method,
            self.local_rank,
            current_platform.dist_backend,
        )
        set_random_seed(self.model_config.seed)
        if envs.USE_MLX.value():
            from vllm_metal._native import core

            self.runtime = core.Runtime(self.metal_device.name, memory_limit=self.budget.limit)
            self.model_runner = LoweredModelRunner(
                self.vllm_config,
                self.device,
                self.budget,
                self.runtime,
                kernel_runner(self.metal_device.name),
            )
        else:
            self.model_runner = MetalModelRunner(self.vllm_config, self.device, self.budget)

    def load_model(self, *, load_dummy_weights: bool = False) -> None:
        with set_current_vllm_config(self.vllm_config):
            self.model_runner.load_model(load_dummy_weights=load_dummy_weights)

    def determine_available_memory(self) -> int:
        """Bytes for the KV cache: what the user asked for, or what the budget leaves.

        Raises ValueError, with the sum and what to change, when that does not hold one request.
        """
        if explicit := self.cache_config.kv_cache_memory_bytes:
            return explicit
        weights, working = self.model_runner.weight_bytes, working_memory(self.vllm_config)
        left = self.budget.limit - weights - working
        free = available_memory() - working
        # Where vLLM lays states over the blocks of attention, the runtime has arrays for each.
        available = min(left, free) // self._kinds_of_cache

        specs = self.model_runner.get_kv_cache_spec().values()
        needed = sum(spec.max_memory_usage_bytes(self.vllm_config) for spec in specs)
        fits_any_length = self.model_config.original_max_model_len == -1
        if available < needed and not fits_any_length and not self._blocks_are_given:
            raise ValueError(
                f"{self.model_config.model} needs {human(weights)} of weights, about "
                f"{human(working)} of working memory, and {human(needed)} of KV cache for one "
                f"request of {self.model_config.max_model_len:,} tokens; the budget is "
                f"{self.budget}, of which {human(max(0, available))} is left for the KV cache. "
                "Lower --max-model-len, use a quantised checkpoint, or raise the limit."
            )
        useful = max(needed, self._useful_kv_cache_bytes())
        if free < min(left, useful):
            logger.info(
                "metal: other programs leave %s of memory: the KV cache is sized to that",
                human(free + working),
            )
        return min(available, useful)

    @property
    def _kinds_of_cache(self) -> int:
        specs = self.model_runner.get_kv_cache_spec().values()
        return len({isinstance(spec, MambaSpec) for spec in specs}) or 1

    @property
    def _blocks_are_given(self) -> bool:
        return self.cache_config.num_gpu_blocks_override is not None

    def _useful_kv_cache_bytes(self) -> int:
        """Twice what can be in use at once, so that finished prompts stay cached too: the rest of
        the memory is better left to the machine."""
        tokens = 2 * self.scheduler_config.max_num_seqs * self.model_config.max_model_len
        specs = self.model_runner.get_kv_cache_spec().values()
        return sum(-(-tokens // spec.block_size) * spec.page_size_bytes for spec in specs)

    def compile_or_warm_up_model(self) -> CompilationTimes:
        return CompilationTimes(language_model=0.0, encoder=0.0)

    def sleep(self, level: int = 1) -> None:
        """Raises ValueError: vLLM has paused by then, and `wake_up` goes on."""
        raise ValueError(
            f"sleep level {level} would move weights out of the device's memory, and there is only "
            "one memory here; level 0 pauses."
        )

    def synchronize_device(self) -> None:
        """Every step has been computed when it returns."""

    def shutdown(self) -> None:
        super().shutdown()
        if multiprocessing.parent_process() is not None:
            # The engine's process ends now. Python would first search all of it for cycles: vLLM
            # waits five seconds for that, and then kills the process with a warning.
            gc.freeze()

    def _maybe_get_memory_pool_context(self, tag: str) -> AbstractContextManager[None]:
        return nullcontext()
