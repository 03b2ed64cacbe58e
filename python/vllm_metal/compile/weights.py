# SPDX-License-Identifier: Apache-2.0
"""Weights of compiled modules in MLX: uploaded once, shared by graphs, followed when changed."""

import weakref
from typing import Any

import torch

from vllm_metal.compile.device import runtime


def fingerprint(tensor: torch.Tensor) -> tuple[int, int, int]:
    """What changes when another tensor, other memory or other contents take a tensor's place.

    PyTorch counts in-place writes, with two exceptions that cannot be seen: writes through
    ``tensor.data`` and writes to tensors made in inference mode.
    """
    version = -1 if tensor.is_inference() else tensor._version
    return id(tensor), tensor.data_ptr(), version


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's elements as DLPack hands them over, without copying where that is possible."""
    return tensor.detach().resolve_neg()


class Weights:
    """MLX's copies of tensors that are the same in every call, for as long as the tensors live."""

    def __init__(self) -> None:
        self._uploads: dict[int, tuple[tuple[int, int, int], Any]] = {}

    def upload(self, tensor: torch.Tensor) -> Any:
        """The tensor as a LazyTensor; another upload only after it has changed."""
        key, identity = id(tensor), fingerprint(tensor)
        known = self._uploads.get(key)
        if known is not None and known[0] == identity:
            return known[1]
        if known is None:
            weakref.finalize(tensor, self._uploads.pop, key, None)
        array = runtime().borrow(plain(tensor))
        self._uploads[key] = (identity, array)
        return array

    def __len__(self) -> int:
        return len(self._uploads)


weights = Weights()
