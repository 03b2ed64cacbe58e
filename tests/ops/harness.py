# SPDX-License-Identifier: Apache-2.0
"""Runs entries of PyTorch's operator database lowered on MLX, and compares them with eager PyTorch.

An entry (``OpInfo``) is a public function with sample inputs by dtype. Each sample is captured
below autograd, lowered with islands refused, run by the runtime and compared in dtype, shape and
values.
"""

import copy
import hashlib
import itertools
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils import _pytree as pytree

from vllm_metal.compile import lower_function

T = TypeVar("T")

DTYPES = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int32,
    torch.int64,
    torch.bool,
)
"""MLX has no float64 and no complex numbers worth the name on the GPU: they are outside."""

SAMPLES = 8
"""Samples of an entry and dtype in the full sweep, each contiguous and not."""

TOLERANCES = {
    torch.float32: {"rtol": 2e-5, "atol": 2e-5},
    torch.float16: {"rtol": 1e-3, "atol": 1e-3},
    torch.bfloat16: {"rtol": 1.6e-2, "atol": 1e-2},
}
"""By result dtype; other dtypes must be equal. What is off by more must be no farther than
``WORSE_THAN_EAGER`` times eager's error from the result in the next wider dtype."""

WORSE_THAN_EAGER = 1.5

_PLACES = {"argsort": 0, "sort": 1, "topk": 1, "kthvalue": 1}
"""Results that are places of elements: of equal ones any is right, unless the order is stable."""

_UNINITIALISED = {"empty", "empty_like", "empty_permuted", "empty_strided", "new_empty"} | {
    "new_empty_strided"
}
"""Entries whose values mean nothing: dtype and shape are compared."""

Status = Literal["passes", "unclaimed", "refused", "differs", "outside"]


@dataclass(frozen=True)
class Outcome:
    """What became of a sample, and why."""

    status: Status
    reason: str = ""


def name_of(op: Any) -> str:
    """The entry's name with its variant: ``div.floor_rounding``."""
    return f"{op.name}.{op.variant_test_name}" if op.variant_test_name else op.name


def entries() -> list[Any]:
    """All entries of the database."""
    return list(op_db)


def dtypes(op: Any) -> list[torch.dtype]:
    """The dtypes of ``DTYPES`` that the entry has on the CPU."""
    return [dtype for dtype in DTYPES if op.supports_dtype(dtype, "cpu")]


def samples(op: Any, dtype: torch.dtype, limit: int) -> Iterator[Any]:
    """Up to ``limit`` samples, spread over the entry's, each contiguous and then not.

    They are among the ``SAMPLES`` of the full sweep: what that finds holds for fewer.
    """
    torch.manual_seed(0)
    found = list(itertools.islice(op.sample_inputs("cpu", dtype), 400))
    for sample in _spread(_spread(found, SAMPLES), limit):
        yield sample
        if isinstance(sample.input, torch.Tensor) and sample.input.layout == torch.strided:
            yield sample.noncontiguous()


