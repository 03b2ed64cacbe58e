# SPDX-License-Identifier: Apache-2.0
"""What the runtime launches, run by the host executor in Metal's place."""

import json
from collections import Counter
from typing import Any

import numpy as np
import torch

from vllm_metal.islands import run_island
from vllm_metal.kernels.tensor import Tensor

from .contracts import contract, in_one_order

PREFIX = "kernel."


def to_tensor(array: torch.Tensor) -> Tensor:
    if array.dtype == torch.bfloat16:
        return Tensor(array.view(torch.int16).numpy().view(np.uint16), "bfloat16")
    return Tensor(array.numpy(), str(array.dtype).removeprefix("torch."))


def to_torch(value: Tensor) -> torch.Tensor:
    array = torch.from_numpy(
        np.array(value.storage.view(np.int16) if value.dtype == "bfloat16" else value.storage)
    )
    return array.view(torch.bfloat16) if value.dtype == "bfloat16" else array


class HostLaunches:
    """Runs what the runtime launches, and counts it."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def __call__(self, target: str, arguments: str, operands: list[Any]) -> list[torch.Tensor]:
        if not target.startswith(PREFIX):
            return run_island(target, arguments, operands)
        kernel = contract(target.removeprefix(PREFIX))
        self.counts[kernel.name] += 1
        launch = json.loads(arguments)
        names = [item["name"] for item in kernel.inputs]
        tensors = (to_tensor(torch.from_dlpack(operand)) for operand in operands)
        inputs = dict(zip(names, tensors, strict=True))
        found = kernel.run(in_one_order, inputs, launch["sizes"], launch["dtypes"])
        return [to_torch(found[item["name"]]) for item in kernel.outputs]
