# SPDX-License-Identifier: Apache-2.0
"""Tensors across the border: nothing is copied, and everything lives as long as it is used."""

import gc
import threading
from typing import Any

import pytest
import torch

from vllm_metal._native import core

DTYPES = ["float32", "float16", "bfloat16", "int32", "int64", "bool"]


def tensor_of(dtype: str, *shape: int) -> torch.Tensor:
    """Values that every dtype tells apart from zeros."""
    values = torch.arange(1, 1 + torch.Size(shape).numel()).reshape(shape) % 7
    return (values * 1.5 if dtype.startswith(("float", "bfloat")) else values).to(
        getattr(torch, dtype)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 4, 2)])
def test_round_trip(runtime: Any, dtype: str, shape: tuple[int, ...]) -> None:
    tensor = tensor_of(dtype, *shape)
    lazy = runtime.upload(tensor)
    back = torch.from_dlpack(lazy)
    assert (lazy.shape, lazy.dtype) == (shape, dtype)
    assert back.dtype == tensor.dtype and back.shape == tensor.shape
    assert torch.equal(back, tensor)


def test_tensors_with_gaps_are_read_in_order(runtime: Any) -> None:
    tensor = torch.arange(24).reshape(4, 6)
    for view in (tensor.T, tensor[1:3, ::2], tensor[:, 1:2], tensor.expand(2, 4, 6)):
        assert torch.equal(torch.from_dlpack(runtime.upload(view)), view)


def test_pytorch_reads_the_memory_of_mlx(runtime: Any) -> None:
    lazy = runtime.upload(torch.arange(5))
    first, second = torch.from_dlpack(lazy), torch.from_dlpack(lazy)
    assert first.data_ptr() == second.data_ptr()


def test_rows_and_head_stay_lazy_and_are_checked(runtime: Any) -> None:
    tensor = torch.arange(12.0).reshape(4, 3)
    lazy = runtime.upload(tensor)
    assert len(lazy) == 4
    assert torch.equal(torch.from_dlpack(lazy.rows([3, 0, 3])), tensor[[3, 0, 3]])
    assert torch.equal(torch.from_dlpack(lazy.rows(torch.tensor([1]))), tensor[1:2])
    assert torch.equal(torch.from_dlpack(lazy.head(2)), tensor[:2])
    for wrong in ([4], [-1], [1 << 40]):
        with pytest.raises(ValueError, match=r"row .* of a tensor with 4 rows"):
            lazy.rows(wrong)
    with pytest.raises(ValueError, match="the first 5 rows of 4"):
        lazy.head(5)
    with pytest.raises(TypeError, match="rank-0"):
        len(runtime.upload(torch.tensor(1.0)))


def test_what_is_no_cpu_tensor_is_refused(runtime: Any) -> None:
    with pytest.raises(TypeError, match="a tensor expected, and not list"):
        runtime.upload([1, 2])
    with pytest.raises(ValueError, match="type code 5 of 64 bits"):
        runtime.upload(torch.zeros(1, dtype=torch.complex64))
    lazy = runtime.upload(torch.zeros(1))
    with pytest.raises(BufferError):
        lazy.__dlpack__(copy=True)
    with pytest.raises(BufferError):
        lazy.__dlpack__(dl_device=(8, 0))
    assert lazy.__dlpack_device__() == (1, 0)


def test_an_unused_capsule_frees_its_memory(runtime: Any) -> None:
    before = runtime.memory()["active"]
    lazy = runtime.upload(torch.zeros(1 << 20))
    capsule = lazy.__dlpack__()
    assert runtime.memory()["active"] >= before + (4 << 20)
    del capsule, lazy
    gc.collect()
    runtime.upload(torch.zeros(1))  # runs after what was posted
    assert runtime.memory()["active"] < before + (4 << 20)


def test_memory_outlives_its_handle_and_the_runtime() -> None:
    runtime = core.Runtime("cpu")
    tensor = torch.from_dlpack(runtime.upload(torch.arange(100)))
    gc.collect()
    runtime.close()
    assert torch.equal(tensor, torch.arange(100))
    with pytest.raises(RuntimeError, match="the runtime is closed"):
        runtime.upload(torch.zeros(1))
    runtime.close()


def test_handles_may_be_dropped_in_any_thread(runtime: Any) -> None:
    handles = [[runtime.upload(torch.arange(3)) for _ in range(50)] for _ in range(4)]
    shared = [torch.from_dlpack(handle) for row in handles for handle in row]
    threads = [threading.Thread(target=row.clear) for row in handles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(tensor.tolist() == [0, 1, 2] for tensor in shared)
    assert runtime.num_tensors() == 0


def test_unknown_devices_and_limits() -> None:
    with pytest.raises(ValueError, match='device "tpu" is neither "cpu" nor "gpu"'):
        core.Runtime("tpu")
    runtime = core.Runtime("cpu", memory_limit=1 << 33, cache_limit=1 << 20)
    try:
        assert runtime.memory()["limit"] == 1 << 33
    finally:
        runtime.close()
