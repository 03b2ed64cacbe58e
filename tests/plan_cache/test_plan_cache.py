# SPDX-License-Identifier: Apache-2.0
"""Hits give what capture gave; everything that could give another plan is a miss."""

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import vllm_metal.lowered
from vllm_metal._native import core
from vllm_metal.lower import main
from vllm_metal.lowered import Lowering, lower
from vllm_metal.plan_cache import PlanCache, plan_key
from vllm_metal.plan_cache import key as key_module

DEMO_MODEL = Path(__file__).parents[2] / "python/vllm_metal/demo_model"

Build = Callable[..., Any]


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """What our logger warns of; vLLM's loggers do not propagate to pytest's."""
    texts: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: texts.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("vllm.metal")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)  # whatever an earlier test of this process asked vLLM for
    yield texts
    logger.setLevel(level)
    logger.removeHandler(handler)


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A line for each capture."""
    lines: list[str] = []
    original = vllm_metal.lowered.capture

    def counted(model: nn.Module, *args: Any, **options: Any) -> Any:
        lines.append(type(model).__name__)
        return original(model, *args, **options)

    monkeypatch.setattr(vllm_metal.lowered, "capture", counted)
    return lines


def state(lowering: Lowering) -> str:
    return lowering.report["plan_cache"]["state"]


def entry(cache: PlanCache) -> Path:
    (path,) = cache.folder.glob("*/entry.plan")
    return path


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "bloom"])
def test_a_hit_gives_what_capture_gave(
    build: Build, cache: PlanCache, captures: list[str], name: str
) -> None:
    first = lower(*build(name), cache=cache)
    again = lower(*build(name), cache=cache)
    assert (state(first), state(again), len(captures)) == ("miss", "hit", 1)
    assert again.plan.to_bytes() == first.plan.to_bytes()
    assert (again.aliases, again.layers) == (first.aliases, first.layers)
    assert again.report["plan_sha256"] == first.report["plan_sha256"] == again.plan.sha256
    assert again.buffers.keys() == first.buffers.keys()
    for path, tensor in first.buffers.items():
        if isinstance(again.buffers[path], torch.Tensor):
            torch.testing.assert_close(again.buffers[path], tensor, rtol=0, atol=0)


def test_stages_are_shown_on_a_hit(build: Build, cache: PlanCache, captures: list[str]) -> None:
    first = lower(*build("llama"), cache=cache)
    again = lower(*build("llama"), cache=cache, with_stages=True)
    assert (state(again), len(captures)) == ("hit", 1)
    for stage in ("captured", "imported", "fused", "plan"):
        assert again.plan.dump(stage) == first.plan.dump(stage)


def test_the_factors_stand_beside_the_entry(build: Build, cache: PlanCache) -> None:
    model, vllm_config = build("llama")
    lower(model, vllm_config, cache=cache)
    factors = json.loads((entry(cache).parent / "factors.json").read_text())
    assert factors == json.loads(json.dumps(plan_key(model, vllm_config, "whole").factors))
    assert factors["config"]["model_config"]["hf_config"]["num_hidden_layers"] == 2
    assert any(file.endswith("models/llama.py") for file in factors["sources"])


class Doubled(nn.Module):
    """Uses a tensor that it makes in its forward pass, one that is an attribute, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4), requires_grad=False)
        self.register_buffer("table", torch.arange(128.0 * 4).view(128, 4), persistent=False)
        self.scales = [torch.tensor([1.0, 2.0, 3.0, 4.0])]
        self.factor = 2.0

    def forward(self, input_ids: Any, positions: Any, **_: Any) -> torch.Tensor:
        offset = torch.tensor([0.5, 0.25, 0.125, 0.0625])
        rows = self.table[positions] * self.weight * self.scales[0]
        return rows * self.factor + offset + input_ids[:, None]


def test_tensors_come_from_the_model_or_from_the_entry(build: Build, cache: PlanCache) -> None:
    _, vllm_config = build("llama")
    vllm_config.compilation_config.static_forward_context.clear()
    first = lower(Doubled(), vllm_config, cache=cache)
    model = Doubled()
    model.table.mul_(3)
    again = lower(model, vllm_config, cache=cache)
    assert (state(first), state(again)) == ("miss", "hit")
    manifest = json.loads(core.PlanFile(entry(cache)).text("manifest"))
    places = sorted(map(str, manifest["buffers"].values()))
    assert places == ["file", "model", "{'attribute': 'scales.0'}"]
    assert again.buffers["table"].data_ptr() == model.table.data_ptr()


def change_number(model: nn.Module, vllm_config: Any) -> None:
    model.model.layers[1].input_layernorm.variance_epsilon = 0.5


def change_small_tensor(model: nn.Module, vllm_config: Any) -> None:
    model.model.layers[0].slopes = torch.tensor([1.0])


def change_function(model: nn.Module, vllm_config: Any) -> None:
    model.model.layers[0].mlp.act_fn._forward_method = torch.relu


def change_setting(model: nn.Module, vllm_config: Any) -> None:
    vllm_config.scheduler_config.max_num_batched_tokens += 1


def change_configuration(model: nn.Module, vllm_config: Any) -> None:
    vllm_config.model_config.hf_config.unknown_key = "x"


def change_shape(model: nn.Module, vllm_config: Any) -> None:
    model.lm_head.weight = nn.Parameter(torch.empty(320, 64, device="meta"))


@pytest.mark.parametrize(
    "change",
    [
        change_number,
        change_small_tensor,
        change_function,
        change_setting,
        change_configuration,
        change_shape,
    ],
)
def test_what_the_model_or_its_settings_hold_is_in_the_key(
    build: Build, change: Callable[[nn.Module, Any], None]
) -> None:
    model, vllm_config = build("llama")
    before = plan_key(model, vllm_config, "whole").text
    assert plan_key(model, vllm_config, "whole").text == before
    assert plan_key(model, vllm_config, "decomposed").text != before
    change(model, vllm_config)
    assert plan_key(model, vllm_config, "whole").text != before


