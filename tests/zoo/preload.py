# SPDX-License-Identifier: Apache-2.0
"""What every case imports, loaded once by the server that forks for them."""

import transformers  # noqa: F401
import vllm.entrypoints.llm
import vllm.v1.engine.core
import vllm.v1.engine.llm_engine  # noqa: F401
from vllm.model_executor.models import registry

import vllm_metal.runner
import vllm_metal.worker  # noqa: F401
import zoo.case
import zoo.checkpoint
import zoo.compare
import zoo.pooled  # noqa: F401

# vLLM asks a child process about a model class that it meets for the first time, because importing
# the class could start CUDA. There is none here, and the child would import vLLM again.
registry._run_in_subprocess = lambda inspect: inspect()
