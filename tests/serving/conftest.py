# SPDX-License-Identifier: Apache-2.0
"""Engines and tiny checkpoints for the serving tests.

Engines run in the test's own process (an engine of its own costs seconds of imports), and each is
used by many tests.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # the models are too small for more
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_LOGGING_LEVEL"] = "WARNING"

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from transformers import PreTrainedModel
from vllm import LLM

from serving import checkpoints

PATHS = {"lowered": "1", "torch": "0"}
"""The ways to run a model, as values of VLLM_METAL_USE_MLX."""

TORCH_SAMPLE = {"llama", "gemma3", "deepseek3", "falcon_h1"}
"""Models that vLLM's PyTorch path runs by default where a test is about several; the others are the
marker `sweep`, and so is its server, which is vLLM's own."""

MakeEngine = Callable[..., AbstractContextManager[LLM]]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    others = {*checkpoints.MODELS, *checkpoints.STATE_MODELS} - TORCH_SAMPLE
    for item in items:
        given = getattr(item, "callspec", None)
        if given is None or given.params.get("path") != "torch":
            continue
        if not others.isdisjoint(map(str, given.params.values())) or "server" in item.fixturenames:
            item.add_marker(pytest.mark.sweep)


@pytest.fixture(scope="session", params=PATHS)
def path(request: pytest.FixtureRequest) -> str:
    """The path under test: vLLM's PyTorch model, or the plan lowered to MLX."""
    return request.param


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], PreTrainedModel]:
    """Hugging Face's model of a name; its checkpoint lies in `model.name_or_path`."""
    built: dict[str, PreTrainedModel] = {}

    def get(name: str) -> PreTrainedModel:
        if name not in built:
            directory = tmp_path_factory.mktemp(name)
            built[name] = checkpoints.build(name, directory)
            built[name].name_or_path = str(directory)
        return built[name]

    return get


@pytest.fixture(scope="session")
def make_engine(path: str) -> MakeEngine:
    """`with make_engine(directory, **options) as llm:` on the path under test.

    Engines of one process share vLLM's process groups: the first to end ends them for all.
    """

    @contextmanager
    def make(directory: str | Path, **options: object) -> Iterator[LLM]:
        os.environ["VLLM_METAL_USE_MLX"] = PATHS[path]
        settings = {"dtype": "float32", "max_num_seqs": 8, "skip_tokenizer_init": True}
        llm = LLM(model=str(directory), **settings | options)
        try:
            yield llm
        finally:
            llm.llm_engine.engine_core.shutdown()

    return make
