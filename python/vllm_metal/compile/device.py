# SPDX-License-Identifier: Apache-2.0
"""MLX for compiled graphs: one runtime in a process, started when the first graph runs."""

import functools
import logging
from typing import Any

from vllm_metal import envs
from vllm_metal._native import core

logger = logging.getLogger("vllm.metal.compile")


@functools.cache
def device() -> str:
    """The device of VLLM_MLX_DEVICE, or the CPU, said once, where MLX has no GPU."""
    import mlx.core as mx

    if envs.DEVICE.value() == "gpu" and not mx.is_available(mx.gpu):
        logger.warning(
            "metal: MLX has no GPU on this machine and runs on the CPU; %s=cpu says so silently",
            envs.DEVICE.name,
        )
        return "cpu"
    return str(envs.DEVICE.value())


@functools.cache
def runtime() -> Any:
    """The process's `vllm_metal._core.Runtime` for compiled graphs."""
    return core.Runtime(device())
