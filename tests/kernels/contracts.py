# SPDX-License-Identifier: Apache-2.0
"""The kernels of `lowering/kernels`: what `lowering::kernels` reads too."""

import ast
import math
import operator
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from .host import Kernel, Launch, Tensor, run
from .host.execute import ORDERS

FOLDER = Path(__file__).resolve().parents[2] / "lowering" / "kernels"
NAMES = sorted(path.stem for path in FOLDER.glob("*.toml"))

_FUNCTIONS = {
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
                return _FUNCTIONS[name](*map(value, arguments))
        raise ValueError(f"not an expression of contracts: {expression}")

    return value(ast.parse(expression, mode="eval").body)


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
        known = self.resolve(sizes)
        for item in self.inputs:
            given = inputs[item["name"]]
            shape = tuple(evaluate(axis, known) for axis in item["shape"])
            assert given.shape == shape, (item["name"], given.shape, shape)
            assert given.dtype == dtypes.get(item["dtype"], item["dtype"]), item["name"]
            strides = item.get("strides", "contiguous")
            storage = given.storage
            if strides == "contiguous":
                assert storage.flags.c_contiguous, f"{item['name']} must be contiguous"
            elif strides == "last is 1" and storage.shape[-1] > 1:
                assert storage.strides[-1] == storage.itemsize, f"{item['name']}: rows are whole"

    def run(
        self,
        inputs: Mapping[str, Tensor],
        sizes: Mapping[str, int],
        dtypes: Mapping[str, str],
        orders: tuple[int, ...] = ORDERS,
    ) -> dict[str, Tensor]:
        """The kernel's outputs on inputs that keep the contract."""
        inputs = {item["name"]: inputs[item["name"]] for item in self.inputs}
        self.check_inputs(inputs, sizes, dtypes)
        return run(self.kernel(), inputs, self.launch(sizes, dtypes), orders)

    def assert_close(self, found: Tensor, expected: np.ndarray, dtype: str) -> None:
        """Within the tolerance of a dtype of the float64 result, everywhere."""
        tolerance = self.data["tolerance"][dtype]
        actual = found.numbers()
        assert actual.shape == expected.shape
        assert np.isfinite(actual).all(), "an element was not written, or poison was read"
        error = np.abs(actual - expected)
        allowed = tolerance["absolute"] + tolerance["relative"] * np.abs(expected)
        worst = np.unravel_index(np.argmax(error - allowed), error.shape) if error.size else ()
        assert (error <= allowed).all(), (
            f"{self.name} {dtype}: {actual[worst]} instead of {expected[worst]} at {worst}"
        )


@cache
def contract(name: str) -> Contract:
    """The kernel of that name."""
    data = tomllib.loads((FOLDER / f"{name}.toml").read_text())
    headers = [(FOLDER / header).read_text() for header in data.get("headers", [])]
    return Contract(data, (FOLDER / f"{name}.metal").read_text(), "\n".join(headers))
