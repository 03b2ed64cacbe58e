# SPDX-License-Identifier: Apache-2.0
"""`lower --output model.plan` and the Rust program that runs what it writes."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from serving import checkpoints
from transformers import MixtralConfig, MixtralForCausalLM

from vllm_metal import plan_file
from vllm_metal._native import core
from vllm_metal.lower import EQUAL, FAILED, main

ROOT = Path(__file__).resolve().parents[2]
DEMO_MODEL = ROOT / "python/vllm_metal/demo_model"
STORED = json.loads((ROOT / "tests/data/demo_prompts.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def generate() -> Path:
    """The program, as `cargo test` has built it."""
    command = ["cargo", "build", "--workspace", "--no-default-features", "--example", "generate"]
    subprocess.run([*command, "--quiet"], cwd=ROOT, check=True)
    return ROOT / "target/debug/examples/generate"


@pytest.fixture(scope="module")
def demo_plan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("demo") / "model.plan"
    assert main([str(DEMO_MODEL), "--dtype", STORED["dtype"], "--output", str(path)]) == EQUAL
    yield path


def run(program: Path, plan: Path, weights: Path, *arguments: str) -> Any:
    command = [program, "--plan", plan, "--weights", weights, "--device", "cpu", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def one_turn() -> list[dict[str, Any]]:
    """The stored prompts that are a text, or one message of a chat."""
    chosen = [p for p in STORED["prompts"] if isinstance(p["prompt"], str) or len(p["prompt"]) == 1]
    assert {p["kind"] for p in chosen} == {"completion", "chat"}
    return chosen


def test_the_rust_program_generates_the_stored_greedy_texts(
    generate: Path, demo_plan: Path
) -> None:
    for stored in one_turn():
        arguments = ["--max-tokens", str(stored["max_tokens"]), "--prompt"]
        if stored["kind"] == "chat":
            arguments += [stored["prompt"][0]["content"], "--chat"]
        else:
            arguments.append(stored["prompt"])
        result = run(generate, demo_plan, DEMO_MODEL, *arguments, "--json")
        assert result.returncode == 0, result.stderr
        found = json.loads(result.stdout)
        assert found["prompt_token_ids"] == stored["prompt_token_ids"]
        assert found["token_ids"] == stored["token_ids"]
        assert found["text"] == stored["text"]
        assert found["finish_reason"] == stored["finish_reason"]


def test_it_prints_the_text_and_on_request_what_it_took(generate: Path, demo_plan: Path) -> None:
    stored = STORED["prompts"][0]
    result = run(generate, demo_plan, DEMO_MODEL, "--prompt", stored["prompt"], "--stats",
                 "--max-tokens", str(stored["max_tokens"]))  # fmt: skip
    assert result.stdout == stored["text"] + "\n"
    assert "decode 48 tokens" in result.stderr and "peak memory" in result.stderr


def test_it_needs_neither_python_nor_torch(generate: Path) -> None:
    libraries = subprocess.run(["ldd", generate], capture_output=True, text=True).stdout
    assert "libmlx" in libraries
    assert "python" not in libraries.replace("/python", "") and "torch" not in libraries


@pytest.mark.parametrize("damage", ["truncated", "foreign", "other weights", "no weights", "cut"])
def test_what_does_not_fit_is_said_in_a_line(
    generate: Path, demo_plan: Path, tmp_path: Path, damage: str
) -> None:
    weights, plan = tmp_path / "weights", tmp_path / "model.plan"
    shutil.copytree(DEMO_MODEL, weights)
    shutil.copy(demo_plan, plan)
    file = weights / "model.safetensors"
    match damage:
        case "truncated":
            plan.write_bytes(plan.read_bytes()[:-100])
            expected = f"plan file {plan}: it is truncated"
        case "foreign":
            shutil.copy(file, plan)
            expected = f"plan file {plan}: it is a safetensors file without a plan"
        case "other weights":
            tensors = load_file(file)
            tensors["model.norm.weight"] = torch.ones(64, dtype=torch.bfloat16)
            save_file(tensors, file)
            expected = "these are not its weights"
        case "no weights":
            file.unlink()
            expected = "there is no safetensors file"
        case _:
            tensors = load_file(file)
            del tensors["model.norm.weight"]
            save_file(tensors, file)
            expected = 'parameter "model.norm.weight"'
    result = run(generate, plan, weights, "--prompt", "Return the")
    assert result.returncode == 1
    assert result.stderr.startswith("error: ") and len(result.stderr.splitlines()) == 1
    assert expected in result.stderr


def mixtral(folder: Path) -> None:
    shape = {**checkpoints._SHAPE, "num_local_experts": 4, "num_experts_per_tok": 2}
    torch.manual_seed(0)
    MixtralForCausalLM(MixtralConfig(**shape)).float().save_pretrained(folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "phi3", "gemma3", "mixtral"])
def test_every_weight_has_a_recipe(tmp_path: Path, name: str, dtype: str) -> None:
    """Fused, tied, stacked and cast weights have one; the file holds tables such as RoPE's."""
    weights, plan = tmp_path / name, tmp_path / "model.plan"
    if name == "mixtral":
        mixtral(weights)
    else:
        checkpoints.build(name, weights)
    assert main([str(weights), "--dtype", dtype, "--format", "plan", "--output", str(plan)]) == 0
    file = core.PlanFile(plan)
    recipe = json.loads(file.text("recipe"))
    required = file.plan().parameters
    stored = [path for path in required if path not in recipe["parameters"]]
    assert not [path for path in stored if path.endswith(("weight", "bias"))]
    assert set(recipe["sources"]) <= set(load_file(weights / "model.safetensors"))
    assert plan.stat().st_size < 400_000


def test_the_same_model_gives_the_same_file(demo_plan: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.plan"
    arguments = [str(DEMO_MODEL), "--dtype", STORED["dtype"], "--output", str(again)]
    assert main([*arguments, "--no-cache"]) == EQUAL
    assert again.read_bytes() == demo_plan.read_bytes()


def test_what_is_neither_in_the_checkpoint_nor_small_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plan_file, "MAX_STORED_BYTES", 1000)
    status = None
    with pytest.raises(SystemExit) as exit:
        status = main([str(DEMO_MODEL), "--output", str(tmp_path / "model.plan")])
    assert status is None and exit.value.code == FAILED
    error = capsys.readouterr().err
    assert "rotary_emb" in error and "vllm serve" in error
    assert not list(tmp_path.iterdir())


def test_a_bare_config_has_no_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(DEMO_MODEL / "config.json", tmp_path)
    with pytest.raises(SystemExit) as exit:
        main([str(tmp_path), "--output", str(tmp_path / "model.plan")])
    assert exit.value.code == FAILED
    assert "how vLLM loads a checkpoint in safetensors" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--format", "plan"])
    assert "--format plan needs --output FILE" in capsys.readouterr().err
