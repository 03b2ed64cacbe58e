# SPDX-License-Identifier: Apache-2.0
"""A served model whose plan's kernels run on the host executor: the launches that the runtime makes
give the reference's answers, and a wrong kernel is found, reported and left out."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from capture.models import write_config
from serving.conftest import models  # noqa: F401  (sets vLLM's environment; a fixture)
from vllm import LLM, SamplingParams

import vllm_metal.doctor as doctor
import vllm_metal.lowered
import vllm_metal.runner
import vllm_metal.worker
from vllm_metal._native import core
from vllm_metal.islands import run_island
from vllm_metal.kernels import usable
from vllm_metal.kernels.contract import Contract, read
from vllm_metal.kernels.tensor import Tensor

from .contracts import NAMES, contract, in_one_order
from .test_self_check import changed

PREFIX = "kernel."
NEEDED = ["gated_activation", "paged_attention_decode", "qk_norm_rope", "rms_norm"]
LAYERS = 2
PROMPTS = [list(range(40, 52)), [7, 8, 9]]

Contracts = Callable[[str], Contract]


def to_tensor(array: torch.Tensor) -> Tensor:
    if array.dtype == torch.bfloat16:
        return Tensor(array.view(torch.int16).numpy().view(np.uint16), "bfloat16")
    return Tensor(array.numpy(), str(array.dtype).removeprefix("torch."))


def to_torch(value: Tensor) -> torch.Tensor:
    array = torch.from_numpy(
        np.array(value.storage.view(np.int16) if value.dtype == "bfloat16" else value.storage)
    )
    return array.view(torch.bfloat16) if value.dtype == "bfloat16" else array


class HostLaunches:
    """Runs what the runtime launches, and counts it."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def __call__(self, target: str, arguments: str, operands: list[Any]) -> list[torch.Tensor]:
        if not target.startswith(PREFIX):
            return run_island(target, arguments, operands)
        kernel = contract(target.removeprefix(PREFIX))
        self.counts[kernel.name] += 1
        launch = json.loads(arguments)
        names = [item["name"] for item in kernel.inputs]
        tensors = (to_tensor(torch.from_dlpack(operand)) for operand in operands)
        inputs = dict(zip(names, tensors, strict=True))
        found = kernel.run(in_one_order, inputs, launch["sizes"], launch["dtypes"])
        return [to_torch(found[item["name"]]) for item in kernel.outputs]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, models, tmp_path: Path):  # noqa: F811
    """Answers of a tiny model, by its references or by kernels with those texts."""
    directory = models("qwen3").name_or_path
    monkeypatch.setenv("VLLM_METAL_USE_MLX", "1")
    monkeypatch.setenv("VLLM_METAL_CACHE_DIR", str(tmp_path))

    def answers(
        dtype: str,
        contracts: Contracts | None,
        prompts: list[list[int]] = PROMPTS,
        tokens: int = 4,
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
            llm = LLM(model=directory, dtype=dtype, **options)
            try:
                params = SamplingParams(
                    temperature=0, max_tokens=tokens, logprobs=1, detokenize=False
                )
                given: Any = [{"prompt_token_ids": ids} for ids in prompts]
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
    assert launched["paged_attention_decode"] == LAYERS * 3
    assert launched["qk_norm_rope"] == LAYERS * 4

    wrong = changed("gated_activation", "activate<FUNCTION>(gate) * up", "gate * up")
    found, launched = serve("float32", wrong)
    assert_same(found, expected)
    assert launched["rms_norm"] > 0 and launched["gated_activation"] == 0
    assert "gated_activation" in caplog.text and "its reference is: it differs" in caplog.text


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
    assert launched["paged_attention_decode"] == LAYERS * 2
    assert launched["paged_attention_reduce"] == LAYERS * 2


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
