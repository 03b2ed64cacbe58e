# SPDX-License-Identifier: Apache-2.0
"""The platform that vLLM sees: an out-of-tree device whose tensors live in CPU memory."""

import multiprocessing
import os
from typing import TYPE_CHECKING, Any

import torch
from vllm import envs as vllm_envs
from vllm.logger import init_logger
from vllm.platforms.interface import Platform, PlatformEnum

from vllm_metal import checkpoint, envs, memory

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.attention.backends.registry import AttentionBackendEnum
    from vllm.v1.attention.selector import AttentionSelectorConfig

logger = init_logger("vllm.metal")

# `--compilation-config '{"backend": "mlx"}'` asks for the lowered path by name.
COMPILATION_BACKEND = "mlx"


class MetalPlatform(Platform):
    _enum = PlatformEnum.OOT
    # vLLM makes torch devices of these two names: what we hand it are CPU tensors.
    device_name = "cpu"
    device_type = "cpu"
    dispatch_key = "CPU"
    dist_backend = "gloo"
    simple_compile_backend = "eager"

    @property
    def supported_dtypes(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_device_name(cls, device_id: int = 0) -> str:
        return "metal"

    @classmethod
    def get_device_total_memory(cls, device_id: int = 0) -> int:
        return memory.total_memory()

    @classmethod
    def num_compute_units(cls, device_id: int = 0) -> int:
        """What Triton kernels are cut by; none runs here."""
        return 1

    @classmethod
    def set_device(cls, device: torch.device) -> None:
        pass

    @classmethod
    def manual_seed_all(cls, seed: int) -> None:
        torch.manual_seed(seed)

    @classmethod
    def inference_mode(cls) -> Any:
        return torch.no_grad()

    @classmethod
    def is_pin_memory_available(cls) -> bool:
        return False

    @classmethod
    def import_kernels(cls) -> None:
        """vLLM is installed as pure Python: there are no compiled kernels."""

    @classmethod
    def import_ir_kernels(cls) -> None:
        """vLLM's IR operators run as their native PyTorch versions."""

    @classmethod
    def register_triton_kernel_overrides(cls) -> None:
        from vllm_metal import triton_overrides

        triton_overrides.register()

    @classmethod
    def verify_quantization(cls, quant: str) -> None:
        raise ValueError(
            f"the checkpoint is quantised ({quant}), which vllm-metal can't load yet: use the "
            "original in bfloat16, float16 or float32."
        )

    @classmethod
    def get_compile_backend(cls) -> str:
        """What `--compilation-config` shows where the user names no backend."""
        return COMPILATION_BACKEND if envs.USE_MLX.value() else cls.simple_compile_backend

    @classmethod
    def opaque_attention_op(cls) -> bool:
        return True

    @classmethod
    def support_hybrid_kv_cache(cls) -> bool:
        return True

    @classmethod
    def check_runner_kv_caches_multi_layer(cls) -> None:
        """Layers find their cache by name, so several of one index are fine."""

    @classmethod
    def get_punica_wrapper(cls) -> str:
        return "vllm.lora.punica_wrapper.punica_cpu.PunicaWrapperCPU"

    @classmethod
    def get_attn_backend_cls(
        cls,
        selected_backend: "AttentionBackendEnum | None",
        attn_selector_config: "AttentionSelectorConfig",
        num_heads: int | None = None,
    ) -> str:
        from vllm_metal.attention import MetalAttentionBackend
        from vllm_metal.latent_attention import (
            MetalLatentAttentionBackend,
            MetalSparseLatentAttentionBackend,
        )

        backend: type[MetalAttentionBackend] = MetalAttentionBackend
        if attn_selector_config.use_mla:
            backend = MetalLatentAttentionBackend
            if attn_selector_config.use_sparse:
                backend = MetalSparseLatentAttentionBackend
        reasons = backend.validate_configuration(
            device_capability=None,  # type: ignore[arg-type]
            **attn_selector_config._asdict(),
        )
        if reasons:
            raise ValueError(f"this model's attention can't run here: {', '.join(reasons)}.")
        return f"{backend.__module__}.{backend.__qualname__}"

    @classmethod
    def get_mla_prefill_backend_cls(cls, mla_selector_config: Any) -> Any:
        from vllm_metal.latent_attention import MetalPrefillBackend

        return MetalPrefillBackend

    @classmethod
    def apply_config_platform_defaults(cls, vllm_config: "VllmConfig") -> None:
        # Before vLLM derives its other settings from the compilation mode. Its compiler needs
        # inductor kernels for the device and stops on an out-of-tree platform.
        from vllm.config import CompilationMode, CUDAGraphMode
        from vllm.config.vllm import OptimizationLevel

        compilation_config = vllm_config.compilation_config
        if compilation_config.backend == COMPILATION_BACKEND and not envs.USE_MLX.value():
            raise ValueError(
                f"--compilation-config asks for the backend {COMPILATION_BACKEND} and "
                f"{envs.USE_MLX.name}=0 asks for PyTorch: leave one of them out."
            )
        vllm_config.optimization_level = OptimizationLevel.O0
        compilation_config.mode = CompilationMode.NONE
        compilation_config.cudagraph_mode = CUDAGraphMode.NONE

    @classmethod
    def check_and_update_config(cls, vllm_config: "VllmConfig") -> None:
        envs.validate()
        _refuse_unsupported(vllm_config)
        model_config = vllm_config.model_config
        if not envs.USE_MLX.value() or (model_config and model_config.runner_type == "pooling"):
            # vLLM's own outputs would wait for CUDA.
            vllm_config.scheduler_config.async_scheduling = False
        if vllm_config.parallel_config.worker_cls == "auto":
            vllm_config.parallel_config.worker_cls = "vllm_metal.worker.MetalWorker"
        if multiprocessing.parent_process() is None:  # the engine's process checks it all again
            logger.info_once(
                "metal: turned off what vLLM does for CUDA: "
                "its own compilation, the V2 model runner"
            )
        cache_config = vllm_config.cache_config
        if not cache_config.user_specified_block_size and envs.BLOCK_SIZE.name in os.environ:
            cache_config.block_size = envs.BLOCK_SIZE.value()
            cache_config.user_specified_block_size = True
        if model_config is not None and os.path.isdir(model_config.model):
            # Here, in the process that the user started, a bad file is the last line they read.
            checkpoint.check_directory(model_config.model)


def _refuse_unsupported(vllm_config: "VllmConfig") -> None:
    """An option that can't be honoured stops the server, with what to leave out."""
    parallel_config = vllm_config.parallel_config
    for option, size in (
        ("--tensor-parallel-size", parallel_config.tensor_parallel_size),
        ("--pipeline-parallel-size", parallel_config.pipeline_parallel_size),
        ("--data-parallel-size", parallel_config.data_parallel_size),
        ("--decode-context-parallel-size", parallel_config.decode_context_parallel_size),
        ("--prefill-context-parallel-size", parallel_config.prefill_context_parallel_size),
    ):
        if size > 1:
            raise ValueError(f"{option} {size}: vllm-metal runs on one device; leave it out.")
    cache_dtype = vllm_config.cache_config.cache_dtype
    if cache_dtype not in ("auto", "bfloat16", "float16"):
        raise ValueError(
            f"--kv-cache-dtype {cache_dtype}: the KV cache has the model's dtype; leave it out."
        )
    backend = vllm_config.attention_config.backend
    if backend is not None and backend.name == "TRITON_ATTN":
        # What vLLM falls back to by itself for some models.
        logger.info("metal: the attention back-end is vllm-metal's own, not %s", backend.name)
        vllm_config.attention_config.backend = None
    elif backend is not None and backend.name != "CUSTOM":
        raise ValueError(f"--attention-backend {backend.name} does not run here; leave it out.")
    if vllm_config.speculative_config is not None:
        raise ValueError("--speculative-config: vllm-metal does not speculate yet; leave it out.")
    if vllm_config.kv_transfer_config is not None or vllm_config.cache_config.kv_offloading_size:
        raise ValueError(
            "--kv-transfer-config, --kv-offloading-size: the KV cache stays in one memory, which "
            "CPU and GPU share; leave it out."
        )
    if vllm_config.aux_output_config.enabled:
        raise ValueError(
            "--enable-return-routed-experts: vLLM's V1 model runner keeps no record of them; "
            "leave it out."
        )
    embeds = vllm_config.model_config and vllm_config.model_config.enable_prompt_embeds
    for option, is_given in (
        ("--enable-lora: adapters", vllm_config.lora_config is not None),
        ("--enable-prompt-embeds: prompts of embeddings", embeds),
    ):
        if is_given and envs.USE_MLX.value():
            raise ValueError(
                f"{option} are not lowered to MLX yet; {envs.USE_MLX.name}=0 runs them in PyTorch, "
                "slowly."
            )
    if vllm_config.offload_config.uva.cpu_offload_gb > 0:
        raise ValueError("--cpu-offload-gb: CPU and GPU share their memory; leave it out.")
    if vllm_envs.VLLM_SSM_CONV_STATE_LAYOUT == "DS":
        raise ValueError(
            "VLLM_SSM_CONV_STATE_LAYOUT=DS: convolution states are kept position by position (SD); "
            "leave it out."
        )
    if vllm_config.use_v2_model_runner:
        raise ValueError(
            "vllm-metal runs on vLLM's V1 model runner: leave out VLLM_USE_V2_MODEL_RUNNER=1, "
            "watermarking and HiSparse."
        )
