# SPDX-License-Identifier: Apache-2.0
"""Sparse attention by an index: which keys each token is to see, and attention to those alone.

The index keeps a key of its own for each token, in a cache of its own, and scores with it all keys
of a request for each query (DeepSeek Sparse Attention, arXiv:2512.02556):

    score(t, s) = sum_h w[t, h] relu(q[t, h] . k[s]),   s <= t

The `count` best are what the attention of that token sees. `select_keys` names them by position,
`sparse_attention` takes the names. In capture both operators are opaque; here is what they do on
vLLM's paged caches. Where a token sees at most `count` keys, it sees all of them.
"""

from typing import Any

import torch
from vllm.forward_context import get_forward_context

from vllm_metal.attention import MetalAttentionMetadata, read_kv_cache, write_kv_cache

_library = torch.library.Library("vllm_metal", "FRAGMENT")


def select_keys(
    q: torch.Tensor, k: torch.Tensor, weights: torch.Tensor, count: int, layer: str
) -> torch.Tensor:
    """Writes k [num_tokens, 1, head_size] to the layer's cache; int32[num_tokens, count], the
    positions of the keys with the best scores for q [num_tokens, num_heads, head_size] and weights
    [num_tokens, num_heads], -1 where a token sees less than `count`."""
    selected = q.new_full((q.shape[0], count), -1, dtype=torch.int32)
    context = get_forward_context()
    if context.attn_metadata is None:  # vLLM's profiling run
        return selected
    metadata: MetalAttentionMetadata = context.attn_metadata[layer]
    cache = context.no_compile_layers[layer].kv_cache
    pages = cache.unsqueeze(1) if cache.dim() == 3 else cache
    write_kv_cache(pages, k, k[..., :0], metadata.slot_mapping)
    starts = metadata.query_start_loc
    for request, seq_len in enumerate(metadata.seq_lens):
        rows = slice(starts[request], starts[request + 1])
        if rows.start == rows.stop:
            continue
        keys = read_kv_cache(pages, metadata.block_table[request], 0, seq_len)[0]
        products = torch.relu(q[rows].float() @ keys.float().T)
        scores = (weights[rows].float().unsqueeze(1) @ products).squeeze(1)
        positions = torch.arange(seq_len - (rows.stop - rows.start), seq_len)
        seen = positions[:, None] >= torch.arange(seq_len)
        best = scores.masked_fill(~seen, float("-inf")).topk(min(count, seq_len)).indices
        names = torch.where(best <= positions[:, None], best, -1)
        selected[rows, : names.shape[1]] = names.to(torch.int32)
    return selected


def sparse_attention(
    q: torch.Tensor, selected: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: str
) -> torch.Tensor:
    """The layer's attention, [num_tokens, num_heads, head_size_v], as that of vLLM's
    `unified_attention_with_output`, to the keys at positions selected int32[num_tokens, count]."""
    output = q.new_zeros((*q.shape[:-1], v.shape[-1]))
    context = get_forward_context()
    if context.attn_metadata is not None:
        owner: Any = context.no_compile_layers[layer]
        metadata = context.attn_metadata[layer]
        owner.impl.forward(owner, q, k, v, owner.kv_cache, metadata, output, selected=selected)
    return output


_library.define("select_keys(Tensor q, Tensor k, Tensor weights, int count, str layer) -> Tensor")
_library.impl("select_keys", select_keys, "CPU")
_library.define(
    "sparse_attention(Tensor q, Tensor selected, Tensor k, Tensor v, str layer) -> Tensor"
)
_library.impl("sparse_attention", sparse_attention, "CPU")


@torch.library.register_fake("vllm_metal::select_keys", lib=_library)
def _selected_like(
    q: torch.Tensor, k: torch.Tensor, weights: torch.Tensor, count: int, layer: str
) -> torch.Tensor:
    return q.new_empty((q.shape[0], count), dtype=torch.int32)


@torch.library.register_fake("vllm_metal::sparse_attention", lib=_library)
def _attended_like(
    q: torch.Tensor, selected: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: str
) -> torch.Tensor:
    return q.new_empty((*q.shape[:-1], v.shape[-1]))
