# SPDX-License-Identifier: Apache-2.0
"""Attention over vLLM's paged KV cache in PyTorch: the reference for the lowered attention.

vLLM allocates the cache as one view per layer, `[num_blocks, num_kv_heads, block_size,
head_size + head_size_v]` (K, then V, of a token side by side), whatever its physical order.
The code states the whole contract in the plainest way; speed is the lowered path's business.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionImpl,
    AttentionLayer,
    AttentionMetadata,
    AttentionMetadataBuilder,
    AttentionType,
    CommonAttentionMetadata,
)
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
from vllm.v1.kv_cache_interface import KVCacheSpec

# Scores of one request are computed for so many (head, query, key) triples at a time.
_SCORES_AT_ONCE = 1 << 24


@dataclass
class MetalAttentionMetadata(AttentionMetadata):
    """One step's batch, for all layers of a KV-cache group. Request i owns the query rows
    query_start_loc[i]..query_start_loc[i + 1], the last of its seq_lens[i] tokens."""

    query_start_loc: list[int]
    seq_lens: list[int]
    block_table: torch.Tensor
    """int32[num_reqs, max_num_blocks]"""
    slot_mapping: torch.Tensor
    """int64[num_actual_tokens]: where the new K and V go; -1 is padding"""
    num_actual_tokens: int
    causal: list[bool]
    bidirectional_ranges: dict[int, list[tuple[int, int]]]
    """Request -> (first, last) positions of multimodal spans that see all of themselves."""


class MetalAttentionMetadataBuilder(AttentionMetadataBuilder[MetalAttentionMetadata]):
    def __init__(
        self,
        kv_cache_spec: KVCacheSpec,
        layer_names: list[str],
        vllm_config: Any,
        device: torch.device,
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)

    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: CommonAttentionMetadata,
        fast_build: bool = False,
    ) -> MetalAttentionMetadata:
        common = common_attn_metadata
        causal = common.causal
        return MetalAttentionMetadata(
            query_start_loc=common.query_start_loc_cpu.tolist(),
            seq_lens=common.seq_lens.tolist(),
            block_table=common.block_table_tensor,
            slot_mapping=common.slot_mapping,
            num_actual_tokens=common.num_actual_tokens,
            causal=causal.tolist()
            if isinstance(causal, torch.Tensor)
            else [causal] * common.num_reqs,
            bidirectional_ranges=common.mm_req_doc_ranges or {},
        )


@dataclass(frozen=True)
class Visibility:
    """Which keys a query sees, by absolute positions."""

    causal: bool
    sliding_window: int | None
    bidirectional_ranges: tuple[tuple[int, int], ...] = ()
    clamp_ranges_to_window: bool = False

    def first_key(self, first_query: int) -> int:
        """No query from `first_query` on sees a key before this one."""
        if self.sliding_window is None:
            return 0
        starts = [start for start, end in self.bidirectional_ranges if end >= first_query]
        return max(0, min([first_query - self.sliding_window + 1, *starts]))

    def mask(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """bool[len(queries), len(keys)], True where the key is seen."""
        distance = queries[:, None] - keys[None, :]
        seen = distance >= 0 if self.causal else torch.ones_like(distance, dtype=torch.bool)
        if self.sliding_window is not None:
            seen = seen & (distance.abs() < self.sliding_window)
        for start, end in self.bidirectional_ranges:
            span = ((queries >= start) & (queries <= end))[:, None]
            span = span & ((keys >= start) & (keys <= end))[None, :]
            if self.clamp_ranges_to_window and self.sliding_window is not None:
                span = span & (distance < self.sliding_window)
            seen = seen | span
        return seen


class MetalAttentionImpl(AttentionImpl[MetalAttentionMetadata]):
    """softmax(cap(scale * q k^T) + alibi, with sinks) v, in float32, over the keys in sight."""

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        logits_soft_cap: float | None = None,
        attn_type: str = AttentionType.DECODER,
        kv_sharing_target_layer_name: str | None = None,
        sinks: torch.Tensor | None = None,
        use_alibi_sqrt: bool = False,
        chunk_lookback: int = -1,
    ) -> None:
        if chunk_lookback > -1:
            raise NotImplementedError("attention to whole chunks of tokens before a query's own")
        self.num_heads = num_heads
        self.head_size = head_size
        self.scale = float(scale)
        self.num_kv_heads = num_kv_heads or num_heads
        self.alibi_slopes = alibi_slopes
        self.sliding_window = sliding_window
        self.kv_cache_dtype = kv_cache_dtype
        # Models write "no cap" as None and as 0.
        self.logits_soft_cap = logits_soft_cap or None
        self.attn_type = attn_type
        self.kv_sharing_target_layer_name = kv_sharing_target_layer_name
        self.sinks = sinks
        self.use_alibi_sqrt = use_alibi_sqrt

    def forward(
        self,
        layer: AttentionLayer,
        query: torch.Tensor,
        key: torch.Tensor | None,
        value: torch.Tensor | None,
        kv_cache: torch.Tensor,
        attn_metadata: MetalAttentionMetadata | None,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
        selected: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Write the new K and V to `kv_cache` and fill `output` [num_tokens, num_heads,
        head_size_v] from query [num_tokens, num_heads, head_size]; of all keys in sight, or of
        those at positions selected int32[num_tokens, count]."""
        if output_scale is not None or output_block_scale is not None:
            raise NotImplementedError("attention with a quantised output")
        if attn_metadata is None:  # vLLM's profiling run
            return output.zero_()
        cached = self.attn_type not in (AttentionType.ENCODER, AttentionType.ENCODER_ONLY)
        # A layer that shares another's cache reads what that one wrote.
        writes = cached and self.kv_sharing_target_layer_name is None
        if writes and key is not None and value is not None:
            write_kv_cache(kv_cache, key, value, attn_metadata.slot_mapping)
        output[attn_metadata.num_actual_tokens :].zero_()

        starts = attn_metadata.query_start_loc
        for request, seq_len in enumerate(attn_metadata.seq_lens):
            rows = slice(starts[request], starts[request + 1])
            if rows.start == rows.stop:
                continue
            first_query = seq_len - (rows.stop - rows.start)
            if self.attn_type == AttentionType.ENCODER_DECODER:
                first_query = (
                    0  # all of the encoder's tokens are seen, their positions do not count
                )
            visibility = Visibility(
                attn_metadata.causal[request],
                self.sliding_window,
                tuple(attn_metadata.bidirectional_ranges.get(request, ())),
                getattr(layer, "mm_prefix_clamp_sliding_window", False),
            )
            first_key = visibility.first_key(first_query)
            if cached:
                tokens = read_kv_cache(
                    kv_cache, attn_metadata.block_table[request], first_key, seq_len
                )
                keys, values = self._keys_and_values(tokens)
            else:
                assert key is not None and value is not None
                first_key = 0
                keys, values = key[rows].transpose(0, 1), value[rows].transpose(0, 1)
            output[rows] = self._attend(
                query[rows],
                keys,
                values,
                first_query,
                first_key,
                visibility,
                None if selected is None else selected[rows],
            )
        return output

    def _keys_and_values(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of cached tokens [num_kv_heads, num_keys, row]."""
        return tokens[..., : self.head_size], tokens[..., self.head_size :]

    def _attend(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        first_query: int,
        first_key: int,
        visibility: Visibility,
        selected: torch.Tensor | None,
    ) -> torch.Tensor:
        """query [num_queries, num_heads, head_size], keys [num_kv_heads, num_keys, head_size],
        values [num_kv_heads, num_keys, head_size_v] -> [num_queries, num_heads, head_size_v]."""
        num_queries, num_keys = query.shape[0], keys.shape[1]
        if num_keys == 0:
            return values.new_zeros(num_queries, self.num_heads, values.shape[-1])
        keys, values = keys.float(), values.float()
        key_positions = torch.arange(first_key, first_key + num_keys)
        at_once = max(1, _SCORES_AT_ONCE // (self.num_heads * num_keys))
        parts = []
        for start in range(0, num_queries, at_once):
            part = query[start : start + at_once].float()
            positions = torch.arange(first_query + start, first_query + start + part.shape[0])
            seen = visibility.mask(positions, key_positions)
            if selected is not None:
                seen = seen & _names(selected[start : start + at_once], key_positions)
            parts.append(self._attend_rows(part, keys, values, positions, key_positions, seen))
        return torch.cat(parts)

    def _attend_rows(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        query_positions: torch.Tensor,
        key_positions: torch.Tensor,
        seen: torch.Tensor,
    ) -> torch.Tensor:
        num_queries, num_keys = query.shape[0], keys.shape[1]
        # Query heads that share a KV head become rows of one product: [kv_heads, group * queries].
        grouped = query.transpose(0, 1).reshape(self.num_kv_heads, -1, self.head_size)
        scores = (grouped @ keys.transpose(1, 2)) * self.scale
        scores = scores.view(self.num_heads, num_queries, num_keys)
        if self.logits_soft_cap is not None:
            scores = torch.tanh(scores / self.logits_soft_cap) * self.logits_soft_cap
        if self.alibi_slopes is not None:
            distance = (query_positions[:, None] - key_positions[None, :]).abs().float()
            distance = distance.sqrt() if self.use_alibi_sqrt else distance
            scores = scores - torch.tensor(self.alibi_slopes)[:, None, None] * distance
        scores = scores.masked_fill(~seen, float("-inf"))
        if self.sinks is not None:  # a key per head that takes probability and has no value
            sinks = self.sinks.float()[:, None, None].expand(-1, num_queries, 1)
            scores = torch.cat([scores, sinks], dim=-1)
        weights = scores.softmax(dim=-1)[..., :num_keys]
        grouped = weights.reshape(self.num_kv_heads, -1, num_keys) @ values
        return grouped.view(self.num_heads, num_queries, -1).transpose(0, 1)


def _names(selected: torch.Tensor, key_positions: torch.Tensor) -> torch.Tensor:
    """bool[num_queries, num_keys]: whether selected int[num_queries, count] names the key."""
    named = torch.zeros(selected.shape[0], int(key_positions[-1]) + 2, dtype=torch.bool)
    named.scatter_(1, selected.long() + 1, True)  # the first column is what -1 names
    return named[:, key_positions + 1]


def write_kv_cache(
    kv_cache: torch.Tensor, key: torch.Tensor, value: torch.Tensor, slot_mapping: torch.Tensor
) -> None:
    """Store key [num_tokens, num_kv_heads, head_size] and value [..., head_size_v] at their slots;
    slot -1 is padding and is left out."""
    count = min(key.shape[0], slot_mapping.shape[0])
    slots = slot_mapping[:count]
    rows = torch.nonzero(slots >= 0)[:, 0]
    slots = slots[rows]
    blocks, offsets = slots // kv_cache.shape[2], slots % kv_cache.shape[2]
    tokens = torch.cat([key[rows], value[rows]], dim=-1)
    kv_cache[blocks, :, offsets] = tokens.to(kv_cache.dtype)


def read_kv_cache(
    kv_cache: torch.Tensor, block_table: torch.Tensor, first: int, last: int
) -> torch.Tensor:
    """Rows [num_kv_heads, last - first, head_size + head_size_v] of a request's tokens first..last.

    Blocks outside that range are not touched: behind a sliding window vLLM has given them away.
    """
    block_size = kv_cache.shape[2]
    first_block = first // block_size
    blocks = block_table[first_block : -(-last // block_size)].long()
    tokens = kv_cache[blocks].transpose(0, 1).flatten(1, 2)
    return tokens[:, first - first_block * block_size : last - first_block * block_size]


@register_backend(AttentionBackendEnum.CUSTOM)
# Models whose values are narrower than their keys ask for these by name.
@register_backend(AttentionBackendEnum.FLASH_ATTN_DIFFKV)
@register_backend(AttentionBackendEnum.TRITON_ATTN_DIFFKV)
class MetalAttentionBackend(AttentionBackend):
    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.bfloat16, torch.float16, torch.float32]

    @staticmethod
    def get_name() -> str:
        return "CUSTOM"

    @staticmethod
    def get_impl_cls() -> type[MetalAttentionImpl]:
        return MetalAttentionImpl

    @staticmethod
    def get_builder_cls() -> type[MetalAttentionMetadataBuilder]:
        return MetalAttentionMetadataBuilder

    @classmethod
    def is_supported_on_current_device(
        cls, head_size: int, head_size_v: int, has_sinks: bool
    ) -> bool:
        return True

    @classmethod
    def set_head_size_v(cls, head_size_v: int) -> None:
        """Nothing to remember: each layer's values say how wide they are."""

    @classmethod
    def supports_attn_type(cls, attn_type: str) -> bool:
        return attn_type in list(AttentionType)

    @classmethod
    def supports_sink(cls) -> bool:
        return True

    @classmethod
    def supports_alibi_sqrt(cls) -> bool:
        return True

    @classmethod
    def supports_mm_prefix(cls) -> bool:
        return True

    @classmethod
    def supports_sliding_window(cls) -> bool:
        return True

    @classmethod
    def supports_non_causal(cls) -> bool:
        return True
