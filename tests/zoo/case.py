# SPDX-License-Identifier: Apache-2.0
"""One architecture, from its configuration class to a verdict. Runs in a process of its own."""

import contextlib
import json
import os
import time
import traceback
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOLERANCE = 2e-4
"""Largest difference of a top-10 log-probability in float32."""


CHANGED = "reference changed"
"""Begins the reason of a row whose reference is not quite Hugging Face's."""
TIE = 1e-3
"""Tokens whose log-probabilities are this near may change places."""
ENGINE = {
    "dtype": "float32",
    "max_model_len": 128,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 64,
    "num_gpu_blocks_override": 256,
    "skip_tokenizer_init": True,
    "language_model_only": True,
}
"""Arguments of vLLM's `LLM`. A step takes fewer tokens than the prompts have, so one is cut; models
of text and images are asked for text, without which they insist on a processor of images."""

POOLING = {
    "runner": "pooling",
    "max_num_batched_tokens": ENGINE["max_model_len"],
    "skip_tokenizer_init": False,
}
"""And of models that pool: encoders take a prompt whole, and vLLM insists on a tokenizer."""


class Part(StrEnum):
    """A part of the table: who knows the architecture. Models of the first three generate text."""

    BOTH = "both"
    VLLM = "vllm"
    TRANSFORMERS = "transformers"
    POOLED = "pooled"


@dataclass(frozen=True)
class Case:
    """An architecture, by the name that vLLM or Hugging Face knows it by."""

    architecture: str
    part: Part = Part.BOTH


@dataclass
class Outcome:
    """A row of the coverage table. `result`: `passed`, `as vLLM` where vLLM's own model differs
    from Hugging Face's and the lowered one is vLLM's, or the stage that failed."""

    case: Case
    result: str = "failed to build"
    reason: str = ""
    kinds: str = ""
    largest_difference: float | None = None
    islands: list[str] = field(default_factory=list)
    seconds: float = 0.0
    detail: str = ""
    answers: list[list[dict[int, float]]] = field(default_factory=list)
    """Log-probabilities by prompt, step and token."""
    tolerance: float = TOLERANCE

    @property
    def passed(self) -> bool:
        return self.result == "passed"

    def apart_from(self, other: "Outcome") -> float:
        """Largest difference of the log-probabilities that both gave, up to the first step at which
        their tokens part; infinite where that is no tie."""
        largest = 0.0 if self.answers else float("inf")
        for mine, theirs in zip(self.answers, other.answers, strict=False):
            for step, other_step in zip(mine, theirs, strict=False):
                common = step.keys() & other_step.keys()
                apart = max(abs(step[t] - other_step[t]) for t in common) if common else 0.0
                if apart != apart:  # a NaN must not get lost in `max`
                    return float("inf")
                largest = max(largest, apart)
                best = max(step, key=step.__getitem__)
                gap = max(other_step.values()) - other_step.get(best, -float("inf"))
                if gap > TIE:
                    return float("inf")
                if gap > 0:
                    break
        return largest

    def asdict(self) -> dict[str, Any]:
        """What is written to the JSON file."""
        row = asdict(self.case) | asdict(self)
        return {key: row[key] for key in row if key not in ("case", "answers", "tolerance")}

    @staticmethod
    def fromdict(row: dict[str, Any]) -> "Outcome":
        """What `asdict` wrote, without the answers."""
        case = Case(row.pop("architecture"), Part(row.pop("part")))
        return Outcome(case, **row)


def run(case: Case, directory: Path, added: list[str], torch: bool = False) -> Outcome:
    """Build, run and compare; a failure is an outcome, not an exception.

    `added` are names of keys for vLLM's `config.json`; `torch` runs vLLM's PyTorch model.
    """
    os.environ["VLLM_METAL_USE_MLX"] = "0" if torch else "1"
    outcome = Outcome(case)
    start = time.perf_counter()
    try:
        _run(directory, added, outcome)
    except BaseException as error:
        outcome.reason = _reason(error)
        outcome.detail += "".join(traceback.format_exception(error))[-6000:]
    outcome.seconds = time.perf_counter() - start
    return outcome


def prepare(
    case: Case, directory: Path, added: list[str]
) -> tuple["PreTrainedModel | None", dict[str, Any], str]:
    """Write the checkpoint: Hugging Face's model of it where there is one, arguments for `LLM`, and
    in what its reference was changed.

    Raises what building the model raises.
    """
    from serving.checkpoints import tokenizer

    from zoo import checkpoint, differences, pooled, synthetic
    from zoo.compare import LENGTHS, sees_whole_prompt

    if case.part == Part.VLLM:
        from vllm.model_executor.model_loader import dummy_loader

        synthetic.write_config(case.architecture, directory, added)
        loader = dummy_loader.DummyModelLoader
        loader.load_weights = synthetic.load  # type: ignore[method-assign]
        return None, ENGINE | {"load_format": "dummy"}, ""
    model = checkpoint.build(case.architecture, directory)
    changed = differences.adjust(model, case.architecture)
    checkpoint.answer(model)  # Hugging Face's model itself must run
    _add_keys(directory / "config.json", added)
    options = ENGINE
    if case.part == Part.POOLED:
        options = ENGINE | POOLING | {"pooler_config": {"task": pooled.task(case.architecture)}}
        tokenizer().save_pretrained(directory)
    if sees_whole_prompt(model.config):
        options = options | {"max_num_batched_tokens": max(LENGTHS)}
    return model, options, changed


