# SPDX-License-Identifier: Apache-2.0
"""Records the operators that a model runs on fake tensors.

``make_fx`` records the same with a multiple of the work per node (proxies, tree maps, stack traces
as text), and an 80-layer model has to be captured in seconds. Operators arrive here below autograd:
composite ones (``linear``, ``matmul``) are taken apart already, vLLM's own are still whole.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sympy
import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    FakeTensor,
    FakeTensorMode,
    in_kernel_invocation_manager,
    unset_fake_temporarily,
)
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode

from vllm_metal.capture import sources
from vllm_metal.capture.errors import CaptureError, TokenCountGuardError
from vllm_metal.capture.symbols import GuardFreeShapeEnv, SymbolNames, token_count
from vllm_metal.fx import GETITEM, Node, TensorType, ValueType

_aten = torch.ops.aten

_ALIASES = frozenset({_aten.detach.default, _aten.alias.default, _aten.lift_fresh.default})
"""Operators whose result is their argument: they get no node of their own."""

_SIZE_BOUND = frozenset({_aten.constant_pad_nd.default})
"""Operators whose kernel takes sizes for numbers: PyTorch's decomposition tells their result."""

_READS = frozenset({_aten.item.default, _aten._local_scalar_dense.default})
"""Operators that make a Python number of a tensor."""


