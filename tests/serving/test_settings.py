# SPDX-License-Identifier: Apache-2.0
"""Environment variables, memory budget and the platform's answers to vLLM's configuration."""

import os
from types import SimpleNamespace

import pytest
import vllm.envs
from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs

from vllm_metal import envs, memory, register


@pytest.fixture
def vllm_config(models):
    """vLLM's configuration of a tiny model with the options that a test gives."""

    def make(**options):
        options = {"model": models("llama").name_or_path, "skip_tokenizer_init": True} | options
        return EngineArgs(**options).create_engine_config()

    return make


@pytest.mark.parametrize("variable", envs.VARIABLES, ids=lambda variable: variable.name)
def test_defaults_are_valid_and_known_to_vllm(variable, monkeypatch):
    monkeypatch.delenv(variable.name, raising=False)
    register()
    assert variable.value() == variable.parse(variable.default)
    assert vllm.envs.environment_variables[variable.name]() == variable.default
    assert len(variable.meaning) > 20


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("VLLM_METAL_MEMORY_FRACTION", "lots", "a number above 0"),
        ("VLLM_METAL_MEMORY_FRACTION", "1.5", "a number above 0"),
        ("VLLM_METAL_MEMORY_FRACTION", "nan", "a number above 0"),
        ("VLLM_METAL_MEMORY_FRACTION", "0", "a number above 0"),
        ("VLLM_METAL_USE_MLX", "yes", "0 or 1"),
        ("VLLM_MLX_DEVICE", "tpu", "gpu or cpu"),
        ("VLLM_METAL_BLOCK_SIZE", "-16", "a whole number of at least 1"),
        ("VLLM_METAL_FALLBACK", "panic", "torch or error"),
        ("VLLM_METAL_DEBUG", "", "0 or 1"),
    ],
)
def test_a_bad_value_names_variable_and_expectation(name, text, expected, monkeypatch, vllm_config):
    monkeypatch.setenv(name, text)
    with pytest.raises(ValueError, match=f"{name}='{text}': expected {expected}"):
        vllm_config()


def test_what_is_turned_off(vllm_config):
    from vllm.config import CompilationMode, CUDAGraphMode

    config = vllm_config(compilation_config={"mode": 3})
    assert config.compilation_config.mode == CompilationMode.NONE
    assert config.compilation_config.cudagraph_mode == CUDAGraphMode.NONE
    assert not config.use_v2_model_runner
    assert config.parallel_config.worker_cls == "vllm_metal.worker.MetalWorker"
    assert os.environ["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"


def test_steps_run_ahead_where_they_are_lowered(vllm_config, monkeypatch):
    """vLLM's default, which the user may turn off; its PyTorch runner would wait for CUDA."""
    monkeypatch.setenv("VLLM_METAL_USE_MLX", "1")
    assert vllm_config().scheduler_config.async_scheduling
    assert not vllm_config(async_scheduling=False).scheduler_config.async_scheduling
    monkeypatch.setenv("VLLM_METAL_USE_MLX", "0")
    assert not vllm_config(async_scheduling=True).scheduler_config.async_scheduling


def test_mlx_as_a_compilation_backend(vllm_config, monkeypatch):
    monkeypatch.setenv("VLLM_METAL_USE_MLX", "1")
    assert vllm_config(compilation_config={"backend": "mlx"}).compilation_config.backend == "mlx"
    assert vllm_config().compilation_config.backend == "mlx"
    monkeypatch.setenv("VLLM_METAL_USE_MLX", "0")
    with pytest.raises(ValueError, match="leave one of them out"):
        vllm_config(compilation_config={"backend": "mlx"})


def test_block_size(vllm_config, monkeypatch):
    assert vllm_config().cache_config.block_size == 16
    monkeypatch.setenv("VLLM_METAL_BLOCK_SIZE", "8")
    assert vllm_config().cache_config.block_size == 8
    assert vllm_config(block_size=32).cache_config.block_size == 32


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"tensor_parallel_size": 2}, "--tensor-parallel-size 2"),
        ({"pipeline_parallel_size": 2}, "--pipeline-parallel-size 2"),
        ({"data_parallel_size": 2}, "--data-parallel-size 2"),
        ({"max_model_len": 100_000}, "max_position_embeddings=256"),
        ({"enable_sleep_mode": True}, "[Ss]leep mode is not supported"),
        ({"kv_cache_dtype": "fp8"}, "--kv-cache-dtype fp8"),
        ({"attention_backend": "FLASH_ATTN"}, "--attention-backend"),
        ({"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}}, "speculative"),
        ({"quantization": "awq"}, "awq"),
        ({"kv_offloading_size": 1.0}, "--kv-offloading-size"),
        ({"kv_transfer_config": {"kv_connector": "X", "kv_role": "kv_both"}}, "--kv-transfer-conf"),
        ({"enable_lora": True}, "--enable-lora"),
        ({"enable_prompt_embeds": True}, "--enable-prompt-embeds"),
        ({"enable_return_routed_experts": True}, "--enable-return-routed-experts"),
    ],
)
def test_what_cannot_be_honoured_is_refused(vllm_config, monkeypatch, options, named):
    monkeypatch.setenv("VLLM_METAL_USE_MLX", "1")
    with pytest.raises((ValueError, NotImplementedError), match=named):
        vllm_config(**options)


def test_another_layout_of_convolution_states_is_refused(vllm_config, monkeypatch):
    monkeypatch.setenv("VLLM_SSM_CONV_STATE_LAYOUT", "DS")
    with pytest.raises(ValueError, match="VLLM_SSM_CONV_STATE_LAYOUT=DS"):
        vllm_config()
    monkeypatch.setenv("VLLM_SSM_CONV_STATE_LAYOUT", "SD")
    vllm_config()


def test_budget_is_the_smallest_of_three(monkeypatch):
    monkeypatch.setattr(memory, "total_memory", lambda: 100 * 10**9)
    config = SimpleNamespace(cache_config=SimpleNamespace(gpu_memory_utilization=0.92))
    monkeypatch.setenv("VLLM_METAL_MEMORY_FRACTION", "0.9")
    assert str(memory.memory_budget(config)) == (
        "90.0 GB of 100 GB (VLLM_METAL_MEMORY_FRACTION=0.9)"
    )
    config.cache_config.gpu_memory_utilization = 0.5
    assert str(memory.memory_budget(config)) == "50.0 GB of 100 GB (--gpu-memory-utilization 0.5)"
    assert memory.memory_budget(config, device_limit=30 * 10**9).limit == 30 * 10**9


def test_memory_of_a_container(monkeypatch):
    monkeypatch.setattr(memory, "get_cgroup_memory_limit", lambda: 2 * 10**9)
    monkeypatch.setattr(memory, "get_cgroup_memory_usage", lambda: 5 * 10**8)
    assert memory.total_memory() == 2 * 10**9
    assert memory.available_memory() == 15 * 10**8


def test_sleep_is_refused_and_serving_goes_on(models, make_engine):
    requests = [{"prompt_token_ids": [5, 6, 7]}]
    params = SamplingParams(temperature=0, max_tokens=4, detokenize=False)
    with make_engine(models("llama").name_or_path) as llm:
        before = llm.generate(requests, params, use_tqdm=False)[0].outputs[0].token_ids
        with pytest.raises(ValueError, match="level 0 pauses"):
            llm.sleep()
        llm.wake_up()
        after = llm.generate(requests, params, use_tqdm=False)[0].outputs[0].token_ids
    assert before == after
