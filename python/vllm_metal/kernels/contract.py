# SPDX-License-Identifier: Apache-2.0
"""A Metal kernel with its contract, as `lowering::kernels` holds it, and how it is launched."""

import ast
import math
import operator
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from .tensor import Tensor

_FUNCTIONS: dict[str, Callable[[int, int], int]] = {
    "min": min,
    "max": max,
    "gcd": math.gcd,
    "ceil_div": lambda a, b: -(-a // b),
}
_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


def evaluate(expression: str, sizes: Mapping[str, int]) -> int:
    """An expression of a contract: integers, names, `+ - * / %` (rounding down), comparisons,
    `min`, `max`, `gcd`, `ceil_div`."""

    def value(node: ast.expr) -> int:
        match node:
            case ast.Constant(value=int(number)):
                return number
            case ast.Name(id=name):
                return sizes[name]
            case ast.BinOp(left=left, op=op, right=right):
                return _OPERATORS[type(op)](value(left), value(right))
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                return int(_OPERATORS[type(op)](value(left), value(right)))
            case ast.Call(func=ast.Name(id=name), args=arguments):
                first, second = map(value, arguments)
                return _FUNCTIONS[name](first, second)
        raise ValueError(f"not an expression of contracts: {expression}")

    return value(ast.parse(expression, mode="eval").body)


@dataclass(frozen=True)
class Kernel:
    """What `mx.fast.metal_kernel` takes."""

    name: str
    inputs: list[str]
    outputs: list[str]
    body: str
    header: str = ""
    row_contiguous: bool = False
    atomic_outputs: bool = False

    def build(self):
        """MLX's kernel."""
        import mlx.core as mx

        return mx.fast.metal_kernel(
            name=self.name,
            input_names=self.inputs,
            output_names=self.outputs,
            source=self.body,
            header=self.header,
            ensure_row_contiguous=self.row_contiguous,
            atomic_outputs=self.atomic_outputs,
        )


@dataclass(frozen=True)
class Launch:
    """What a call of the kernel takes beside its inputs; `outputs` are shapes and dtypes."""

    grid: tuple[int, int, int]
    threadgroup: tuple[int, int, int]
    outputs: Mapping[str, tuple[tuple[int, ...], str]]
    template: Mapping[str, int | bool | str] = field(default_factory=dict)
    init_value: float | None = None


# Runs a kernel on inputs that keep its contract: outputs by name.
Run = Callable[[Kernel, Mapping[str, Tensor], Launch], dict[str, Tensor]]


@dataclass(frozen=True)
class Contract:
    """A kernel and what it needs."""

    data: dict
    body: str
    header: str

    @property
    def name(self) -> str:
        return self.data["name"]

    @property
    def inputs(self) -> list[dict]:
        return self.data["inputs"]

    @property
    def outputs(self) -> list[dict]:
        return self.data["outputs"]

    def kernel(self) -> Kernel:
        return Kernel(
            name=self.name,
            inputs=[item["name"] for item in self.inputs],
            outputs=[item["name"] for item in self.outputs],
            body=self.body,
            header=self.header,
        )

    def resolve(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """The sizes with all that derives of them; a requirement that fails is a ValueError."""
        known = dict(sizes)
        for name, expression in self.data.get("let", []):
            known[name] = evaluate(expression, known)
        for requirement in self.data["requires"]:
            if not evaluate(requirement, known):
                raise ValueError(f"{self.name} needs {requirement}")
        return known

    def launch(self, sizes: Mapping[str, int], dtypes: Mapping[str, str]) -> Launch:
        known = self.resolve(sizes)

        def dtype(name: str) -> str:
            return dtypes.get(name, name)

        def shape(item: dict) -> tuple[int, ...]:
            return tuple(evaluate(axis, known) for axis in item["shape"])

        template: dict[str, int | bool | str] = {}
        for item in self.data.get("template", []):
            if "dtype" in item:
                template[item["name"]] = dtype(item["dtype"])
            elif "flag" in item:
                template[item["name"]] = bool(evaluate(item["flag"], known))
            else:
                template[item["name"]] = evaluate(item["value"], known)
        x, y, z = (evaluate(axis, known) for axis in self.data["grid"])
        p, q, r = (evaluate(axis, known) for axis in self.data["threadgroup"])
        outputs = {item["name"]: (shape(item), dtype(item["dtype"])) for item in self.outputs}
        return Launch((x, y, z), (p, q, r), outputs, template)

    def check_inputs(
        self, inputs: Mapping[str, Tensor], sizes: Mapping[str, int], dtypes: Mapping[str, str]
    ) -> None:
        """Raises ValueError for an input that the contract does not allow."""
        known = self.resolve(sizes)
        for item in self.inputs:
            name, given = item["name"], inputs[item["name"]]
            shape = tuple(evaluate(axis, known) for axis in item["shape"])
            dtype = dtypes.get(item["dtype"], item["dtype"])
            if given.shape != shape or given.dtype != dtype:
                raise ValueError(
                    f"{name} is {given.dtype}{list(given.shape)} instead of {dtype}{list(shape)}"
                )
            strides = item.get("strides", "contiguous")
            storage = given.storage
            if strides == "contiguous" and not storage.flags.c_contiguous:
                raise ValueError(f"{name} must be contiguous")
            if strides == "last is 1" and storage.strides[-1] != storage.itemsize:
                raise ValueError(f"{name} must have rows of neighbours")

    def run(
        self,
        run: Run,
        inputs: Mapping[str, Tensor],
        sizes: Mapping[str, int],
        dtypes: Mapping[str, str],
    ) -> dict[str, Tensor]:
        """The kernel's outputs by name; `inputs` may hold more than it takes."""
        inputs = {item["name"]: inputs[item["name"]] for item in self.inputs}
        self.check_inputs(inputs, sizes, dtypes)
        return run(self.kernel(), inputs, self.launch(sizes, dtypes))

    def difference(self, found: Tensor, expected: np.ndarray, dtype: str) -> str | None:
        """Where a result is further from the float64 one than the tolerance of a dtype allows."""
        tolerance = self.data["tolerance"][dtype]
        actual = found.numbers()
        if actual.shape != expected.shape:
            return f"shape {actual.shape} instead of {expected.shape}"
        if not np.isfinite(actual).all():
            return "a result that is not finite"
        excess = np.abs(actual - expected)
        excess -= tolerance["absolute"] + tolerance["relative"] * np.abs(expected)
        if not excess.size or excess.max() <= 0:
            return None
        worst = np.unravel_index(np.argmax(excess), excess.shape)
        place = [int(index) for index in worst]
        return f"{actual[worst]:.9g} instead of {expected[worst]:.9g} at {place}"


def read(contract: str, body: str, header: str) -> Contract:
    """A kernel from the texts of its files."""
    return Contract(tomllib.loads(contract), body, header)


@cache
def contract(name: str) -> Contract:
    """The kernel of that name that this build holds; KeyError if there is none."""
    from vllm_metal._native import core

    texts = {of: rest for of, *rest in core.kernel_texts()}
    return read(*texts[name])
