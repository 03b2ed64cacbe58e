# SPDX-License-Identifier: Apache-2.0
"""The one symbol of a captured graph: how many tokens (or sampled rows) a step has."""

from collections.abc import Callable

import sympy
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
)

TOKEN_SYMBOL = "s0"

TRACE_TOKENS = 1_000_003
"""The token count a trace pretends to have. A large prime: no product of model dimensions equals
it, so a size that was burnt into the graph is recognised. Fake tensors hold no data."""


class GuardFreeShapeEnv(ShapeEnv):
    """A ShapeEnv in which a condition on the symbol is an error instead of a guard.

    A condition that holds, or fails, for every count of two or more is no guard. One token takes
    that general path as well: torch assumes a symbolic size to be neither 0 nor 1.
    """

    def __init__(self, on_guard: Callable[[sympy.Basic], None]) -> None:
        super().__init__()
        self._on_guard = on_guard

    def evaluate_expr(self, orig_expr, *args, **kwargs):  # type: ignore[no-untyped-def]
        """Decide a condition as ShapeEnv does; report it if the decision needed a guard."""
        before = len(self.guards)
        result = super().evaluate_expr(orig_expr, *args, **kwargs)
        if len(self.guards) > before:
            self._on_guard(self.guards[-1].expr)
        return result


class SymbolNames:
    """Prints symbolic sizes with the document's symbol in the place of ``count``'s."""

    def __init__(self, count: torch.SymInt) -> None:
        self._count: sympy.Symbol = count.node.expr
        self._name = sympy.Symbol(TOKEN_SYMBOL, integer=True, positive=True)
        self._texts: dict[sympy.Basic, str] = {}

    def text(self, expression: sympy.Basic) -> str:
        """The expression as sympy prints it, e.g. ``2*s0``.

        Raises ``ValueError`` for one that depends on the contents of a tensor.
        """
        found = self._texts.get(expression)
        if found is None:
            if not expression.free_symbols <= {self._count}:
                raise ValueError("a shape or number depends on the contents of a tensor")
            renamed = expression.xreplace({self._count: self._name})
            found = self._texts[expression] = str(renamed)
        return found

    def dimension(self, size: int | torch.SymInt) -> int | str:
        """A size as a number, or as an expression in the symbol."""
        if isinstance(size, int):
            return size
        expression = size.node.expr
        return int(expression) if expression.is_Integer else self.text(expression)


def token_count(fake_mode: FakeTensorMode, hint: int) -> torch.SymInt:
    """A new symbolic token count; every input of a graph is built from this one value."""
    context = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC])
    example = torch.empty(hint, dtype=torch.bool, device="meta")
    return fake_mode.from_tensor(example, symbolic_context=context).shape[0]