def _spread(items: list[Any], limit: int) -> list[Any]:
    return items[:: max(1, -(-len(items) // limit))]


def in_a_thread(function: Callable[[], T]) -> T:
    """The function's result, computed where the stack is short.

    PyTorch's test utilities format the whole stack several times for each sample, and pytest's is
    deep: it takes ten times as long.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def chosen(op: Any, dtype: torch.dtype, share: int) -> bool:
    """A choice of one in ``share`` pairs that is the same in every run."""
    digest = hashlib.sha256(f"{name_of(op)} {dtype}".encode()).digest()
    return digest[0] % share == 0


def check_entry(op: Any, dtype: torch.dtype, limit: int) -> Outcome:
    """Check an entry's samples up to the first that does not pass."""
    outcome = Outcome("outside", "no sample")
    try:
        for sample in samples(op, dtype, limit):
            found = check(op, sample)
            if found.status not in ("passes", "outside"):
                return found
            if found.status == "passes" or outcome.status == "outside":
                outcome = found
    except Exception as error:
        return Outcome("outside", f"eager PyTorch: {_line(error)}")
    return outcome


def check(op: Any, sample: Any) -> Outcome:
    """Compare one sample with eager PyTorch."""
    args, kwargs = (sample.input, *sample.args), sample.kwargs
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        expected = op(*_copy(args), **_copy(kwargs))
        if is_outside((args, kwargs, expected)):
            return Outcome("outside", "a dtype or layout that MLX has not")
        if not any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(expected)):
            return Outcome("outside", "its result is no tensor")
        try:
            lowered = lower_function(op, args, kwargs, refuse_fallback=True)
        except ValueError as error:
            unclaimed = "no lowering is registered" in str(error)
            return Outcome("unclaimed" if unclaimed else "refused", _line(error))
        except Exception as error:  # the function cannot be captured
            return Outcome("unclaimed", f"{type(error).__name__}: {_line(error)}")
        try:
            actual = lowered(*args, **kwargs)
        except Exception as error:
            checked = "it must be from 0 to" in str(error)  # negative indices that are inputs
            return Outcome("refused" if checked else "differs", _line(error))
        truth = None
        for want, got, index in _results(expected, actual):
            if index == _PLACES.get(op.name) and not sample.kwargs.get("stable"):
                want, got = (_elements(op, sample, places) for places in (want, got))
            problem = compare(want, got, meaningless=op.name in _UNINITIALISED)
            if problem and want.dtype in TOLERANCES and want.shape == got.shape:
                truth = truth or pytree.tree_leaves(op(*_wide(args), **_wide(kwargs)))
                problem = _compare_errors(want, got, truth[index])
            if problem:
                return Outcome("differs", problem)
    return Outcome("passes")


def _elements(op: Any, sample: Any, places: torch.Tensor) -> torch.Tensor:
    """What stands at the places along the dimension that the sample is ordered along."""
    if not sample.input.dim():
        return places
    before = 1 if op.name in ("topk", "kthvalue") else 0  # arguments before `dim`
    dim = sample.kwargs.get("dim", (*sample.args, -1, -1)[before])
    if places.dim() < sample.input.dim():
        places = places.unsqueeze(dim)
    return sample.input.take_along_dim(places, dim)


def _results(expected: Any, actual: Any) -> Iterator[tuple[torch.Tensor, Any, int]]:
    want, got = pytree.tree_leaves(expected), pytree.tree_leaves(actual)
    for index, (one, other) in enumerate(zip(want, got, strict=True)):
        if isinstance(one, torch.Tensor):
            yield one, other, index


def compare(want: torch.Tensor, got: Any, *, meaningless: bool = False) -> str:
    """What is wrong with the result; nothing where it is right, or right but for ``meaningless``
    values."""
    if (want.dtype, want.shape) != (got.dtype, got.shape):
        return f"{got.dtype}{list(got.shape)} instead of {want.dtype}{list(want.shape)}"
    if meaningless or not want.numel():
        return ""
    tolerance = TOLERANCES.get(want.dtype, {"rtol": 0, "atol": 0})
    try:
        torch.testing.assert_close(got, want, equal_nan=True, **tolerance)
    except AssertionError as error:
        return " ".join(str(error).split())[:200]
    return ""


def _compare_errors(want: torch.Tensor, got: torch.Tensor, truth: torch.Tensor) -> str:
    """What is wrong with the result, eager's own error given."""
    exact = truth.to(torch.float64)
    rounded = exact.to(want.dtype)
    # What overflows on the way in eager PyTorch alone must be the exact result.
    overflown = ~want.isfinite() & rounded.isfinite() & got.isfinite()
    if not torch.allclose(got[overflown], rounded[overflown], **TOLERANCES[want.dtype]):
        return "what overflows in eager PyTorch is not the exact result"
    want = torch.where(overflown, rounded, want)
    if want.dtype != got.dtype or not torch.equal(want.isfinite(), got.isfinite()):
        return "another set of finite elements"
    finite = want.isfinite() & exact.isfinite()
    eager, ours = ((x.to(torch.float64) - exact)[finite].abs().max() for x in (want, got))
    if ours <= WORSE_THAN_EAGER * eager:
        return ""
    return f"error {ours:.3g}, eager's {eager:.3g}"


def is_outside(value: Any) -> bool:
    """Float64, complex or sparse tensors are among the arguments or the results."""
    return any(
        leaf.layout != torch.strided or leaf.is_complex() or leaf.dtype == torch.float64
        for leaf in pytree.tree_leaves(value)
        if isinstance(leaf, torch.Tensor)
    )


def _copy(value: Any) -> Any:
    """Copies with the strides of the originals, by which eager PyTorch chooses how to compute."""
    return pytree.tree_map_only(torch.Tensor, copy.deepcopy, value)


def _wide(value: Any) -> Any:
    """Floats in the next wider dtype that is exact for our purpose."""

    def widen(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.double() if tensor.is_floating_point() else tensor.clone()

    return pytree.tree_map_only(torch.Tensor, widen, value)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
