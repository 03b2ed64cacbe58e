# SPDX-License-Identifier: Apache-2.0
"""Runs a kernel on tensors, under several orders of its threads."""

import ctypes
import functools
import threading
from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from vllm_metal.kernels.contract import Kernel, Launch
from vllm_metal.kernels.tensor import STORAGE, Tensor

from .errors import KernelError
from .source import Source, generate, translate
from .toolchain import build_engine, build_kernel

# Ascending, descending, and one at random.
ORDERS = (0, 1, 2)


@dataclass
class Settings:
    """Of this process: `sanitize` runs kernels under clang's thread sanitizer, whose library must
    have been loaded first."""

    sanitize: bool = False


settings = Settings()

# Engines keep the state of the one dispatch that runs.
_lock = threading.Lock()


def source_of(kernel: Kernel, inputs: Mapping[str, Tensor], launch: Launch) -> Source:
    """The text that MLX makes of the kernel for these shapes and dtypes."""
    arrays = [mx.zeros(inputs[name].shape, inputs[name].mlx_dtype) for name in kernel.inputs]
    template = [
        (name, getattr(mx, value) if isinstance(value, str) else value)
        for name, value in launch.template.items()
    ]
    return generate(
        kernel.build(),
        arrays,
        grid=launch.grid,
        threadgroup=launch.threadgroup,
        output_shapes=[shape for shape, _ in launch.outputs.values()],
        output_dtypes=[getattr(mx, dtype) for _, dtype in launch.outputs.values()],
        template=template,
        init_value=launch.init_value,
    )


@functools.cache
def _engine(sanitize: bool) -> ctypes.CDLL:
    engine = ctypes.CDLL(str(build_engine(sanitize)), mode=ctypes.RTLD_GLOBAL)
    engine.msl_host_allocate.restype = ctypes.c_void_p
    return engine


@functools.cache
def _program(text: str, sanitize: bool) -> ctypes.CDLL:
    _engine(sanitize)
    program = ctypes.CDLL(str(build_kernel(text, sanitize)))
    program.msl_memory.restype = program.msl_memory_end.restype = ctypes.c_void_p
    return program


class _Memory:
    """Buffers between pages that fault, until closed."""

    def __init__(self, engine: ctypes.CDLL):
        self._engine = engine
        self._mappings: list[tuple[ctypes.c_void_p, ctypes.c_size_t]] = []

    def allocate(self, nbytes: int) -> int:
        base, total = ctypes.c_void_p(), ctypes.c_size_t()
        address = self._engine.msl_host_allocate(
            ctypes.c_size_t(nbytes), ctypes.byref(base), ctypes.byref(total)
        )
        if address is None:
            raise MemoryError(f"{nbytes} bytes for a kernel's buffer")
        self._mappings.append((base, total))
        return address

    def view(self, address: int, array: np.ndarray, nbytes: int) -> np.ndarray:
        """Elements at an address, strided as those of an array that spans `nbytes`."""
        raw = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))
        return np.ndarray(array.shape, array.dtype, raw, 0, array.strides)

    def put(self, array: np.ndarray) -> int:
        """A read-only copy with the array's strides; what lies between its elements is poison."""
        if any(stride < 0 for stride in array.strides):
            raise KernelError("MLX has no negative strides in what it hands to kernels here")
        sizes = zip(array.shape, array.strides, strict=True)
        span = sum((size - 1) * stride for size, stride in sizes) + array.itemsize
        span = span if array.size else 0
        address = self.allocate(span)
        if array.size:
            # Axes of stride 0 repeat one element.
            once = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in array.strides)
            self.view(address, array[once], span)[...] = array[once]
        self._engine.msl_host_make_read_only(*self._mappings[-1])
        return address

    def close(self) -> None:
        for mapping in self._mappings:
            self._engine.msl_host_free(*mapping)
        self._mappings.clear()


def _arguments(source: Source, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """What each buffer that is read holds. MLX passes shape, strides and rank on demand."""
    arrays = {}
    for name, value in inputs.items():
        storage = value.storage
        strides = [stride // storage.itemsize for stride in storage.strides]
        arrays[name] = storage
        arrays[f"{name}_shape"] = np.array(storage.shape, np.int32)
        arrays[f"{name}_strides"] = np.array(strides, np.int64)
        arrays[f"{name}_ndim"] = np.array(storage.ndim, np.int32)
    return {name: arrays[name] for name in source.buffers if name in arrays}


def _dispatch(
    program: ctypes.CDLL,
    source: Source,
    inputs: Mapping[str, Tensor],
    launch: Launch,
    order: int,
    sanitize: bool,
) -> dict[str, Tensor]:
    engine = _engine(sanitize)
    memory = _Memory(engine)
    try:
        read = {name: memory.put(array) for name, array in _arguments(source, inputs).items()}
        written = {}
        for name, (shape, dtype) in launch.outputs.items():
            array = np.empty(shape, STORAGE[dtype])
            address = memory.allocate(array.nbytes)
            written[name] = (array, memory.view(address, array, array.nbytes), address, dtype)
            if launch.init_value is not None:
                written[name][1][...] = launch.init_value
        buffers = (ctypes.c_void_p * len(source.buffers))()
        for index, name in enumerate(source.buffers):
            buffers[index] = read[name] if name in read else written[name][2]
        error = ctypes.create_string_buffer(1024)
        failed = engine.msl_host_dispatch(
            ctypes.cast(program.msl_entry, ctypes.c_void_p),
            buffers,
            (ctypes.c_uint32 * 3)(*launch.grid),
            (ctypes.c_uint32 * 3)(*launch.threadgroup),
            ctypes.c_uint(order),
            ctypes.c_void_p(program.msl_memory()),
            ctypes.c_void_p(program.msl_memory_end()),
            error,
            len(error),
        )
        if failed:
            raise KernelError(f"{source.name}: {error.value.decode()}")
        result = {}
        for name, (array, view, _, dtype) in written.items():
            array[...] = view
            result[name] = Tensor(array, dtype)
        return result
    finally:
        memory.close()


def run(
    kernel: Kernel,
    inputs: Mapping[str, Tensor],
    launch: Launch,
    orders: tuple[int, ...] = ORDERS,
) -> dict[str, Tensor]:
    """The kernel's outputs by name. Elements that no thread wrote are 0xFF in every byte.

    Raises:
        KernelError: it does not compile, faults, diverges, or its result depends on the order of
            threads.
    """
    sanitize = settings.sanitize
    source = source_of(kernel, inputs, launch)
    program = _program(translate(source), sanitize)
    if sanitize:
        orders = orders[:1]  # races do not depend on it
    with _lock:
        results = [_dispatch(program, source, inputs, launch, o, sanitize) for o in orders]
    for order, result in zip(orders, results, strict=True):
        for name, value in result.items():
            if value.storage.tobytes() != results[0][name].storage.tobytes():
                raise KernelError(
                    f"{kernel.name}: {name} depends on the order of threads (order {order}): "
                    "a barrier is missing, or threads write the same element"
                )
    return results[0]
