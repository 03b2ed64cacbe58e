# SPDX-License-Identifier: Apache-2.0
"""Checks of safetensors files before they are loaded, and errors that name file and tensor."""

import json
import math
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:  # vllm.config imports the platform, which imports us
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

INDEX_FILE = "model.safetensors.index.json"
_DOWNLOAD_AGAIN = "Download it again."
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
_FLOATS_THAT_ARE_CAST = ("F16", "BF16", "F32", "F64")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as a safetensors header describes it; `start` and `end` are bytes of the file."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    def loaded_bytes(self, dtype: torch.dtype) -> int:
        """Size in memory once floating point is cast to the model's dtype."""
        if self.dtype in _FLOATS_THAT_ARE_CAST:
            return math.prod(self.shape) * dtype.itemsize
        return self.end - self.start


def read_header(file: Path) -> list[StoredTensor]:
    """The tensors of a safetensors file.

    Raises ValueError, naming the file and the tensor, when the file is not what its header says.
    """
    size = file.stat().st_size
    with open(file, "rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if len(prefix) < 8 or 8 + length > size:
            raise ValueError(
                f"{file.name} is truncated: its header needs {8 + length:,} bytes and the file "
                f"ends at {size:,}. {_DOWNLOAD_AGAIN}"
            )
        raw = stream.read(length)
    try:
        header: dict[str, Any] = json.loads(raw)
        header.pop("__metadata__", None)
        tensors = [
            StoredTensor(
                file,
                name,
                entry["dtype"],
                tuple(entry["shape"]),
                8 + length + entry["data_offsets"][0],
                8 + length + entry["data_offsets"][1],
            )
            for name, entry in header.items()
        ]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{file.name} is not a safetensors file: its header can't be read ({error!r}). "
            f"{_DOWNLOAD_AGAIN}"
        ) from None
    for tensor in tensors:
        if tensor.end > size:
            raise ValueError(
                f"{file.name} is truncated: tensor {tensor.name} needs bytes "
                f"{tensor.start:,}..{tensor.end:,} and the file ends at {size:,}. {_DOWNLOAD_AGAIN}"
            )
        bits = math.prod(tensor.shape) * _BITS.get(tensor.dtype, 0)
        if bits and (bits + 7) // 8 != tensor.end - tensor.start:
            raise ValueError(
                f"{file.name} is damaged: tensor {tensor.name} is {tensor.dtype}"
                f"{list(tensor.shape)}, which does not fill bytes "
                f"{tensor.start:,}..{tensor.end:,}. {_DOWNLOAD_AGAIN}"
            )
    return tensors


def check_directory(directory: str | os.PathLike[str]) -> list[StoredTensor]:
    """Check all safetensors files of a checkpoint, and its index, and return the tensors.

    A directory without safetensors passes: vLLM knows other formats and says what it misses.
    """
    folder = Path(directory)
    tensors = [
        tensor for file in sorted(folder.glob("*.safetensors")) for tensor in read_header(file)
    ]
    index = folder / INDEX_FILE
    if index.exists():
        stored = {(tensor.file.name, tensor.name) for tensor in tensors}
        try:
            weight_map: dict[str, str] = json.loads(index.read_text())["weight_map"]
        except (ValueError, KeyError) as error:
            raise ValueError(f"{index.name} can't be read ({error!r}). {_DOWNLOAD_AGAIN}") from None
        for name, file_name in weight_map.items():
            if not (folder / file_name).exists():
                raise ValueError(
                    f"{file_name} is missing: {index.name} says that it holds tensor {name}. "
                    f"{_DOWNLOAD_AGAIN}"
                )
            if (file_name, name) not in stored:
                raise ValueError(
                    f"{file_name} has no tensor {name}, which {index.name} says it holds. "
                    f"{_DOWNLOAD_AGAIN}"
                )
    return tensors


class _CopiesOf(TorchDispatchMode):
    """Counts how many elements of one tensor are copied elsewhere while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.tensor: torch.Tensor | None = None
        self.copied = 0

    def watch(self, tensor: torch.Tensor | None) -> None:
        self.tensor, self.copied = tensor, 0

    def partly(self) -> bool:
        return self.tensor is not None and 0 < self.copied < self.tensor.numel()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten.copy_.default and self.tensor is not None:
            start, source = self.tensor.data_ptr(), args[1]
            if start <= source.data_ptr() < start + self.tensor.nbytes:
                self.copied += source.numel()
        return func(*args, **(kwargs or {}))


@contextmanager
def naming_bad_weights(loader: "DefaultModelLoader", tensors: list[StoredTensor]) -> Iterator[None]:
    """While a vLLM loader loads, a tensor that does not fit raises ValueError with name and file.

    vLLM's `weight_loader`s assert shapes without a word, or, where parameters are fused, take the
    part that fits and leave the rest.
    """
    files = {tensor.name: tensor.file.name for tensor in tensors}
    loading: tuple[str, torch.Tensor] | None = None
    copies = _CopiesOf()
    get_all_weights = loader.get_all_weights

    def traced(*args: Any, **kwargs: Any) -> Iterator[tuple[str, torch.Tensor]]:
        nonlocal loading
        for loading in get_all_weights(*args, **kwargs):
            copies.watch(loading[1])
            yield loading
            if copies.partly():
                raise ValueError("only a part of it has a place")
        copies.watch(None)
        loading = None

    loader.get_all_weights = traced  # type: ignore[method-assign, assignment]
    try:
        with copies:
            yield
    except (AssertionError, RuntimeError, ValueError, KeyError, IndexError) as error:
        if loading is None or isinstance(error, SafetensorError):
            raise
        name, tensor = loading
        detail = f": {error}" if str(error) else ""
        raise ValueError(
            f"{files.get(name, 'the checkpoint')}: tensor {name} has shape {list(tensor.shape)}, "
            f"which does not fit the model that config.json describes{detail}"
        ) from error