@pytest.mark.parametrize("variable", ["VLLM_METAL_FALLBACK=error", "VLLM_USE_DEEP_GEMM=0"])
def test_the_environment_is_in_the_key(
    build: Build, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    model, vllm_config = build("llama")
    before = plan_key(model, vllm_config, "whole").text
    monkeypatch.setenv(*variable.split("="))
    assert plan_key(model, vllm_config, "whole").text != before


def test_code_versions_and_rules_are_in_the_key(
    build: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, vllm_config = build("llama")
    keys = {plan_key(model, vllm_config, "whole").text}

    # The file of the model's class, as a checkpoint's own code is edited between two runs.
    source = tmp_path / "own_model.py"
    shutil.copy(sys.modules[type(model).__module__].__file__, source)
    module = type(sys)("own_model")
    module.__file__ = str(source)
    monkeypatch.setitem(sys.modules, "own_model", module)
    model.__class__ = type("Own", (type(model),), {"__module__": "own_model"})
    keys.add(plan_key(model, vllm_config, "whole").text)
    source.write_text(source.read_text() + "\n# edited\n")
    keys.add(plan_key(model, vllm_config, "whole").text)

    class Other:
        LOWERING_SHA256 = "0" * 64
        MLX_VERSION = "0"

    monkeypatch.setattr(key_module, "core", Other)
    keys.add(plan_key(model, vllm_config, "whole").text)
    monkeypatch.setattr(key_module, "_versions", lambda: {"torch": "9"})
    keys.add(plan_key(model, vllm_config, "whole").text)
    assert len(keys) == 5


@pytest.mark.parametrize("damage", ["truncated", "changed", "emptied", "foreign", "other"])
def test_a_damaged_entry_is_built_again_and_said_so(
    build: Build, cache: PlanCache, warnings: list[str], damage: str
) -> None:
    first = lower(*build("llama"), cache=cache)
    path = entry(cache)
    content = path.read_bytes()
    match damage:
        case "truncated":
            path.write_bytes(content[:-1])
        case "changed":
            position = content.index(b'"vllm-metal/plan"')
            path.write_bytes(content[:position] + b"#" + content[position + 1 :])
        case "emptied":
            path.write_bytes(b"")
        case "foreign":
            shutil.copy(DEMO_MODEL / "model.safetensors", path)
        case "other":
            lower(*build("qwen2"), cache=cache)
            (other,) = (p for p in cache.folder.glob("*/entry.plan") if p != path)
            shutil.copy(other, path)
    again = lower(*build("llama"), cache=cache)
    assert state(again) == "miss"
    assert [text for text in warnings if "is built again" in text and str(path.parent) in text]
    assert len(warnings) == 1
    assert again.plan.to_bytes() == first.plan.to_bytes()
    assert state(lower(*build("llama"), cache=cache)) == "hit"


def test_a_cache_that_cannot_be_written_is_one_warning(
    build: Build, tmp_path: Path, warnings: list[str]
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    lowering = lower(*build("llama"), cache=PlanCache(blocked / "plans"))
    assert state(lowering) == "miss"
    assert len(warnings) == 1
    assert "can't write" in warnings[0] and "VLLM_METAL_CACHE_DIR" in warnings[0]


def test_another_process_finds_the_same_entry(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VLLM_METAL_CACHE_DIR", str(tmp_path))
    arguments = [str(DEMO_MODEL), "--format", "json"]
    assert main(arguments) == 0
    first = json.loads(capsys.readouterr().out)
    command = [sys.executable, "-m", "vllm_metal.lower", *arguments]
    again = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    assert (first["plan_cache"]["state"], again["plan_cache"]["state"]) == ("miss", "hit")
    assert first["plan_cache"]["path"] == again["plan_cache"]["path"]
    assert first["plan_sha256"] == again["plan_sha256"]
    assert main([*arguments, "--no-cache"]) == 0
    assert json.loads(capsys.readouterr().out)["plan_cache"] == {"state": "off"}


WRITER = """
import sys
from vllm_metal._native import core
path, mark = sys.argv[1:]
plan = core.PlanFile(path).plan()
for _ in range(200):
    core.PlanFile.write(path, plan, {"mark": mark.encode() * 1000}, {})
    assert set(bytes(core.PlanFile(path).text("mark"))) in ({ord("a")}, {ord("b")})
"""


def test_two_processes_at_once_do_not_harm_each_other(
    build: Build, cache: PlanCache, tmp_path: Path
) -> None:
    lowering = lower(*build("llama"))
    path = tmp_path / "entry.plan"
    core.PlanFile.write(path, lowering.plan, {"mark": b"a"}, {})
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), mark]) for mark in ("a", "b")
    ]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert core.PlanFile(path).plan().sha256 == lowering.plan.sha256
    assert [path.name for path in tmp_path.glob("entry*")] == ["entry.plan"]


def test_it_can_be_turned_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VLLM_METAL_CACHE_DIR", str(tmp_path))
    configured = PlanCache.configured()
    assert configured is not None and configured.folder == tmp_path / "plans"
    monkeypatch.setenv("VLLM_METAL_DISABLE_CACHE", "1")
    assert PlanCache.configured() is None
    monkeypatch.setenv("VLLM_METAL_DISABLE_CACHE", "yes")
    with pytest.raises(ValueError, match="VLLM_METAL_DISABLE_CACHE='yes': expected 0 or 1"):
        PlanCache.configured()
