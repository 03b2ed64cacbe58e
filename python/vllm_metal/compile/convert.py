# SPDX-License-Identifier: Apache-2.0
"""torch.fx graphs of ATen operators as nodes of an FX document."""

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx
from torch.utils import _pytree as pytree

from vllm_metal.compile.errors import CompileError
from vllm_metal.compile.sizes import GraphSizes
from vllm_metal.fx import GETITEM, Node, TensorType, ValueType, live_nodes

_CHECKS = frozenset(
    {
        "aten._assert_scalar.default",
        "aten._assert_tensor_metadata.default",
        "aten.sym_constrain_range.default",
        "aten.sym_constrain_range_for_size.default",
    }
)
"""Statements about shapes and dtypes, which the trace has settled."""

_SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)


@dataclass(frozen=True)
class TensorInput:
    """A graph input that is a tensor: its name in the document, and where it stands in a call."""

    name: str
    position: int


@dataclass(frozen=True)
class Tensor:
    """An output that the plan computes, by its place among the plan's outputs.

    ``shared``: it may lie in the memory of an argument, a weight or a constant. ``order``: its axes
    from the slowest to the fastest in memory, where PyTorch's result is not row-major.
    """

    index: int
    shared: bool = False
    order: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Size:
    """An output that is a number computed from sizes."""

    expression: sympy.Basic


@dataclass(frozen=True)
class Constant:
    """An output that every call has: None or a number."""

    value: Any


@dataclass(frozen=True)
class Argument:
    """An output that is an argument of the call, by its position."""

    position: int


Output = Tensor | Size | Constant | Argument


@dataclass
class Converted:
    """A graph as a document's nodes, and how a call's arguments and results relate to them.

    ``parameters`` and ``constants`` are the tensors that the document names: positions of the
    arguments that stay the same, and tensors that the graph holds.
    """

    nodes: list[Node]
    sizes: GraphSizes
    tensors: list[TensorInput]
    parameters: dict[str, int]
    constants: dict[str, torch.Tensor]
    outputs: list[Output]

    @property
    def dtypes(self) -> set[torch.dtype]:
        """Of all tensors of the graph."""
        kinds = (node.type for node in self.nodes)
        return {kind.dtype for kind in kinds if isinstance(kind, TensorType)}


def convert(graph_module: fx.GraphModule, parameters: Mapping[int, str]) -> Converted:
    """The graph's nodes; ``parameters`` names the arguments, by position, that are weights.

    Every node has its value under ``meta["val"]``, as make_fx and AOTAutograd leave it. Raises
    CompileError, with its place, for a node that no document can hold.
    """
    return _Conversion(graph_module, parameters).run()


class _Conversion:
    def __init__(self, graph_module: fx.GraphModule, parameters: Mapping[int, str]) -> None:
        self.module = graph_module
        self.paths = parameters
        self.nodes: dict[fx.Node, Node] = {}
        self.positions: dict[Any, int] = {}
        # Nodes that depend on an argument: the others are computed once, at load.
        self.computed: set[fx.Node] = set()
        self.calls: list[Node] = []
        self.placeholders: list[Node] = []
        self.result = Converted([], GraphSizes(_shape_env(graph_module)), [], {}, {}, [])

    def run(self) -> Converted:
        position = 0
        for node in self.module.graph.nodes:
            try:
                if node.op == "placeholder":
                    self._placeholder(node, position)
                    position += 1
                elif node.op == "get_attr":
                    self._attribute(node)
                elif node.op == "output":
                    self._output(node)
                else:
                    self._call(node)
            except ValueError as error:
                raise CompileError(f"{place_of(node)}: {error}") from error
        self.result.nodes = live_nodes(self.placeholders + self.calls)
        return self.result

    def _placeholder(self, node: fx.Node, position: int) -> None:
        value = node.meta.get("val")
        self.positions[node] = position
        if isinstance(value, torch.Tensor):
            for axis, size in enumerate(value.shape):
                if isinstance(size, torch.SymInt):
                    self.result.sizes.give(self.result.sizes.expression(size), position, axis)
            path = self.paths.get(position)
            if path is None:
                self.computed.add(node)
                self.result.tensors.append(TensorInput(node.name, position))
                self._leaf(node, Node(node.name, "placeholder", role="input"), value)
            else:
                self.result.parameters[path] = position
                self._leaf(node, Node(node.name, "placeholder", role="parameter", path=path), value)
        elif isinstance(value, _SYMBOLIC):
            self.result.sizes.give(self.result.sizes.expression(value), position)

    def _attribute(self, node: fx.Node) -> None:
        value: Any = self.module
        for name in str(node.target).split("."):
            value = getattr(value, name)
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"a graph that holds a {type(value).__name__}")
        path = f"constants.{len(self.result.constants)}"
        self.result.constants[path] = value
        self._leaf(node, Node(node.name, "placeholder", role="buffer", path=path), value)

    def _leaf(self, node: fx.Node, made: Node, value: torch.Tensor) -> None:
        made.type = self._type(value)
        self.placeholders.append(made)
        self.nodes[node] = made

    def _call(self, node: fx.Node) -> None:
        value = node.meta.get("val")
        if str(node.target) in _CHECKS:
            return
        if isinstance(value, _SYMBOLIC):
            return  # stands as an expression wherever it is used
        if node.target is operator.getitem:
            target: Any = GETITEM
        elif isinstance(node.target, torch._ops.OpOverload):
            target = node.target
        else:
            raise ValueError(f"{node.target} is no ATen operator")
        made = Node(
            node.name,
            "call",
            target=target,
            args=self._arguments(node.args),
            kwargs=self._arguments(node.kwargs),
            type=self._type(value),
            module=_module_of(node),
            source=_source_of(node),
        )
        self.calls.append(made)
        self.nodes[node] = made
        if any(source in self.computed for source in node.all_input_nodes):
            self.computed.add(node)

    def _output(self, node: fx.Node) -> None:
        tensors: list[Node] = []
        # An argument that the graph may have written to has to come out of the plan.
        arguments = {} if _mutates(self.module) else self.positions
        for item in pytree.tree_leaves(node.args):
            value = item.meta.get("val") if isinstance(item, fx.Node) else item
            if item in arguments:
                self.result.outputs.append(Argument(arguments[item]))
            elif isinstance(value, torch.Tensor):
                shared = _root(item).op != "call_function" or item not in self.computed
                self.result.outputs.append(Tensor(len(tensors), shared, _order(value)))
                tensors.append(self.nodes[item])
            elif isinstance(value, _SYMBOLIC):
                expression = self.result.sizes.expression(value)
                self.result.sizes.use(expression)
                self.result.outputs.append(Size(expression))
            else:
                self.result.outputs.append(Constant(value))
        self.calls.append(Node("output", "output", args=tuple(tensors)))

    def _arguments(self, value: Any) -> Any:
        if isinstance(value, fx.Node):
            known = value.meta.get("val")
            if value in self.nodes:
                return self.nodes[value]
            if isinstance(known, torch.SymInt):
                return known
            if isinstance(known, torch.SymFloat):
                # A guard on the number: another one compiles again.
                return float(known)
            if isinstance(known, torch.SymBool):
                return bool(known)
            return known
        if isinstance(value, (list, tuple)):
            return [self._arguments(item) for item in value]
        if isinstance(value, slice):
            raise ValueError("a slice as an argument")
        if isinstance(value, Mapping):
            return {name: self._arguments(item) for name, item in value.items()}
        return value

    def _type(self, value: Any) -> ValueType:
        if value is None:
            return None
        if isinstance(value, torch.Tensor):
            if value.layout != torch.strided:
                raise ValueError(f"a tensor of layout {value.layout}")
            shape = tuple(self.result.sizes.dimension(size) for size in value.shape)
            return TensorType(value.dtype, shape, value.device, value)
        if isinstance(value, (list, tuple)):
            return tuple(self._type(item) for item in value)
        raise ValueError(f"a result of type {type(value).__name__}")


