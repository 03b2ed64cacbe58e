# SPDX-License-Identifier: Apache-2.0
"""A graph's symbolic sizes as the FX document writes them, and their values in a call."""

from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
from sympy.printing.precedence import PRECEDENCE
from sympy.printing.str import StrPrinter
from torch.fx.experimental.symbolic_shapes import ShapeEnv


class _Printer(StrPrinter):
    """The document's grammar: numbers, symbols, `+ - * // %`, `max(..)`, `min(..)`, parentheses.

    Only what torch makes of whole numbers is printed; anything else raises ValueError.
    """

    def emptyPrinter(self, expr: Any) -> str:
        raise ValueError(f"the size {expr!r} has no form in whole numbers")

    def _print_Pow(self, expr: Any, rational: bool = False) -> str:
        base, exponent = expr.as_base_exp()
        if not (exponent.is_Integer and 1 <= exponent <= 16):
            return self.emptyPrinter(expr)
        return "*".join([self.parenthesize(base, PRECEDENCE["Atom"])] * int(exponent))

    def _quotient(self, expr: Any, operator: str) -> str:
        return operator.join(f"({self._print(item)})" for item in expr.args)

    def _print_FloorDiv(self, expr: Any) -> str:
        return f"({self._quotient(expr, '//')})"

    def _print_Mod(self, expr: Any) -> str:
        return f"({self._quotient(expr, '%')})"

    _print_CleanDiv = _print_FloorDiv
    _print_PythonMod = _print_Mod

    def _print_CeilDiv(self, expr: Any) -> str:
        top, bottom = (self._print(item) for item in expr.args)
        return f"(({top} + ({bottom}) - 1)//({bottom}))"

    def _print_ModularIndexing(self, expr: Any) -> str:
        base, divisor, modulus = (self._print(item) for item in expr.args)
        return f"((({base})//({divisor}))%({modulus}))"

    def _print_Max(self, expr: Any) -> str:
        return f"max({', '.join(self._print(item) for item in expr.args)})"

    def _print_Min(self, expr: Any) -> str:
        return f"min({', '.join(self._print(item) for item in expr.args)})"

    def _print_Identity(self, expr: Any) -> str:
        return self._print(expr.args[0])

    def _print_Rational(self, expr: Any) -> str:
        return self.emptyPrinter(expr) if expr.q != 1 else super()._print_Rational(expr)

    def _print_Float(self, expr: Any) -> str:
        return self.emptyPrinter(expr)


class GraphSizes:
    """Names a graph's symbols `s0`, `s1`.. in the order in which they are met."""

    def __init__(self, shape_env: ShapeEnv | None) -> None:
        self._shape_env = shape_env
        self._names: dict[sympy.Symbol, str] = {}
        self._places: dict[sympy.Symbol, tuple[int, int | None]] = {}
        self._texts: dict[sympy.Basic, str] = {}

    @property
    def symbols(self) -> list[str]:
        """The symbols in use, in the order of their numbers."""
        return list(self._names.values())

    def give(self, expression: sympy.Basic, position: int, axis: int | None = None) -> None:
        """Say that every call's argument, or the size of its axis, is the expression's value."""
        if isinstance(expression, sympy.Symbol):
            self._places.setdefault(expression, (position, axis))

    def use(self, expression: sympy.Basic) -> None:
        """Name the symbols of an expression whose value a call needs."""
        for symbol in sorted(expression.free_symbols, key=str):
            self._name(symbol)

    def bind(self, arguments: Sequence[Any]) -> dict[str, int]:
        """The symbols' values in a call."""
        values = {}
        for symbol, name in self._names.items():
            position, axis = self._places[symbol]
            argument = arguments[position]
            values[name] = int(argument if axis is None else argument.shape[axis])
        return values

    def value(self, expression: sympy.Basic, values: Mapping[str, int]) -> Any:
        """An expression's value under `bind`'s."""
        numbers = {symbol: values[name] for symbol, name in self._names.items()}
        result = expression.xreplace({s: sympy.Integer(n) for s, n in numbers.items()})
        if result.is_Boolean:
            return bool(result)
        return int(result) if result.is_Integer else float(result)

    def expression(self, size: Any) -> sympy.Basic:
        """What torch knows a size, or another symbolic number, to be."""
        expression = size.node.expr
        return self._shape_env.simplify(expression) if self._shape_env else expression

    def text(self, expression: sympy.Basic) -> str:
        """The expression in the document's grammar. Raises ValueError for one that is not a whole
        number, or that depends on the contents of a tensor."""
        if self._shape_env is not None:
            expression = self._shape_env.simplify(expression)
        found = self._texts.get(expression)
        if found is None:
            self.use(expression)
            found = self._texts[expression] = _Printer().doprint(expression.xreplace(self._renamed))
        return found

    def dimension(self, size: int | torch.SymInt) -> int | str:
        """A size as a number, or as an expression in the symbols."""
        if isinstance(size, int):
            return size
        expression = self.expression(size)
        return int(expression) if expression.is_Integer else self.text(expression)

    @property
    def _renamed(self) -> dict[sympy.Symbol, sympy.Symbol]:
        return {
            symbol: sympy.Symbol(name, integer=True, positive=True)
            for symbol, name in self._names.items()
        }

    def _name(self, symbol: sympy.Symbol) -> None:
        if symbol in self._names:
            return
        unbacked = self._shape_env is not None and self._shape_env.is_unbacked_symint(symbol)
        if unbacked:
            raise ValueError(f"the size {symbol} depends on the contents of a tensor")
        if symbol not in self._places:
            raise ValueError(f"no argument has the size {symbol}")
        self._names[symbol] = f"s{len(self._names)}"
