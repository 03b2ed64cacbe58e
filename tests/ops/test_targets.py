# SPDX-License-Identifier: Apache-2.0
"""Every ATen overload that is claimed, called by itself on MLX, against eager PyTorch."""

from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from ops import harness
from ops.calls import Arguments, calls_of, eager, lower_call, record
from vllm_metal._native import core
from vllm_metal.compile.graph import LoweredGraph

TARGETS = [
    target
    for target in core.claimed_targets()
    if target.startswith("aten.") and target != "aten.sym_size.int"  # a number, not a tensor
]

PLACES = {"aten.kthvalue.default", "aten.sort.default", "aten.topk.default"}
"""Their second result is places of elements: of equal ones any is right (see test_conformance)."""


@pytest.fixture(scope="module")
def recorded() -> dict[str, list[Arguments]]:
    return harness.in_a_thread(record)


@pytest.mark.parametrize("target", TARGETS)
def test_a_claimed_overload_is_right(target: str, recorded: dict[str, list[Arguments]]) -> None:
    right, refusals = 0, []
    for args, kwargs in calls_of(target, recorded):
        try:
            expected = eager(target, args, kwargs)
        except RuntimeError:  # arguments of the form that makes a new tensor
            continue
        if harness.is_outside((args, kwargs, expected)):
            continue
        try:
            lowered = _lower(target, args, kwargs)
        except ValueError as error:
            refusals.append(str(error))
            continue
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if _is_tensor(leaf)]
        found = lowered(*tensors)
        for want, got in zip(pytree.tree_leaves(expected)[: len(found)], found, strict=True):
            if _is_tensor(want):
                problem = harness.compare(want, got, meaningless="empty" in target)
                assert not problem, (problem, args, kwargs)
            else:
                assert want == got
        right += 1
    assert right, refusals or "no call of it is known: add one to ops/calls.py"


def _lower(target: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> LoweredGraph:
    """With all results, or with the first where the others are not lowered or not unique."""
    if target in PLACES:
        return lower_call(target, args, kwargs, results=1)
    try:
        return lower_call(target, args, kwargs)
    except ValueError as error:
        if "is not computed" not in str(error):
            raise
        return lower_call(target, args, kwargs, results=1)


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor)
