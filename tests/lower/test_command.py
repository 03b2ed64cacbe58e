# SPDX-License-Identifier: Apache-2.0
"""`python -m vllm_metal.lower`: output, exit status and errors."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from capture.models import write_config

import vllm_metal.verify
from vllm_metal.lower import DIFFERENT, EQUAL, FAILED, FORMATS, STAGES, main

DEMO_MODEL = str(Path(vllm_metal.verify.__file__).parent / "demo_model")


@pytest.fixture
def config(tmp_path: Path) -> str:
    """A bare config.json: no tokenizer, no weights."""
    return str(write_config("llama", tmp_path))


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error."""
    try:
        status = main(list(arguments))
    except SystemExit as exit:
        status = int(exit.code or 0)
    output, error = capsys.readouterr()
    return status, output, error


def test_json_holds_the_whole_report(capsys: pytest.CaptureFixture[str], config: str) -> None:
    status, output, _ = run(capsys, config, "--format", "json", "--dtype", "float32", "--no-cache")
    report = json.loads(output)
    assert status == EQUAL
    assert report["architecture"] == "LlamaForCausalLM"
    assert report["fallback"] == []
    assert report["fused"] == {"attention": 2, "gated_mlp": 2, "rms_norm": 5, "rope": 2}
    assert set(report["timings_ms"]) == {"capture", "import", "rewrite", "plan"}
    assert set(report["regions"]) == {"total", "unique"}
    assert list(report["nodes"]) == ["captured", "imported", "fused", "plan"]
    assert report["nodes"]["captured"] > report["nodes"]["imported"] > report["nodes"]["plan"] > 0
    assert len(report["plan_sha256"]) == 64
    assert report["decode"]["launches"] > 2 * report["decode"]["launches_per_layer"]
    assert report["decode"]["bytes_read"] > report["decode"]["bytes_written"] > 0
    assert report["rules"]["rms_norm"]["applied"] > 0


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("format", FORMATS)
def test_every_stage_is_written_in_every_format(
    capsys: pytest.CaptureFixture[str], config: str, tmp_path: Path, stage: str, format: str
) -> None:
    file = tmp_path / "dump"
    status, output, _ = run(
        capsys, config, "--stage", stage, "--format", format, "--output", str(file)
    )
    text = file.read_text()
    assert (status, output) == (EQUAL, "")
    expected = {"captured": "silu", "imported": "silu", "fused": "gated_activation"}
    assert expected.get(stage, "attention {layer 1}") in text
    if format == "json":
        assert json.loads(text)["stage"] == stage
    elif format == "dot":
        assert text.startswith("digraph") and "->" in text and text.rstrip().endswith("}")


def test_the_capture_of_vllm_ir_does_not_change_the_plan(
    capsys: pytest.CaptureFixture[str], config: str
) -> None:
    hashes = set()
    for ir_ops in ("whole", "decomposed"):
        _, output, _ = run(capsys, config, "--format", "json", "--ir-ops", ir_ops)
        hashes.add(json.loads(output)["plan_sha256"])
    assert len(hashes) == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_demo_model_is_verified(capsys: pytest.CaptureFixture[str], dtype: str) -> None:
    status, output, _ = run(capsys, DEMO_MODEL, "--verify", "--dtype", dtype)
    assert (status, output.split(":")[0]) == (EQUAL, "equal")


@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral", "phi3", "gemma2", "gemma3_text"])
def test_models_without_weights_are_verified_on_random_ones(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    status, output, _ = run(
        capsys, str(write_config(name, tmp_path)), "--verify", "--dtype", "float32"
    )
    assert (status, output.split(":")[0]) == (EQUAL, "equal")


def test_a_wrong_plan_is_not_equal(
    capsys: pytest.CaptureFixture[str], config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lower = vllm_metal.verify.lower

    def wrong(model, vllm_config, **options):
        """The plan of the model with a scale that is off by a tenth."""
        for layer in vllm_config.compilation_config.static_forward_context.values():
            layer.impl.scale *= 1.1
        lowering = lower(model, vllm_config, **options)
        for layer in vllm_config.compilation_config.static_forward_context.values():
            layer.impl.scale /= 1.1
        return lowering

    monkeypatch.setattr(vllm_metal.verify, "lower", wrong)
    status, output, _ = run(capsys, config, "--verify", "--dtype", "float32")
    assert (status, output.split(":")[0]) == (DIFFERENT, "not equal")


def test_an_instruction_is_explained(capsys: pytest.CaptureFixture[str], config: str) -> None:
    status, dump, _ = run(capsys, config, "--ir-ops", "decomposed", "--format", "json")
    lines = [
        (listing["title"].split()[2], line)
        for listing in json.loads(dump)["graphs"]
        for line in listing["lines"]
        if line["op"].startswith("add_rms_norm")
    ]
    region, line = lines[0]
    assert len(line["consumed"]) > 5
    assert line["work"]["launches"] > 0
    name = f"{region}:{line['results'][0]}"
    status, output, _ = run(capsys, config, "--ir-ops", "decomposed", "--explain", name)
    assert status == EQUAL
    assert "by rms_norm (same rounding points)" in output
    assert "eps is a constant: ok" in output
    assert all(source["node"] in output for source in line["consumed"])
    assert "layernorm.py:" in output


def test_unknown_names_are_refused_with_near_ones(
    capsys: pytest.CaptureFixture[str], config: str
) -> None:
    status, _, error = run(capsys, config, "--explain-missing", "rms_nrom")
    assert status == FAILED
    assert "rms_norm" in error
    status, _, error = run(capsys, config, "--explain", "%99999")
    assert status == FAILED
    assert "near: %" in error


def test_near_misses_are_listed(capsys: pytest.CaptureFixture[str], config: str) -> None:
    status, output, _ = run(capsys, config, "--explain-missing", "rms_norm")
    assert status == EQUAL
    assert output.startswith("rms_norm (same rounding points)")
    assert "no near miss" in output


def test_plans_are_compared(
    capsys: pytest.CaptureFixture[str], config: str, tmp_path: Path
) -> None:
    status, output, _ = run(capsys, config, "--diff", config, "--diff-ir-ops", "decomposed")
    assert status == EQUAL
    assert "byte for byte" in output
    other = tmp_path / "other"
    other.mkdir()
    status, output, _ = run(capsys, config, "--diff", str(write_config("qwen3", other)))
    assert status == DIFFERENT
    assert "+++ Qwen3ForCausalLM" in output
    assert "rms_norm: 5 -> 9" in output


def test_progress_is_shown_when_asked_for(capsys: pytest.CaptureFixture[str], config: str) -> None:
    _, _, error = run(capsys, config, "--no-cache", "--progress")
    assert "capture" in error
    _, _, error = run(capsys, config, "--no-cache")
    assert "capture" not in error


def test_bad_arguments_and_models_exit_with_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(capsys, "--stage", "nonsense", "x")[0] == FAILED
    unknown = tmp_path / "config.json"
    unknown.write_text(json.dumps({"architectures": ["NoSuchModel"], "model_type": "nosuch"}))
    command = [sys.executable, "-m", "vllm_metal.lower", str(unknown)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (FAILED, "")
    assert "nosuch" in result.stderr
    assert "Traceback" not in result.stderr