def _run(directory: Path, added: list[str], outcome: Outcome) -> None:
    from zoo import compare, pooled
    from zoo.sizes import seed

    model, options, outcome.reason = prepare(outcome.case, directory, added)
    outcome.result = "failed to load"
    if seed():
        _fill_with_zeros()
        outcome.detail = (directory / "config.json").read_text()
    from vllm import LLM

    llm = LLM(model=str(directory), **options)
    _describe(llm, outcome)
    outcome.result = "failed to run"
    pools = (case := outcome.case).part == Part.POOLED
    answers = pooled.ask(llm, pooled.task(case.architecture)) if pools else compare.ask(llm)
    outcome.answers = [answer.logprobs for answer in answers]
    if not any(max(step.values()) > min(step.values()) for of in outcome.answers for step in of):
        # Equal answers of this would prove nothing.
        outcome.reason = "every token is equally likely: vLLM loads no weights that tell them apart"
        return
    if model is None:
        outcome.result = "ran"
        return
    for module in model.modules():
        module.do_not_compile = True  # vLLM may have made a class that it compiles of this one's
    comparison = (pooled if pools else compare).compare(model, answers)
    outcome.largest_difference = comparison.largest_difference
    outcome.result = "passed" if comparison.equal else "differs"
    if comparison.different_tokens:
        wrong = f"{comparison.different_tokens} greedy tokens are not Hugging Face's"
        outcome.reason = "; ".join(filter(None, [outcome.reason, wrong]))


def _fill_with_zeros() -> None:
    """What no checkpoint of a drawn configuration has, and vLLM leaves as it finds it, shall be the
    same in both of its models."""
    import torch

    empty = torch.empty
    torch.empty = lambda *sizes, **named: empty(*sizes, **named).zero_()


def _add_keys(path: Path, added: list[str]) -> None:
    """Write keys that vLLM found missing. A key whose value is not known stays missing."""
    from safetensors import safe_open

    from zoo import keys

    config = json.loads(path.read_text())
    if "topk_method" not in config:
        config.setdefault("scoring_func", "sigmoid")  # goes with `noaux_tc`
    with safe_open(path.with_name("model.safetensors"), "np") as checkpoint:
        tensors = " ".join(checkpoint.keys())
    missing = {key for key, part in keys.WITH_TENSORS.items() if part not in tensors}
    config = {key: keys.ALWAYS[key] for key in keys.ALWAYS.keys() - missing} | config
    for known, implied in keys.IMPLIED.items():
        config = (implied(config) if known in config else {}) | config
    for name in [key for one in added for key in (one, *keys.TOGETHER.get(one, ()))]:
        with contextlib.suppress(KeyError):
            config.setdefault(name, keys.value(name, config))
    path.write_text(json.dumps(config))
    generation = {name: config[name] for name in keys.GENERATION if name in config}
    if generation:
        path.with_name("generation_config.json").write_text(json.dumps(generation))


def _describe(llm: Any, outcome: Outcome) -> None:
    runner = llm.llm_engine.model_executor.driver_worker.model_runner
    lowered = getattr(runner, "lowered", None)
    if lowered is not None:
        outcome.islands = [island["target"] for island in lowered.report["fallback"]]
        outcome.kinds = describe_layers(lowered.layers)


_TRAITS = {
    "sliding_window": "window",
    "logits_soft_cap": "soft cap",
    "alibi_slopes": "alibi",
    "sinks": "sinks",
    "kv_sharing_target": "shared KV",
    "sparse": "selected keys",
}


def describe_layers(layers: dict[str, dict[str, Any]]) -> str:
    """Kinds of attention and state of a captured model, such as `attention (sinks, window)`."""
    kinds: dict[str, set[str]] = {}
    for layer in layers.values():
        if layer["kind"] == "index":  # told of where it is attended by
            continue
        traits = kinds.setdefault(layer["kind"], set())
        traits.update(trait for key, trait in _TRAITS.items() if layer.get(key))
    return "; ".join(
        f"{kind} ({', '.join(sorted(traits))})" if traits else kind
        for kind, traits in sorted(kinds.items())
    )


def _reason(error: BaseException) -> str:
    """The first line of the innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [""]
    # pydantic's first line only says that there are errors
    line = lines[1].strip() if "validation error" in lines[0] and len(lines) > 1 else lines[0]
    return f"{type(error).__name__}: {line}"[:300]


def set_environment() -> None:
    """Before vLLM is imported: no network, no second process, one thread."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