class Trace(TorchDispatchMode):
    """A dispatch mode that appends every operator to ``nodes``.

    ``count`` is the graph's symbolic number of tokens or rows; ``trace_tokens`` is what it pretends
    to be. ``input`` and ``weight`` make the tensors to run the model on. A real tensor that the
    model uses without being given it becomes a placeholder by itself and is kept in ``constants``.
    """

    def __init__(self, model: nn.Module, trace_tokens: int) -> None:
        super().__init__()
        self.shape_env = GuardFreeShapeEnv(self._refuse_guard)
        self.fake_mode = FakeTensorMode(shape_env=self.shape_env, allow_non_fake_inputs=True)
        self.count = token_count(self.fake_mode, trace_tokens)
        self.names = SymbolNames(self.count)
        self.placeholders: list[Node] = []
        self.calls: list[Node] = []
        self.constants: dict[str, torch.Tensor] = {}
        self._module_paths = {id(module): path for path, module in model.named_modules()}
        self._stack: list[tuple[nn.Module, str]] = [(model, "")]
        self._counts: dict[str, int] = {}
        # By identity of the tensor, so no tensor that was seen may die before the trace ends.
        self._nodes: dict[int, Node] = {}
        self._stand_ins: dict[int, torch.Tensor] = {}
        self._keep_alive: list[torch.Tensor] = []
        self._types: dict[Any, TensorType] = {}
        self._results: dict[Any, Any] = {}

    @property
    def nodes(self) -> list[Node]:
        """Placeholders, then calls (then the output), in order."""
        return self.placeholders + self.calls

    def input(self, name: str, shape: tuple[Any, ...], dtype: torch.dtype) -> torch.Tensor:
        """A fake CPU tensor that is an input of the graph."""
        with self.fake_mode:
            value = torch.empty(shape, dtype=dtype, device="cpu")
        node = Node(name, "placeholder", self._type_of(value), role="input")
        return self._place(node, value)

    def weight(self, role: str, path: str, real: torch.Tensor) -> torch.Tensor:
        """A fake CPU tensor for a parameter or buffer; a use of ``real`` itself means it too."""
        with self.fake_mode:
            value = torch.empty_strided(real.shape, real.stride(), dtype=real.dtype, device="cpu")
        node = Node(self._name(role), "placeholder", self._type_of(value), path=path)
        node.role = role  # type: ignore[assignment]
        self._stand_ins[id(real)] = self._place(node, value)
        self._keep_alive.append(real)
        return value

    def finish(self, output: Any) -> None:
        """End with the model's output: a tensor, or a list or tuple of them."""
        refs = self._reference(output)
        flat = refs if isinstance(refs, (list, tuple)) else (refs,)
        if not flat or not all(isinstance(item, Node) for item in flat):
            raise CaptureError(f"the model returns {type(output).__name__}, not tensors")
        self.calls.append(Node("output", "output", args=tuple(flat)))

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record what runs inside. What fails is raised as a ``CaptureError`` with its place."""
        enter = register_module_forward_pre_hook(self._enter_module)
        leave = register_module_forward_hook(self._leave_module)
        try:
            with torch.no_grad(), self.fake_mode, self:
                yield
        except CaptureError:
            raise
        except Exception as error:
            line = sources.of_traceback(error.__traceback__)
            text = str(error).strip().splitlines() or [""]
            raise CaptureError(
                f"{self._place_text(line)} can't be captured: {type(error).__name__}: {text[0]}"
            ) from error
        finally:
            enter.remove()
            leave.remove()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        refs, keyword_refs = self._reference(args), self._reference(kwargs)
        if func in _ALIASES:
            result = func(*self._fake(args), **kwargs)
            self._track(result, refs[0])
            return result
        if func in _READS:
            return self._read(refs[0])
        # The output type of a call depends on the types of its arguments alone, so a model's layers
        # after the first find all of theirs here. An in-place operator returns its argument itself.
        key = None
        if not (func._schema.is_mutable and func.namespace == "aten"):
            key = (func, _key(refs), _key(keyword_refs))
            known = self._results.get(key)
            if known is not None:
                return self._record(func, refs, keyword_refs, _map(known, self._tensor_of))
        compute = torch._decomp.decomposition_table[func] if func in _SIZE_BOUND else func
        result = compute(*self._fake(args), **self._fake(kwargs))
        if not _has_tensor(result) and not func._schema.is_mutable:
            return result  # a question (device, size, contiguity), not a computation
        if key is not None and _has_tensor(result) and not _has_any(result, self._nodes):
            self._results[key] = _map(result, self._type_of)
        return self._record(func, refs, keyword_refs, result)

    def _read(self, node: Node) -> Any:
        if node.path in self.constants:
            with unset_fake_temporarily():
                return self.constants[node.path].item()
        raise CaptureError(
            f"{self._place_text(sources.of_caller())} makes a Python number of {node.name}'s "
            "contents, which differ from step to step"
        )

    def _record(self, func: Any, args: Any, kwargs: Any, result: Any) -> Any:
        node = Node(
            self._name(func._opname),
            "call",
            target=func,
            args=args,
            kwargs=kwargs,
            module=self._stack[-1][1],
            source=sources.of_caller(),
        )
        self.calls.append(node)
        if isinstance(result, torch.Tensor):
            node.type = self._track(result, node)
        elif isinstance(result, (list, tuple)):
            node.type = tuple(self._project(node, i, item) for i, item in enumerate(result))
        return result

    def _project(self, node: Node, index: int, value: Any) -> ValueType:
        if not isinstance(value, torch.Tensor):
            return None
        item = Node(
            f"{node.name}_{index}",
            "call",
            target=GETITEM,
            args=(node, index),
            module=node.module,
            source=node.source,
        )
        self.calls.append(item)
        item.type = self._track(value, item)
        return item.type

    def _place(self, node: Node, value: torch.Tensor) -> torch.Tensor:
        self.placeholders.append(node)
        self._track(value, node)
        return value

    def _track(self, value: torch.Tensor, node: Node) -> TensorType:
        if id(value) in self._nodes:
            # An in-place operator gave its argument back, and may have changed its shape.
            value._capture_type = None  # type: ignore[attr-defined]
        self._nodes[id(value)] = node
        self._keep_alive.append(value)
        return self._type_of(value)

    def _name(self, stem: str) -> str:
        number = self._counts[stem] = self._counts.get(stem, -1) + 1
        return f"{stem}.{number}"

    def _type_of(self, value: torch.Tensor) -> TensorType:
        known = getattr(value, "_capture_type", None)
        if known is not None:
            return known
        shape = tuple(self.names.dimension(size) for size in value.shape)
        strides = tuple(self.names.dimension(stride) for stride in value.stride())
        key = (value.dtype, shape, strides, value.device, str(value.storage_offset()))
        found = self._types.get(key)
        if found is None:
            with in_kernel_invocation_manager(self.fake_mode):
                meta = torch.Tensor._make_subclass(torch.Tensor, value)
            found = self._types[key] = TensorType(value.dtype, shape, value.device, meta)
        return found

    def _tensor_of(self, kind: TensorType) -> torch.Tensor:
        value = FakeTensor(self.fake_mode, kind.meta, kind.device)
        value._capture_type = kind  # type: ignore[attr-defined]
        return value

    def _stand_in(self, value: torch.Tensor) -> torch.Tensor:
        if id(value) in self._nodes:
            return value
        known = self._stand_ins.get(id(value))
        if known is not None:
            return known
        if isinstance(value, FakeTensor) or value.is_meta:
            raise CaptureError(
                f"{self._place_text(sources.of_caller())} uses a tensor of shape "
                f"{list(value.shape)} that is neither an input, a registered parameter or buffer, "
                "nor computed in this pass"
            )
        path = f"constants.{len(self.constants)}"
        self.constants[path] = value
        return self.weight("buffer", path, value)

    def _reference(self, value: Any) -> Any:
        return _map(value, lambda tensor: self._nodes[id(self._stand_in(tensor))])

    def _fake(self, value: Any) -> Any:
        return _map(value, self._stand_in)

    def _enter_module(self, module: nn.Module, args: Any) -> None:
        self._stack.append((module, self._module_paths.get(id(module), self._stack[-1][1])))

    def _leave_module(self, module: nn.Module, args: Any, output: Any) -> None:
        # Modules that raised have stayed on the stack: that is how an error knows its place.
        while len(self._stack) > 1 and self._stack.pop()[0] is not module:
            pass

    def _place_text(self, line: str) -> str:
        return f"module {self._stack[-1][1] or '(the model)'} at {line or 'an unknown line'}"

    def _refuse_guard(self, condition: sympy.Basic) -> None:
        raise TokenCountGuardError(
            f"{self._place_text(sources.of_caller())} decides on the number of tokens: "
            f"{self.names.text(condition)}. One graph has to serve every number of tokens, so the "
            "model can't be captured as it is"
        )


def _map(value: Any, change: Any) -> Any:
    """``value`` with ``change`` applied to its tensors (or tensor types)."""
    if isinstance(value, (torch.Tensor, TensorType)):
        return change(value)
    if isinstance(value, (list, tuple)):
        items = [_map(item, change) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, dict):
        return {key: _map(item, change) for key, item in value.items()}
    return value


def _key(value: Any) -> Any:
    """A hashable form of arguments: nodes count by their type, 1 and 1.0 and True are different."""
    if isinstance(value, Node):
        return value.type
    if isinstance(value, (list, tuple)):
        return tuple([_key(item) for item in value])
    if isinstance(value, dict):
        return tuple([(name, _key(item)) for name, item in value.items()])
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return value.node.expr
    return type(value), value


def _has_tensor(value: Any) -> bool:
    return _has_any(value, None)


def _has_any(value: Any, ids: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return ids is None or id(value) in ids
    return isinstance(value, (list, tuple)) and any(_has_any(item, ids) for item in value)