def place_of(node: fx.Node) -> str:
    """For messages: the node, its operator, module and line."""
    where = ", ".join(
        text for text in (str(node.target), _module_of(node), _source_of(node)) if text
    )
    return f"{node.name} ({where})"


# fmt: off
_MOVEMENTS = frozenset({
    "_to_copy", "_unsafe_view", "alias", "as_strided", "chunk", "clone", "contiguous",
    "convert_element_type", "copy", "detach", "diagonal", "expand", "flatten", "lift_fresh",
    "lift_fresh_copy", "movedim", "narrow", "permute", "reshape", "select", "slice", "split",
    "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unflatten", "unsqueeze", "view",
})
# fmt: on
"""Operators whose result may lie in the memory of their first argument on MLX."""


def _root(node: fx.Node) -> fx.Node:
    """What a chain of movements begins with."""
    while node.op == "call_function":
        overload = isinstance(node.target, torch._ops.OpOverload)
        moves = overload and node.target._opname in _MOVEMENTS  # type: ignore[union-attr]
        if not (moves or node.target is operator.getitem):
            break
        source = node.args[0]
        if not isinstance(source, fx.Node):
            break
        node = source
    return node


def _order(value: torch.Tensor) -> tuple[int, ...] | None:
    """The axes by their strides, if that is another order than row-major without gaps."""
    sizes = [_hint(size) for size in value.shape]
    strides = [_hint(stride) for stride in value.stride()]
    if None in sizes or None in strides:
        return None
    axes = [axis for axis, size in enumerate(sizes) if size != 1]
    if any(strides[axis] == 0 for axis in axes):
        return None
    by_stride = iter(sorted(axes, key=lambda axis: -strides[axis]))  # type: ignore[operator]
    order = tuple(next(by_stride) if axis in axes else axis for axis in range(len(sizes)))
    return None if order == tuple(range(len(sizes))) else order


def _hint(size: int | torch.SymInt) -> int | None:
    return size if isinstance(size, int) else size.node.hint


def _mutates(graph_module: fx.GraphModule) -> bool:
    targets = (node.target for node in graph_module.graph.nodes)
    return any(isinstance(t, torch._ops.OpOverload) and t._schema.is_mutable for t in targets)


def _shape_env(graph_module: fx.GraphModule) -> Any:
    for node in graph_module.graph.nodes:
        for value in pytree.tree_leaves(node.meta.get("val")):
            if isinstance(value, _SYMBOLIC):
                return value.node.shape_env
            if isinstance(value, torch.Tensor):
                for size in value.shape:
                    if isinstance(size, torch.SymInt):
                        return size.node.shape_env
    return None


def _module_of(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path = list(stack.values())[-1][0]
    path = re.sub(r"^L\['\w+'\]\.?|^L__\w+?___?", "", str(path))
    return re.sub(r"\._modules\['([^']*)'\]|\['([^']*)'\]", r".\1\2", path).strip(".")


_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


def _source_of(node: fx.Node) -> str:
    """The innermost line that is not torch's own."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    own = [frame for frame in frames if "/torch/" not in frame[0]] or frames
    if not own:
        return ""
    path, line = own[-1]
    return f"{path.rpartition('/site-packages/')[2]}:{line}"
