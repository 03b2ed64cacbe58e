# SPDX-License-Identifier: Apache-2.0
"""Safetensors files as memory maps whose pages are given back once a tensor is loaded.

vLLM copies each tensor of a file to its place in a parameter. The pages that were read stay
resident until the whole file is closed, so a checkpoint of large files would be held almost twice.
"""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from vllm.model_executor.model_loader import default_loader

from vllm_metal.checkpoint import StoredTensor, read_header

_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16,
    "I32": torch.int32, "I64": torch.int64, "U16": torch.uint16, "U32": torch.uint32,
    "U64": torch.uint64, "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32,
    "F64": torch.float64, "C64": torch.complex64, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip


@contextmanager
def mapped_weights() -> Iterator[None]:
    """While vLLM's default loader loads, it reads safetensors files as `iterate` does.

    Other ways to read them that a user asks for (`--safetensors-load-strategy`) are left alone.
    """
    original = default_loader.safetensors_weights_iterator

    def choose(
        files: list[str],
        use_tqdm_on_load: bool,
        safetensors_load_strategy: str | None = None,
        local_expert_ids: set[int] | None = None,
        **options: Any,
    ) -> Iterator[tuple[str, torch.Tensor]]:
        if safetensors_load_strategy is None and local_expert_ids is None:
            paths = sorted(map(Path, files))
            headers = {path: read_header(path) for path in paths}
            known = all(t.dtype in _DTYPES for tensors in headers.values() for t in tensors)
            if known:
                return iterate(headers, use_tqdm_on_load)
        return original(
            files, use_tqdm_on_load, safetensors_load_strategy, local_expert_ids, **options
        )

    default_loader.safetensors_weights_iterator = choose  # type: ignore[assignment]
    try:
        yield
    finally:
        default_loader.safetensors_weights_iterator = original


def iterate(
    headers: dict[Path, list[StoredTensor]], show_progress: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and tensor of everything in the files. A tensor is a view of its file, and must not be
    read any more once the next one is asked for."""
    total = sum(t.end - t.start for tensors in headers.values() for t in tensors)
    progress = tqdm(
        total=total,
        desc="Loading weights",
        unit="B",
        unit_scale=True,
        disable=not show_progress,
        delay=1,
    )
    with progress:
        for path, tensors in headers.items():
            yield from _iterate_file(path, tensors, progress)


def _iterate_file(
    path: Path, tensors: list[StoredTensor], progress: Any
) -> Iterator[tuple[str, torch.Tensor]]:
    with open(path, "rb") as file:
        # A private map: writing to a tensor changes memory, never the file.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    for stored in sorted(tensors, key=lambda tensor: tensor.start):
        nbytes = stored.end - stored.start
        dtype = _DTYPES[stored.dtype]
        if nbytes == 0:
            yield stored.name, torch.empty(stored.shape, dtype=dtype)
            continue
        flat = torch.frombuffer(
            mapped, dtype=dtype, count=nbytes // dtype.itemsize, offset=stored.start
        )
        yield stored.name, flat.view(stored.shape)
        _give_back(mapped, stored.start, stored.end)
        progress.update(nbytes)


def _give_back(mapped: mmap.mmap, start: int, end: int) -> None:
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    last = end // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        mapped.madvise(mmap.MADV_DONTNEED, first, last - first)
