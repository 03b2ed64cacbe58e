# SPDX-License-Identifier: Apache-2.0
"""A served model whose plan's kernels run on the host executor: the launches that the runtime makes
give the reference's answers, and a wrong kernel is found, reported and left out."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from capture.models import write_config
from serving.conftest import models  # noqa: F401  (sets vLLM's environment; a fixture)
from vllm import LLM, SamplingParams

import vllm_metal.doctor as doctor
import vllm_metal.lowered
import vllm_metal.runner
import vllm_metal.worker
from vllm_metal._native import core
from vllm_metal.kernels import usable
from vllm_metal.kernels.contract import Contract, read

from .contracts import NAMES, contract, in_one_order
from .launches import HostLaunches
from .test_self_check import changed

PREFILL, DECODE = "paged_attention_prefill", "paged_attention_decode"
NEEDED = ["gated_activation", DECODE, PREFILL, "qk_norm_rope", "rms_norm", "sample"]
LAYERS = 2
PROMPTS = [list(range(40, 52)), [7, 8, 9]]

Contracts = Callable[[str], Contract]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, models, tmp_path: Path):  # noqa: F811
    """Answers of a tiny model, by its references or by kernels with those texts."""
    monkeypatch.setenv("VLLM_METAL_USE_MLX", "1")
    monkeypatch.setenv("VLLM_METAL_CACHE_DIR", str(tmp_path))

    def answers(
        dtype: str,
        contracts: Contracts | None,
        prompts: list[list[int]] = PROMPTS,
        tokens: int = 4,
        model: str = "qwen3",
        rounds: int = 1,
        sampling: dict[str, Any] | None = None,
        **options: Any,
    ) -> tuple[list[Any], Counter[str]]:
        launches = HostLaunches()
        with monkeypatch.context() as patch:
            if contracts is not None:
                patch.setattr(vllm_metal.worker, "kernel_runner", lambda device: in_one_order)
                patch.setattr(vllm_metal.lowered, "run_island", launches)
                patch.setattr(
                    vllm_metal.runner,
                    "check_kernels",
                    lambda plan, run: usable.check_kernels(plan, run, contracts),
                )
            options = {"max_num_seqs": 4, "skip_tokenizer_init": True, **options}
            llm = LLM(model=models(model).name_or_path, dtype=dtype, **options)
            try:
                wanted = {"temperature": 0, "logprobs": 1} | (sampling or {})
                params = SamplingParams(max_tokens=tokens, detokenize=False, **wanted)
                given: Any = [{"prompt_token_ids": ids} for ids in prompts]
                for _ in range(rounds):
                    outputs = llm.generate(given, params, use_tqdm=False)
            finally:
                llm.llm_engine.engine_core.shutdown()
        return [output.outputs[0] for output in outputs], launches.counts

    return answers


def assert_same(found: list[Any], expected: list[Any]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert list(one.token_ids) == list(other.token_ids)
        assert one.cumulative_logprob == pytest.approx(other.cumulative_logprob, abs=1e-4)


def test_kernels_give_the_references_answers_and_a_wrong_one_is_left_out(serve, caplog) -> None:
    expected, none = serve("float32", None)
    assert not none
    found, launched = serve("float32", contract)
    assert_same(found, expected)
    assert launched["rms_norm"] > 0 and launched["gated_activation"] > 0
    # Each layer of each step that decodes; the prompts are one step.
    assert launched[DECODE] == LAYERS * 3
    assert launched[PREFILL] == LAYERS
    assert launched["qk_norm_rope"] == LAYERS * 4

    wrong = changed("gated_activation", "activate<FUNCTION>(gate) * up", "gate * up")
    found, launched = serve("float32", wrong)
    assert_same(found, expected)
    assert launched["rms_norm"] > 0 and launched["gated_activation"] == 0
    assert "gated_activation" in caplog.text and "its reference is: it differs" in caplog.text


def test_a_sum_and_its_layer_norm_are_one_launch(serve) -> None:
    expected, _ = serve("float32", None, model="gpt2")
    found, launched = serve("float32", contract, model="gpt2")
    assert_same(found, expected)
    # Of four steps: of the embeddings' sum, of each residual, and of the last one.
    assert launched["layer_norm"] == 4 * (2 * LAYERS + 1)


def test_a_long_context_is_split_and_joined(serve) -> None:
    prompt = [(7 * place + place // 50) % 256 for place in range(1030)]
    options: Any = {
        "prompts": [prompt, [5, 6, 7]],
        "tokens": 3,
        "hf_overrides": {"max_position_embeddings": 2048},
        "max_model_len": 1100,
    }
    expected, _ = serve("float32", None, **options)
    found, launched = serve("float32", contract, **options)
    assert_same(found, expected)
    # Two steps decode; the short request is split as the long one is.
    assert launched[DECODE] == LAYERS * 2
    assert launched["paged_attention_reduce"] == LAYERS * 2


def test_a_wrong_kernel_of_prompts_is_left_out(serve, caplog) -> None:
    expected, _ = serve("float32", None)
    wrong = changed(PREFILL, "key <= position", "key <= position + 1")
    found, launched = serve("float32", wrong)
    assert_same(found, expected)
    assert launched[PREFILL] == 0 and launched[DECODE] == LAYERS * 3
    assert PREFILL in caplog.text and "its reference is: it differs" in caplog.text


def words(count: int, seed: int) -> list[int]:
    return [(13 * place + seed * (place // 3 + 7)) % 250 for place in range(count)]


# What a step of prompts may be: pieces of prompts beside tokens that decode, rows behind a prefix
# that lies in the cache, a window.
STEPS: dict[str, dict[str, Any]] = {
    "ragged": {"prompts": [words(n, n) for n in (1, 16, 37, 2, 70)], "max_num_seqs": 5},
    "chunked": {
        "prompts": [words(90, 1), words(7, 2), words(45, 3)],
        "max_num_batched_tokens": 32,
        "tokens": 6,
    },
    "prefix": {
        "prompts": [words(48, 5) + words(n, n) for n in (3, 20, 9)],
        "rounds": 2,
        "enable_prefix_caching": True,
    },
    "window": {
        "model": "mistral",
        "prompts": [words(n, n) for n in (5, 40, 23)],
        "max_num_batched_tokens": 48,
    },
    "soft cap": {"model": "gemma2", "prompts": [words(n, n) for n in (5, 40)]},
}


@pytest.mark.parametrize("name", STEPS)
def test_prompts_are_read_from_the_cache_in_place(serve, name: str) -> None:
    expected, none = serve("float32", None, **STEPS[name])
    assert not none
    found, launched = serve("float32", contract, **STEPS[name])
    assert_same(found, expected)
    assert launched[PREFILL] >= LAYERS
    if name == "chunked":
        # Five pieces of 32 tokens at most hold the 142 of the prompts.
        assert launched[PREFILL] >= LAYERS * 5


@pytest.mark.parametrize("wanted", [{}, {"top_k": 20, "top_p": 0.9}, {"min_p": 0.02}], ids=str)
def test_tokens_are_drawn_by_the_kernel(serve, wanted: dict[str, Any]) -> None:
    """The kernel and its reference draw with the same random numbers."""
    options: Any = {
        "sampling": {"temperature": 1.2, "seed": 3, "logprobs": None} | wanted,
        "tokens": 8,
    }
    expected, _ = serve("float32", None, **options)
    found, launched = serve("float32", contract, **options)
    assert [answer.token_ids for answer in found] == [answer.token_ids for answer in expected]
    assert launched["sample"] == 8


def test_the_doctor_shows_the_verdicts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VLLM_METAL_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(doctor, "_COPY_BYTES", 1 << 20)
    config = str(write_config("llama", tmp_path))

    def table() -> dict[str, str]:
        doctor.main([config, "--json"])
        rows = json.loads(capsys.readouterr().out)["model"]["kernels"]
        return {row["kernel"].split()[0]: row["status"] for row in rows}

    assert table() == dict.fromkeys(NEEDED, usable.UNCHECKED)
    wrong = changed("rms_norm", "+ eps)", ")")
    check = usable.check_kernels
    monkeypatch.setattr(usable, "check_kernels", lambda plan, run: check(plan, in_one_order, wrong))
    assert table() == {**dict.fromkeys(NEEDED, "ok"), "rms_norm": "differs"}
    doctor.main([config])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "rms_norm" in line]
    assert "differs" in line


def test_the_native_module_holds_these_kernels() -> None:
    held = {name: read(*texts) for name, *texts in core.kernel_texts()}
    assert held == {name: contract(name) for name in NAMES}
