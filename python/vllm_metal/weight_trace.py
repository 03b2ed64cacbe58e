# SPDX-License-Identifier: Apache-2.0
"""Finds out which checkpoint tensors a model's parameters are made of, by watching vLLM load them.

vLLM's `load_weights` decides what goes where: fused projections, padded vocabularies, stacked
experts, transposes. No table of ours repeats that. While the real loader runs, every operator that
moves elements is seen: copies from a checkpoint's tensor are strided views on both sides, and what
passes through temporaries (`cat`, `clone`, indexing) is followed element by element.
"""

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from vllm.model_executor.model_loader import default_loader

_aten = torch.ops.aten

_COPIES = frozenset({_aten.clone.default, _aten._to_copy.default})
_MOVES = frozenset({
    _aten.index_select.default, _aten.index.Tensor, _aten.gather.default, _aten.flip.default,
    _aten.roll.default, _aten.repeat.default, _aten.take.default,
})  # fmt: skip

MAX_PIECES = 4096
"""A parameter of more pieces than this is not described by strided copies."""

# An index says where an element comes from: the source's number, then the element in it.
_SOURCE_BITS = 40
_UNKNOWN, _ZERO = -1, -2


class Unexplained(Exception):
    """A tensor is not a number of strided copies."""


@dataclass(frozen=True)
class _Strided:
    """Where elements lie in a storage or tensor, in elements."""

    shape: tuple[int, ...]
    offset: int
    strides: tuple[int, ...]

    @staticmethod
    def of(view: torch.Tensor) -> "_Strided":
        return _Strided(tuple(view.shape), view.storage_offset(), view.stride())


@dataclass(frozen=True)
class _Origin:
    """Elements of a checkpoint's tensor, or zeros where ``source`` is None."""

    source: int | None
    place: _Strided


@dataclass(frozen=True)
class _Write:
    """What was written to a place of a storage: elements of a source, an index of any elements, or
    None for what is neither."""

    to: _Strided
    content: _Origin | torch.Tensor | None


@dataclass
class _Memory:
    """A storage that something was written to. The reference keeps its address from being taken by
    another storage, and not its bytes."""

    reference: StorageWeakRef
    writes: list[_Write]


