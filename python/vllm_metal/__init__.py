# SPDX-License-Identifier: Apache-2.0
"""vLLM on Apple silicon: vLLM's own PyTorch models, compiled to MLX."""

import os

__version__ = "0.1.0"


def register() -> str:
    """Entry point `vllm.platform_plugins`: returns the class path of the platform.

    vLLM swallows what a plugin raises here, so nothing that a user can get wrong is checked
    before `MetalPlatform.check_and_update_config`.
    """
    from vllm_metal import envs

    envs.register()
    # A fork after MLX has evaluated anything hangs in the child.
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    # vLLM selects its V2 runner where a Triton driver is active; ours extends V1 (see runner.py).
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
    return "vllm_metal.platform.MetalPlatform"
