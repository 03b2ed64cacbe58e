# SPDX-License-Identifier: Apache-2.0
"""Calls of single ATen overloads: those that PyTorch's operator database makes, and a few by hand.

The database's functions reach some overloads only through other ones, or in place never: what is
claimed of those would otherwise be untried.
"""

import copy
import itertools
import operator
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ops import harness
from vllm_metal.compile.convert import convert
from vllm_metal.compile.graph import LoweredGraph

Arguments = tuple[tuple[Any, ...], dict[str, Any]]

KEPT = 3
"""Calls of an overload that are kept for each dtype of the first tensor."""


def _dtype(given: Arguments) -> torch.dtype | None:
    leaves = pytree.tree_leaves(given)
    return next((leaf.dtype for leaf in leaves if isinstance(leaf, torch.Tensor)), None)


@dataclass
class Recorder(TorchDispatchMode):
    """Keeps the arguments of the first calls of each overload, as they were before the call."""

    calls: dict[str, list[Arguments]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run the call as it is."""
        given = (tuple(args), dict(kwargs or {}))
        kept = self.calls.setdefault(str(func), [])
        if [_dtype(other) for other in kept].count(_dtype(given)) < KEPT:
            kept.append(copy.deepcopy(given))
        return func(*given[0], **given[1])


def record() -> dict[str, list[Arguments]]:
    """Calls by overload, of all entries of the database in float32, int64 and bool."""
    recorder = Recorder()
    for op in harness.entries():
        for dtype in (torch.float32, torch.int64, torch.bool):
            if dtype in harness.dtypes(op):
                with warnings.catch_warnings(), torch.no_grad():
                    warnings.simplefilter("ignore")
                    try:
                        for sample in itertools.islice(op.sample_inputs("cpu", dtype), 6):
                            args = copy.deepcopy((sample.input, *sample.args))
                            with recorder:
                                op(*args, **sample.kwargs)
                    except Exception:  # an entry that needs what is not here: others go on
                        continue
    return recorder.calls


def overload(target: str) -> Any:
    """The overload of a name such as ``aten.add.Tensor``."""
    namespace, name, which = target.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), name), which)


def eager(target: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What PyTorch gives; the arguments stay as they are."""
    function = REFERENCES.get(target, overload(target))
    return function(*copy.deepcopy(args), **copy.deepcopy(kwargs))


def calls_of(target: str, recorded: dict[str, list[Arguments]]) -> list[Arguments]:
    """Arguments for a target, or for the one that it is the in-place form of."""
    namespace, name, which = target.split(".")
    twin = f"{namespace}.{name.removesuffix('_')}.{which}"
    by_hand = BY_HAND.get(target, BY_HAND.get(twin, []))
    return [(args, KEYWORDS.get(which, {})) for args in by_hand] + recorded.get(
        target, recorded.get(twin, [])
    )


def lower_call(
    target: str, args: tuple[Any, ...], kwargs: dict[str, Any], results: int | None = None
) -> LoweredGraph:
    """A graph of that one call, undecomposed, with its first ``results`` or all of them; what it
    writes to is copied before.

    Its arguments are the call's tensors in order. Raises ValueError for what is not lowered.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    graph = fx.Graph()

    def value(tensor: torch.Tensor) -> Any:
        return fake.from_tensor(tensor)

    def placeholder(tensor: torch.Tensor) -> fx.Node:
        node = graph.placeholder(f"x{len(graph.nodes)}")
        node.meta["val"] = value(tensor)
        return node

    function = overload(target)
    nodes, named = pytree.tree_map_only(torch.Tensor, placeholder, (args, kwargs))
    if function._schema.is_mutable:
        copied = graph.call_function(torch.ops.aten.clone.default, (nodes[0],))
        copied.meta["val"] = value(args[0])
        nodes = (copied, *nodes[1:])
    call = graph.call_function(function, tuple(nodes), named)
    expected = eager(target, args, kwargs)
    call.meta["val"] = pytree.tree_map_only(torch.Tensor, value, expected)
    outputs: Any = call
    if isinstance(expected, tuple | list):
        outputs = []
        for index, item in enumerate(call.meta["val"][:results]):
            outputs.append(graph.call_function(operator.getitem, (call, index)))
            outputs[-1].meta["val"] = item
    graph.output(outputs)
    module = fx.GraphModule(torch.nn.Module(), graph)
    return LoweredGraph("call", convert(module, {}), refuse_fallback=True)


KEYWORDS: dict[str, dict[str, Any]] = {
    "Scalar_mode": {"rounding_mode": "floor"},
    "ScalarOpt_dim_dtype": {"dtype": torch.float32},
    "ScalarOpt_dtype": {"dtype": torch.float32},
    "value_reduce": {"reduce": "add"},
}
"""What calls by hand give by keyword, by the name of the overload."""


def _efficient_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any
) -> tuple[torch.Tensor, ...]:
    attended = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    return (attended, *[torch.zeros(0)] * 3)


REFERENCES = {"aten._scaled_dot_product_efficient_attention.default": _efficient_attention}
"""What has no kernel on the CPU, from what has."""


def _x(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(shape) + sum(shape))
    return torch.randn(*shape, generator=generator)


def _n(*shape: int, below: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(0, below, shape, generator=generator)


_ATTENTION = (_x(2, 3, 4, 8), _x(2, 3, 5, 8), _x(2, 3, 5, 8))

BY_HAND: dict[str, list[tuple[Any, ...]]] = {
    "aten.__lshift__.Scalar": [(_n(4), 3)],
    "aten.__lshift__.Tensor": [(_n(4), _n(3, 4))],
    "aten.__rshift__.Scalar": [(_n(4, below=99), 3)],
    "aten.__rshift__.Tensor": [(_n(4, below=99), _n(3, 4))],
    "aten._batch_norm_no_update.default": [
        (_x(2, 3, 4), _x(3), _x(3), _x(3), _x(3) ** 2, 0.1, 1e-5)
    ],
    "aten._euclidean_dist.default": [(_x(4, 3), _x(5, 3))],
    "aten._fused_rms_norm.default": [(_x(4, 6), [6], _x(6), 1e-6), (_x(4, 6), [6], None, None)],
    "aten._native_batch_norm_legit.no_stats": [(_x(2, 3, 4), _x(3), _x(3), True, 0.1, 1e-5)],
    "aten._native_batch_norm_legit_no_training.default": [
        (_x(2, 3, 4), _x(3), _x(3), _x(3), _x(3) ** 2, 0.1, 1e-5)
    ],
    "aten._scaled_dot_product_attention_math.default": [_ATTENTION],
    "aten._scaled_dot_product_efficient_attention.default": [(*_ATTENTION, None, False)],
    "aten._unsafe_index.Tensor": [(_x(4, 5), [_n(3, below=4), _n(3, below=5)])],
    "aten._unsafe_index_put.default": [(_x(4, 5), [torch.tensor([2, 0])], _x(2, 5))],
    "aten._upsample_nearest_exact2d.default": [(_x(1, 2, 4, 5), [8, 10])],
    "aten._upsample_nearest_exact3d.default": [(_x(1, 2, 3, 4, 5), [6, 8, 10])],
    "aten.adaptive_avg_pool1d.default": [(_x(2, 3, 8), [4])],
    "aten.all.dim": [(_x(3, 4) > -1, 1), (_n(3, 4), 0, True)],
    "aten.arange.start": [(2, 9)],
    "aten.avg_pool1d.default": [(_x(2, 3, 8), [3], [2], [1])],
    "aten.bitwise_and.Scalar": [(_n(4, below=99), 13)],
    "aten.bitwise_and.Scalar_Tensor": [(13, _n(4, below=99))],
    "aten.bitwise_left_shift.Scalar_Tensor": [(13, _n(4))],
    "aten.bitwise_left_shift.Tensor_Scalar": [(_n(4), 3)],
    "aten.bitwise_or.Scalar": [(_n(4, below=99), 13)],
    "aten.bitwise_or.Scalar_Tensor": [(13, _n(4, below=99))],
    "aten.bitwise_right_shift.Scalar_Tensor": [(1300, _n(4))],
    "aten.bitwise_right_shift.Tensor_Scalar": [(_n(4, below=99), 3)],
    "aten.bitwise_xor.Scalar": [(_n(4, below=99), 13)],
    "aten.bitwise_xor.Scalar_Tensor": [(13, _n(4, below=99))],
    "aten.broadcast_to.default": [(_x(3, 1), [2, 3, 4])],
    "aten.bucketize.Scalar": [(0.3, _x(9).sort().values)],
    "aten.ceil.default": [(_x(9),)],
    "aten.chunk.default": [(_x(7, 2), 3), (_x(2, 8), 2, -1)],
    "aten.clamp.default": [(_x(9), -0.5, 0.5), (_x(9), None, 0.5)],
    "aten.clamp_max.default": [(_x(9), 0.5)],
    "aten.concat.default": [([_x(2, 3), _x(4, 3)],), ([_x(2, 3), _x(2, 4)], -1)],
    "aten.contiguous.default": [(_x(3, 4).T,)],
    "aten.copy.default": [(_x(3, 4), _n(4))],
    "aten.copysign.Scalar": [(_x(9), -2.0)],
    "aten.detach_copy.default": [(_x(3),)],
    "aten.div.Scalar_mode": [(_x(9), 0.3), (_n(9), 3)],
    "aten.embedding.default": [(_x(5, 3), _n(2, 4))],
    "aten.expand_as.default": [(_x(3, 1), _x(2, 3, 4))],
    "aten.fill.Tensor": [(_x(3), torch.tensor(2.0))],
    "aten.fix.default": [(_x(9),)],
    "aten.flatten.using_ints": [(_x(2, 3, 4), 1)],
    "aten.floor_divide.Scalar": [(_x(9), 0.3), (_n(9) - 3, 2)],
    "aten.floor_divide.Tensor": [(_x(9), _x(3, 9)[1]), (_n(9) - 3, _n(9) + 1)],
    "aten.fmod.Scalar": [(_x(9), 0.3), (_n(9) - 3, 2)],
    "aten.ge.Scalar": [(_x(9), 0.3), (_n(9), 2)],
    "aten.gt.Scalar": [(_x(9), 0.3), (_n(9), 2)],
    "aten.index.Tensor": [(_x(4, 5), [None, _n(3, below=5)])],
    "aten.index_put.default": [(_x(4, 5), [torch.tensor([2, 0])], _x(2, 5))],
    "aten.isin.Scalar_Tensor": [(3, _n(9))],
    "aten.isin.Tensor_Scalar": [(_n(9), 3)],
    "aten.layer_norm.default": [(_x(4, 6), [6], _x(6), _x(6), 1e-5), (_x(4, 6), [6])],
    "aten.lerp.Tensor": [(_x(9), _x(3, 9)[1], _x(2, 9)[1])],
    "aten.lift_fresh_copy.default": [(_x(3),)],
    "aten.linear.default": [(_x(4, 6), _x(5, 6), _x(5)), (_x(2, 4, 6), _x(5, 6))],
    "aten.linspace.Tensor_Scalar": [(torch.tensor(1.5), 4.0, 5)],
    "aten.log_softmax.int": [(_x(4, 6), -1)],
    "aten.logspace.Tensor_Scalar": [(torch.tensor(0.5), 2.0, 5)],
    "aten.lt.Scalar": [(_x(9), 0.3), (_n(9), 2)],
    "aten.masked_fill.Scalar": [(_x(3, 4), _x(3, 4) > 0, 1.5)],
    "aten.matmul.default": [(_x(2, 4, 6), _x(6, 5)), (_x(6), _x(6))],
    "aten.max_pool1d.default": [(_x(2, 3, 8), [3], [2], [1])],
    "aten.max_pool2d.default": [(_x(2, 3, 8, 9), [3, 2], [2, 2], [1, 1])],
    "aten.max_pool3d.default": [(_x(2, 3, 4, 5, 6), [2, 2, 2])],
    "aten.movedim.int": [(_x(2, 3, 4), 0, -1)],
    "aten.mul.Scalar": [(_x(9), 0.3)],
    "aten.narrow.default": [(_x(6, 3), 0, 2, 3)],
    "aten.nll_loss2d_forward.default": [
        (_x(2, 3, 4, 5), _n(2, 4, 5, below=3), None, 1, -100),
        (_x(2, 3, 4, 5), _n(2, 4, 5, below=3), _x(3).exp(), 2, 1),
    ],
    "aten.norm.ScalarOpt_dim_dtype": [(_x(4, 5), 2, [1], False)],
    "aten.norm.ScalarOpt_dtype": [(_x(4, 5), 2)],
    "aten.norm.Scalar": [(_x(4, 5),), (_x(4, 5), 1)],
    "aten.pow.Scalar": [(2.5, _x(9))],
    "aten.pow_.Scalar": [(_x(9), 2.0), (_n(9), 3)],
    "aten.pow.Tensor_Tensor": [(_x(9).exp(), _x(3, 9)[1])],
    "aten.pow_.Tensor": [(_x(9).exp(), _x(3, 9)[1])],
    "aten.reflection_pad3d.default": [(_x(2, 3, 4, 5), [1, 2, 1, 1, 0, 2])],
    "aten.remainder.Scalar_Tensor": [(7, _n(9) + 1)],
    "aten.repeat_interleave.self_int": [(_x(3, 2), 2, 0)],
    "aten.replication_pad3d.default": [(_x(2, 3, 4, 5), [1, 2, 1, 1, 0, 2])],
    "aten.reshape.default": [(_x(6, 4), [2, -1])],
    "aten.reflection_pad2d.default": [(_x(2, 3, 4, 5), [1, 2, 1, 0])],
    "aten.rms_norm.default": [(_x(4, 6), [6], _x(6), 1e-6)],
    "aten.rrelu_with_noise.default": [(_x(9), _x(9), 0.1, 0.3, False)],
    "aten.scaled_dot_product_attention.default": [_ATTENTION],
    "aten.scatter.value": [(_x(4, 5), 0, _n(2, 5, below=4), 1.5)],
    "aten.scatter.value_reduce": [(_x(4, 5), 0, _n(1, 5, below=4), 1.5)],
    "aten.searchsorted.Scalar": [(_x(9).sort().values, 0.3)],
    "aten.select_copy.int": [(_x(4, 5), 1, -2)],
    "aten.slice_copy.Tensor": [(_x(9, 2), 0, 1, 8, 3)],
    "aten.softmax.int": [(_x(4, 6), -1)],
    "aten.special_logit.default": [(_x(9).sigmoid(),), (_x(9).sigmoid(), 0.3)],
    "aten.special_xlog1py.other_scalar": [(_x(9), 0.3)],
    "aten.special_xlog1py.self_scalar": [(0.3, _x(9).exp())],
    "aten.split.sizes": [(_x(9, 2), [2, 3, 4])],
    "aten.split_copy.Tensor": [(_x(9, 2), 4)],
    "aten.square.default": [(_x(9),)],
    "aten.squeeze_copy.dims": [(_x(1, 3, 1), [0, 2])],
    "aten.transpose_.default": [(_x(3, 4), 0, 1)],
    "aten.true_divide.Tensor": [(_x(9), _x(9)), (_n(9), _n(9) + 1)],
    "aten.unflatten.int": [(_x(6, 4), 0, [2, -1])],
    "aten.unsafe_chunk.default": [(_x(7, 2), 3)],
    "aten.unsafe_split_with_sizes.default": [(_x(9, 2), [2, 3, 4])],
    "aten.upsample_nearest3d.default": [(_x(1, 2, 3, 4, 5), [6, 8, 10])],
    "aten.where.Scalar": [(_x(9) > 0, 1.5, -2.0)],
    "aten.where.ScalarOther": [(_x(9) > 0, _x(9), -2.0)],
    "aten.where.ScalarSelf": [(_x(9) > 0, 1.5, _x(9))],
    "aten.xlogy.Scalar_Other": [(_x(9), 0.3)],
    "aten.xlogy.Scalar_Self": [(0.3, _x(9).exp())],
    "aten.zero.default": [(_x(3),)],
}
"""Positional arguments for overloads that no function of the database calls by themselves."""
