# SPDX-License-Identifier: Apache-2.0
"""What the lowering claims, and that docs/ops.md says so."""

import pytest
import torch

from ops import table
from vllm_metal._native import core
from vllm_metal.compile import lower_function


def _operator(target: str) -> object:
    namespace, name, overload = target.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), name), overload)


def test_every_claimed_aten_target_is_one_of_pytorch() -> None:
    for target in core.claimed_targets():
        if target.startswith("aten."):
            assert callable(_operator(target)), target


def test_the_table_lists_what_is_claimed() -> None:
    assert table.documented_claims() == core.claimed_targets(), "run `make ops`"


def test_the_table_lists_enough_entries_as_passing() -> None:
    assert len(table.passing()) >= 300


def test_an_argument_that_is_not_lowered_is_refused_with_its_place() -> None:
    reason = r"aten\.rrelu_with_noise\.default cannot be lowered: training, [a-z ]*\s+at rrelu"
    with pytest.raises(ValueError, match=reason):
        lower_function(
            lambda x: torch.nn.functional.rrelu(x, training=True),
            (torch.zeros(4),),
            refuse_fallback=True,
        )
