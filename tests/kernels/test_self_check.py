# SPDX-License-Identifier: Apache-2.0
"""The self-check, on the host executor instead of Metal: right kernels pass, wrong ones are found,
and verdicts are kept as long as what they depend on."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from vllm_metal.kernels.attention import DECODE, PREFILL
from vllm_metal.kernels.contract import Contract
from vllm_metal.kernels.self_check import (
    DIFFERS,
    FAILS,
    OK,
    Specialisation,
    Verdicts,
    try_out,
)

from .contracts import contract, in_one_order

ATTENTION = {
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_size": 64,
    "head_size_v": 64,
    "group": 2,
    "block_size": 16,
    "window": 0,
    "has_soft_cap": 0,
    "has_sinks": 0,
    "has_alibi": 0,
}
NEEDED = [
    Specialisation.of(DECODE, {**ATTENTION, "rows": 1, "splits": 1}, {"T": "float16"}),
    Specialisation.of(DECODE, {**ATTENTION, "rows": 4, "splits": 2}, {"T": "float32"}),
    # As plans choose it: block size and splits are the step's.
    Specialisation.of(
        DECODE,
        {**{name: ATTENTION[name] for name in ATTENTION if name != "block_size"}, "rows": 1},
        {"T": "bfloat16", "O": "bfloat16"},
    ),
    Specialisation.of(PREFILL, ATTENTION, {"T": "bfloat16"}),
    Specialisation.of(
        "rms_norm",
        {"width": 200, "has_residual": 1, "rounded_sum": 0, "has_weight": 1},
        {"T": "bfloat16", "W": "bfloat16"},
    ),
    Specialisation.of(
        "layer_norm",
        {"width": 64, "has_residual": 0, "rounded_sum": 1, "has_weight": 1, "has_bias": 1},
        {"T": "float32", "W": "float32"},
    ),
    Specialisation.of(
        "qk_norm_rope",
        {
            "num_heads": 4,
            "num_kv_heads": 2,
            "head_size": 64,
            "head_size_v": 64,
            "rotary_dim": 64,
            "style": 0,
            "has_norm": 1,
        },
        {"T": "bfloat16", "W": "bfloat16", "C": "float32"},
    ),
    Specialisation.of("gated_activation", {"width": 100, "function": 0}, {"T": "float16"}),
    Specialisation.of("soft_cap", {"width": 100}, {"T": "bfloat16"}),
    Specialisation.of("sample", {"vocab_size": 300}, {"T": "float32"}),
    # As plans choose it: the block size is the step's.
    Specialisation.of(
        PREFILL,
        {**{name: ATTENTION[name] for name in ATTENTION if name != "block_size"}, "window": 20},
        {"T": "float16"},
    ),
]


def changed(kernel: str, old: str, new: str) -> Callable[[str], Contract]:
    """The kernels, one of them with another body."""

    def contracts(name: str) -> Contract:
        right = contract(name)
        if name != kernel:
            return right
        assert old in right.body
        return replace(right, body=right.body.replace(old, new))

    return contracts


@pytest.mark.parametrize("needed", NEEDED, ids=str)
def test_right_kernels_pass(needed: Specialisation) -> None:
    verdict = try_out(needed, in_one_order, contract)
    assert verdict.status == OK, verdict.reason


@pytest.mark.parametrize(
    ("index", "old", "new", "status"),
    [
        # One key too many, a scale that is wrong, and so on.
        (1, "key <= position", "key <= position + 1", DIFFERS),
        (0, "? float(q[", "? 2.0f * float(q[", DIFFERS),
        (4, "+ eps)", ")", DIFFERS),
        (6, "x * c - y * s", "x * c + y * s", DIFFERS),
        (7, "activate<FUNCTION>(gate) * up", "activate<FUNCTION>(up) * gate", DIFFERS),
        (8, "cap * precise::tanh", "precise::tanh", DIFFERS),
        (9, ">= limit", "> limit", DIFFERS),
        (9, "words[e] >> 9", "words[0] >> 9", DIFFERS),
        (10, "position - key < WINDOW", "position - key <= WINDOW", DIFFERS),
        (10, "rows - 1, (first_vector + 7)", "rows - 1, first_vector", DIFFERS),
        # What Metal's compiler would refuse, and what would read foreign memory.
        (7, "const float gate", "const flaot gate", FAILS),
        (7, "i * x_strides[1]]", "(i + 100000) * x_strides[1]]", FAILS),
    ],
)
def test_a_wrong_kernel_is_found(index: int, old: str, new: str, status: str) -> None:
    needed = NEEDED[index]
    verdict = try_out(needed, in_one_order, changed(needed.kernel, old, new))
    assert verdict.status == status
    assert verdict.reason


class Counted:
    """Counts the kernels that run."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, *arguments):
        self.runs += 1
        return in_one_order(*arguments)


def test_verdicts_are_kept_until_what_they_depend_on_changes(tmp_path: Path, caplog) -> None:
    path, run, needed = tmp_path / "deep" / "verdicts.json", Counted(), NEEDED[7:8]
    assert [v.status for v in Verdicts(path, "chip A").check(needed, run, contract)] == [OK]
    first = run.runs
    assert first > 0
    assert [v.status for v in Verdicts(path, "chip A").check(needed, run, contract)] == [OK]
    assert run.runs == first

    wrong = changed("gated_activation", "activate<FUNCTION>(gate)", "gate")
    (verdict,) = Verdicts(path, "chip A").check(needed, run, wrong)
    assert verdict.status == DIFFERS and not verdict.usable
    assert "gated_activation (float16; function 0, width 100) is not used" in caplog.text
    second = run.runs
    assert second > first
    # Another machine asks again, and the bad verdict is remembered too.
    Verdicts(path, "chip B").check(needed, run, contract)
    assert run.runs > second
    third = run.runs
    assert Verdicts(path, "chip A").check(needed, run, wrong)[0].status == DIFFERS
    assert run.runs == third


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}', json.dumps({"a": {"b": 1}})])
def test_a_damaged_file_counts_as_empty(tmp_path: Path, content: str) -> None:
    path = tmp_path / "verdicts.json"
    path.write_text(content)
    assert Verdicts(path, "chip").check(NEEDED[7:8], in_one_order, contract)[0].status == OK
    assert len(json.loads(path.read_text())) == 1


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path, caplog) -> None:
    (tmp_path / "file").write_text("")
    verdicts = Verdicts(tmp_path / "file" / "verdicts.json", "chip")
    assert verdicts.check(NEEDED[7:8], in_one_order, contract)[0].status == OK
    assert "cannot be kept" in caplog.text
