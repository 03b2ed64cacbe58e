# SPDX-License-Identifier: Apache-2.0
"""The device that this process computes on, found once when the worker starts."""

import platform
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil
import torch
from vllm.logger import init_logger

from vllm_metal import envs
from vllm_metal.memory import human

logger = init_logger("vllm.metal")


@dataclass(frozen=True)
class Device:
    """`name` is MLX's: gpu or cpu. `working_set` is what the GPU may keep resident, in bytes."""

    name: str
    framework: str
    working_set: int | None = None

    def __str__(self) -> str:
        memory = human(psutil.virtual_memory().total)
        return f"{_chip()}, {memory}, {_system()}, {self.framework} ({self.name})"


def select_device() -> Device:
    """The device of VLLM_MLX_DEVICE, or the CPU, said once, where MLX has no GPU."""
    if not envs.USE_MLX.value():
        return Device("cpu", f"PyTorch {torch.__version__}")
    import mlx.core as mx

    framework = f"MLX {version('mlx')}"
    if envs.DEVICE.value() == "gpu":
        if mx.is_available(mx.gpu):
            working_set = mx.device_info(mx.gpu).get("max_recommended_working_set_size")
            return Device("gpu", framework, int(working_set) if working_set else None)
        logger.warning_once(
            "metal: MLX has no GPU on this machine and runs on the CPU; %s=cpu says so silently",
            envs.DEVICE.name,
        )
    return Device("cpu", framework)


def _chip() -> str:
    if sys.platform == "darwin":
        query = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(query, capture_output=True, text=True).stdout.strip() or "Mac"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def _system() -> str:
    if sys.platform == "darwin":
        return f"macOS {platform.mac_ver()[0]}"
    return f"{platform.system()} {platform.release().split('-')[0]}"