class WeightTrace(TorchDispatchMode):
    """Records, while it is active, where elements of checkpoint tensors are copied to."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self._tensors: list[torch.Tensor] = []
        self._sources: dict[int, int] = {}
        self._memories: dict[int, _Memory] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While vLLM's default loader loads from safetensors files."""
        original = default_loader.safetensors_weights_iterator

        def named(*args: Any, **options: Any) -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in original(*args, **options):
                self._sources[_storage(tensor)] = len(self.names)
                self.names.append(name)
                self._tensors.append(tensor)
                yield name, tensor
                self._forget_the_dead()

        default_loader.safetensors_weights_iterator = named
        try:
            with self:
                yield
        finally:
            default_loader.safetensors_weights_iterator = original

    def source(self, number: int) -> tuple[str, torch.Tensor]:
        """Name and tensor of a source."""
        return self.names[number], self._tensors[number]

    def pieces(self, tensor: torch.Tensor) -> list[dict[str, Any]]:
        """The recipe of a tensor: pieces as `src/runtime/weights/recipe.rs` reads them.

        Raises Unexplained.
        """
        if _storage(tensor) in self._sources:
            origin = self._origin(tensor)
            whole = _row_major(tuple(tensor.shape))
            return self._to_pieces(whole, origin)
        memory = self._memories.get(_storage(tensor))
        if memory is None:
            raise Unexplained
        if not tensor.is_contiguous():
            index = self._index(tensor, memory)
            return self._to_pieces(_row_major(tuple(tensor.shape)), index)
        found: list[dict[str, Any]] = []
        last = {write.to: position for position, write in enumerate(memory.writes)}
        first, size = tensor.storage_offset(), tensor.numel()
        for position, write in enumerate(memory.writes):
            if last[write.to] != position or math.prod(write.to.shape) == 0:
                continue  # written again, or nothing
            if write.content is None:
                continue  # what is still seen of it shows when the recipe is checked
            start = write.to.offset - first
            if 0 <= start < size:
                to = _Strided(write.to.shape, start, write.to.strides)
                found += self._to_pieces(to, write.content)
        return found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is _aten.copy_.default:
            self._write(args[0], self._origin(args[1].expand(args[0].shape)))
        elif func is _aten.zero_.default or (
            func is _aten.fill_.Scalar and not isinstance(args[1], complex) and args[1] == 0
        ):
            self._write(args[0], _Origin(None, _Strided.of(args[0])))
        elif func in _COPIES:
            self._write(result, self._origin(args[0]))
        elif func is _aten.cat.default:
            self._concatenate(result, args[0], args[1] if len(args) > 1 else 0)
        elif func is _aten.stack.default:
            dim = args[1] if len(args) > 1 else 0
            for position, part in enumerate(args[0]):
                self._write(result.select(dim, position), self._origin(part))
        elif func in _MOVES:
            index = self._origin(args[0], as_index=True)
            moved = None if index is None else func(index, *args[1:], **kwargs)
            self._write(result, moved)
        elif func._schema.is_mutable:
            self._spoil(func, args, kwargs)
        return result

    def _concatenate(self, result: torch.Tensor, parts: list[torch.Tensor], dim: int) -> None:
        start = 0
        for part in parts:
            if part.dim() != result.dim():  # torch lets an empty vector through
                continue
            length = part.shape[dim]
            self._write(result.narrow(dim, start, length), self._origin(part))
            start += length

    def _spoil(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for position, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            if isinstance(value, torch.Tensor):
                self._write(value, None)

    def _write(self, to: torch.Tensor, content: _Origin | torch.Tensor | None) -> None:
        key = _storage(to)
        if key in self._sources:
            del self._sources[key]  # the loader computes in a checkpoint's tensor
        if key not in self._memories:
            if content is None:
                return
            self._memories[key] = _Memory(StorageWeakRef(to.untyped_storage()), [])
        self._memories[key].writes.append(_Write(_Strided.of(to), content))

    def _origin(self, view: torch.Tensor, as_index: bool = False) -> Any:
        """Where the elements of a tensor come from; None where that is not known."""
        key = _storage(view)
        number = self._sources.get(key)
        if number is not None:
            source = self._tensors[number]
            if view.dtype != source.dtype:
                return None
            place = _Strided.of(view)
            first = place.offset - source.storage_offset()
            origin = _Origin(number, _Strided(place.shape, first, place.strides))
            return _indices(origin) if as_index else origin
        memory = self._memories.get(key)
        return None if memory is None else self._index(view, memory)

    def _index(self, view: torch.Tensor, memory: _Memory) -> torch.Tensor:
        size = view.untyped_storage().nbytes() // view.dtype.itemsize
        flat = torch.full((size,), _UNKNOWN, dtype=torch.int64)
        for write in memory.writes:
            target = flat.as_strided(write.to.shape, write.to.strides, write.to.offset)
            match write.content:
                case None:
                    target.fill_(_UNKNOWN)
                case _Origin(source=None):
                    target.fill_(_ZERO)
                case _Origin() as origin:
                    target.copy_(_indices(origin))
                case index:
                    target.copy_(index)
        return flat.as_strided(view.shape, view.stride(), view.storage_offset())

    def _to_pieces(self, to: _Strided, content: Any) -> list[dict[str, Any]]:
        if content is None:
            raise Unexplained
        if isinstance(content, _Origin):
            return [self._piece(to, content)]
        pieces: list[dict[str, Any]] = []
        for place, origin in _compress(to, content):
            pieces.append(self._piece(place, origin))
            if len(pieces) > MAX_PIECES:
                raise Unexplained
        return pieces

    def _piece(self, to: _Strided, origin: _Origin) -> dict[str, Any]:
        source = None if origin.source is None else self.names[origin.source]
        place = origin.place
        return {
            "source": source,
            "shape": list(to.shape),
            "from": {"offset": place.offset, "strides": list(place.strides)},
            "to": {"offset": to.offset, "strides": list(to.strides)},
        }

    def _forget_the_dead(self) -> None:
        dead = [key for key, memory in self._memories.items() if memory.reference.expired()]
        for key in dead:
            del self._memories[key]


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _row_major(shape: tuple[int, ...]) -> _Strided:
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * shape[axis + 1]
    return _Strided(shape, 0, tuple(strides))


def _indices(origin: _Origin) -> torch.Tensor:
    """int64 of the origin's shape: where each element comes from."""
    place = origin.place
    if origin.source is None:
        return torch.full(place.shape, _ZERO, dtype=torch.int64)
    index = torch.tensor((origin.source << _SOURCE_BITS) + place.offset)
    for axis, (size, stride) in enumerate(zip(place.shape, place.strides, strict=True)):
        steps = torch.arange(size) * stride
        index = index + steps.view(-1, *[1] * (len(place.shape) - 1 - axis))
    return index


def _compress(to: _Strided, index: torch.Tensor) -> Iterator[tuple[_Strided, _Origin]]:
    """Cuts an index into strided pieces. Raises Unexplained for elements of unknown origin."""
    origin = _as_origin(index)
    if origin is not None:
        yield to, origin
        return
    if bool((index == _UNKNOWN).any()):
        raise Unexplained
    cuts = [_cuts(index, axis) for axis in range(index.dim())]
    splitting = [axis for axis, places in enumerate(cuts) if len(places) > 2]
    if splitting:
        axis = min(splitting, key=lambda axis: len(cuts[axis]))
        places = cuts[axis]
    else:
        axis = max(range(index.dim()), key=lambda axis: index.shape[axis])
        places = list(range(index.shape[axis] + 1))
    if len(places) > MAX_PIECES:
        raise Unexplained
    for start, end in itertools.pairwise(places):
        shape = (*to.shape[:axis], end - start, *to.shape[axis + 1 :])
        part = _Strided(shape, to.offset + start * to.strides[axis], to.strides)
        yield from _compress(part, index.narrow(axis, start, end - start))


def _as_origin(index: torch.Tensor) -> _Origin | None:
    """The index as one strided view of a source, where it is one."""
    shape = tuple(index.shape)
    first = int(index[(0,) * index.dim()])
    if first < 0:
        is_zero = first == _ZERO and bool((index == _ZERO).all())
        return _Origin(None, _Strided(shape, 0, (0,) * len(shape))) if is_zero else None
    strides = []
    for axis, size in enumerate(shape):
        second = tuple(int(axis == other) for other in range(len(shape)))
        strides.append(int(index[second]) - first if size > 1 else 0)
    source, offset = first >> _SOURCE_BITS, first & ((1 << _SOURCE_BITS) - 1)
    last = int(index[tuple(size - 1 for size in shape)])
    if min(strides, default=0) < 0 or last >> _SOURCE_BITS != source:
        return None
    origin = _Origin(source, _Strided(shape, offset, tuple(strides)))
    return origin if torch.equal(_indices(origin), index) else None


def _cuts(index: torch.Tensor, axis: int) -> list[int]:
    """Where the step along an axis changes: starts of the stretches, and the end."""
    size = index.shape[axis]
    if size < 3:
        return [0, size]
    steps = index.diff(dim=axis).movedim(axis, 0).reshape(size - 1, -1)
    same = (steps[1:] == steps[:-1]).all(1).tolist()
    places, start = [0], 0
    while start < size:
        end = start
        while end < size - 2 and same[end]:
            end += 1
        start = min(end + 2, size)
        places.append(start)
    return places
