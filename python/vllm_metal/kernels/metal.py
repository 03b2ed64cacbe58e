# SPDX-License-Identifier: Apache-2.0
"""Runs a kernel on Metal, on NumPy's arrays. Not yet run there."""

from collections.abc import Mapping

import numpy as np

from .contract import Kernel, Launch
from .tensor import STORAGE, Tensor


def run_on_metal(kernel: Kernel, inputs: Mapping[str, Tensor], launch: Launch) -> dict[str, Tensor]:
    """The kernel's outputs by name; a kernel that Metal's compiler refuses is a RuntimeError or
    ValueError of MLX."""
    import mlx.core as mx

    def array(value: Tensor) -> mx.array:
        # NumPy holds bfloat16 as its bits.
        given = mx.array(np.ascontiguousarray(value.storage).reshape(value.shape))
        return given.view(mx.bfloat16) if value.dtype == "bfloat16" else given

    template = [
        (name, getattr(mx, value) if isinstance(value, str) else value)
        for name, value in launch.template.items()
    ]
    found = kernel.build()(
        inputs=[array(inputs[name]) for name in kernel.inputs],
        grid=launch.grid,
        threadgroup=launch.threadgroup,
        output_shapes=[shape for shape, _ in launch.outputs.values()],
        output_dtypes=[getattr(mx, dtype) for _, dtype in launch.outputs.values()],
        template=template,
        init_value=launch.init_value,
        stream=mx.gpu,
    )
    mx.eval(found)
    result = {}
    for (name, (_, dtype)), value in zip(launch.outputs.items(), found, strict=True):
        bits = value.view(mx.uint16) if dtype == "bfloat16" else value
        result[name] = Tensor(np.array(bits).astype(STORAGE[dtype], copy=False), dtype)
    return result
