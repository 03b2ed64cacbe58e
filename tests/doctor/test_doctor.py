# SPDX-License-Identifier: Apache-2.0
"""`python -m vllm_metal.doctor`: what it says, as text and JSON, and its exit status."""

import json
from pathlib import Path
from typing import Any

import pytest
from capture.models import write_config

import vllm_metal.doctor as doctor

TITLES = ["machine", "versions", "memory", "measured", "settings"]


@pytest.fixture(autouse=True)
def small_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_COPY_BYTES", 1 << 20)
    monkeypatch.setattr(doctor, "_LAUNCHES", 16)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    status = doctor.main(list(arguments))
    return status, capsys.readouterr().out


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    status, text = run(capsys, *arguments, "--json")
    return status, json.loads(text)


def test_the_machine_is_described_and_measured(capsys: pytest.CaptureFixture[str]) -> None:
    status, found = report(capsys)
    assert status == doctor.OK
    assert found["versions"]["mlx"] == found["versions"]["built_against_mlx"]
    assert 0 < found["memory"]["limit_bytes"] < found["machine"]["total_bytes"]
    assert found["memory"]["copy_bytes_per_second"] > 1e6
    assert found["memory"]["launch_microseconds"] > 0
    assert "model" not in found


def test_what_a_model_needs_is_computed_from_its_config(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = str(write_config("llama", tmp_path))
    fields = json.loads(Path(config).read_text())
    status, found = report(capsys, config, "--dtype", "float32")
    needs = found["model"]
    head_size = fields["hidden_size"] // fields["num_attention_heads"]
    row = 2 * fields["num_key_value_heads"] * head_size * 4
    assert status == doctor.OK
    assert needs["architecture"] == "LlamaForCausalLM"
    assert needs["kv_bytes_per_1000_tokens"] == 1000 * row * fields["num_hidden_layers"]
    assert needs["weight_bytes"] > 4 * fields["vocab_size"] * fields["hidden_size"]
    assert needs["islands"] == []
    ceiling = found["memory"]["copy_bytes_per_second"] / needs["bytes_read_per_token"]
    assert needs["decode_ceiling_tokens_per_second"] == pytest.approx(ceiling)


def test_the_text_has_a_line_for_each_thing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_METAL_MEMORY_FRACTION", "0.5")
    status, text = run(capsys, str(write_config("llama", tmp_path)))
    titles = [line.split()[0] for line in text.splitlines() if not line.startswith(" ")]
    assert status == doctor.OK
    assert titles == [*TITLES, "model", "kernels"]
    assert "VLLM_METAL_MEMORY_FRACTION=0.5" in text


def test_a_model_that_does_not_fit_is_a_problem(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_METAL_MEMORY_FRACTION", "0.000001")
    status, text = run(capsys, str(write_config("llama", tmp_path)))
    assert status == doctor.PROBLEM
    assert "problem   the weights do not fit" in text


def test_a_model_that_cannot_be_read_is_a_problem_and_the_rest_is_there(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["NoSuchForCausalLM"]}')
    status, found = report(capsys, str(tmp_path))
    assert status == doctor.PROBLEM
    assert found["model"]["problem"]
    assert found["memory"]["copy_bytes_per_second"] > 0
