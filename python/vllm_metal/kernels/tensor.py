# SPDX-License-Identifier: Apache-2.0
"""Arrays of MLX's dtypes as NumPy holds them: bfloat16 as its bits in uint16."""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

STORAGE = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": np.uint16,
    "int32": np.int32,
    "uint32": np.uint32,
    "int64": np.int64,
    "uint8": np.uint8,
    "bool": np.bool_,
}


@dataclass(frozen=True)
class Tensor:
    """`storage` may be strided in any way; its elements are those of `dtype`."""

    storage: np.ndarray
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.storage.shape

    @property
    def mlx_dtype(self) -> mx.Dtype:
        return getattr(mx, "bool_" if self.dtype == "bool" else self.dtype)

    def numbers(self) -> np.ndarray:
        """The values: floats as float64, integers as they are."""
        if self.dtype == "bfloat16":
            bits = self.storage.astype(np.uint32) << 16
            return bits.view(np.float32).astype(np.float64)
        if self.dtype in ("float32", "float16"):
            return self.storage.astype(np.float64)
        return self.storage

    def __getitem__(self, index: Any) -> "Tensor":
        """A view, as NumPy's."""
        return Tensor(self.storage[index], self.dtype)

    def transpose(self, *axes: int) -> "Tensor":
        return Tensor(self.storage.transpose(*axes), self.dtype)


def tensor(values: npt.ArrayLike, dtype: str) -> Tensor:
    """The nearest values of a dtype; float16 and bfloat16 are rounded from float32, to even."""
    values = np.asarray(values)
    if dtype != "bfloat16":
        if dtype == "float16":
            values = values.astype(np.float32)
        return Tensor(values.astype(STORAGE[dtype]), dtype)
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return Tensor(np.where(is_nan, np.uint16(0x7FC0), rounded).reshape(values.shape), dtype)
