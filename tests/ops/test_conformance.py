# SPDX-License-Identifier: Apache-2.0
"""Every entry of PyTorch's operator database, lowered on MLX, against eager PyTorch.

What is claimed must be right: no entry may differ. What docs/ops.md lists as passing must pass. The
default run takes a few samples of each entry; the marker ``sweep`` takes all that `make ops` takes.
"""

from typing import Any

import pytest
import torch

from ops import harness, table

PASSING = table.passing()


@pytest.mark.parametrize("op", harness.entries(), ids=harness.name_of)
def test_an_entry_is_right_where_it_is_claimed(op: Any) -> None:
    for dtype in harness.dtypes(op):
        if dtype == torch.float32 or harness.chosen(op, dtype, share=4):
            _check(op, dtype, limit=2)


@pytest.mark.sweep
@pytest.mark.parametrize("op", harness.entries(), ids=harness.name_of)
def test_an_entry_is_right_on_all_samples(op: Any) -> None:
    for dtype in harness.dtypes(op):
        _check(op, dtype, limit=harness.SAMPLES)


def _check(op: Any, dtype: torch.dtype, limit: int) -> None:
    outcome = harness.in_a_thread(lambda: harness.check_entry(op, dtype, limit))
    assert outcome.status != "differs", f"{dtype}: {outcome.reason}"
    if dtype in PASSING.get(harness.name_of(op), ()):
        assert outcome.status == "passes", f"{dtype}: {outcome.reason}"
