# SPDX-License-Identifier: Apache-2.0
"""A VllmConfig for a model directory, a hub name or a bare ``config.json``, without a server."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vllm.config import VllmConfig, set_current_vllm_config
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.models import registry


def capture_config(
    model: str | os.PathLike[str], dtype: str = "auto", **overrides: Any
) -> VllmConfig:
    """The engine configuration for capturing ``model``; neither tokenizer nor weights are needed.

    ``model`` is a directory, a hub name or the path of a ``config.json`` under any name.
    ``overrides`` are further fields of vLLM's ``EngineArgs``. Raises what vLLM raises for a
    configuration it does not understand.
    """
    with _model_directory(os.fspath(model)) as path:
        arguments: dict[str, Any] = {
            "load_format": "dummy",
            "skip_tokenizer_init": True,
            "enforce_eager": True,
            "disable_log_stats": True,
        }
        with _inspect_in_process():
            engine_args = EngineArgs(model=path, dtype=dtype, **{**arguments, **overrides})
            return engine_args.create_engine_config()


@contextmanager
def _inspect_in_process() -> Iterator[None]:
    # vLLM asks a child process about a model class it meets for the first time, because importing
    # the class could start CUDA. There is none here, and the child imports torch and vLLM again.
    run_in_subprocess = registry._run_in_subprocess
    registry._run_in_subprocess = lambda inspect: inspect()
    try:
        yield
    finally:
        registry._run_in_subprocess = run_in_subprocess


@contextmanager
def _model_directory(model: str) -> Iterator[str]:
    path = Path(model)
    if not path.is_file():
        yield model
    elif path.name == "config.json":
        yield str(path.parent)
    else:
        with tempfile.TemporaryDirectory(prefix="vllm-metal-") as directory:
            shutil.copyfile(path, Path(directory, "config.json"))
            yield directory


@contextmanager
def single_process(vllm_config: VllmConfig) -> Iterator[None]:
    """Make ``vllm_config`` current, with vLLM's process groups of one process.

    Groups that exist already (a worker's) are used and left alone.
    """
    import torch
    from vllm.distributed import (
        cleanup_dist_env_and_memory,
        ensure_model_parallel_initialized,
        init_distributed_environment,
    )

    with set_current_vllm_config(vllm_config):
        if torch.distributed.is_initialized():
            yield
            return
        with tempfile.TemporaryDirectory(prefix="vllm-metal-") as directory:
            init_distributed_environment(1, 0, f"file://{directory}/store", 0, backend="gloo")
            ensure_model_parallel_initialized(1, 1)
            try:
                yield
            finally:
                cleanup_dist_env_and_memory()
