# SPDX-License-Identifier: Apache-2.0
"""What holds for every kernel: its launch, and that Metal would take its text."""

import itertools

import numpy as np
import pytest

from vllm_metal.kernels.contract import evaluate
from vllm_metal.kernels.tensor import tensor

from .contracts import FOLDER, NAMES, contract
from .host.execute import source_of
from .host.lint import address_spaces, forbidden


@pytest.mark.parametrize("name", NAMES)
def test_examples_launch_as_written(name: str) -> None:
    """The same examples are checked by `lowering::kernels`, which evaluates the same formulas."""
    kernel = contract(name)
    dtypes = {key: values[0] for key, values in kernel.data["dtypes"].items()}
    assert kernel.data["examples"]
    for example in kernel.data["examples"]:
        launch = kernel.launch(example["sizes"], dtypes)
        assert list(launch.grid) == example["grid"]
        assert list(launch.threadgroup) == example["threadgroup"]


def test_what_a_contract_requires_is_checked() -> None:
    kernel = contract("paged_attention_decode")
    sizes = dict(kernel.data["examples"][0]["sizes"], head_size=72)
    with pytest.raises(ValueError, match="lanes >= 16"):
        kernel.launch(sizes, {"T": "float32", "O": "float32"})


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.metal")), ids=lambda path: path.stem)
def test_no_kernel_says_what_metal_refuses(file) -> None:
    assert forbidden(file.read_text()) == []


@pytest.mark.parametrize("name", NAMES)
def test_address_spaces(name: str) -> None:
    """Of every example, in every dtype: small examples put inputs in the constant address space."""
    kernel = contract(name)
    choices = kernel.data["dtypes"]
    for index, example in itertools.product(range(3), kernel.data["examples"]):
        dtypes = {key: values[index % len(values)] for key, values in choices.items()}
        sizes = kernel.resolve(example["sizes"])
        inputs = {}
        for item in kernel.inputs:
            shape = tuple(evaluate(axis, sizes) for axis in item["shape"])
            dtype = dtypes.get(item["dtype"], item["dtype"])
            inputs[item["name"]] = tensor(np.zeros(shape), dtype)
        source = source_of(kernel.kernel(), inputs, kernel.launch(example["sizes"], dtypes))
        assert address_spaces(source) == []
