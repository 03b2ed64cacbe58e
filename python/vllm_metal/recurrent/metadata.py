# SPDX-License-Identifier: Apache-2.0
"""Which state each request of a step reads and writes, from vLLM's block table.

A request's state lies in one block. vLLM keeps earlier ones for prefix caching where
`mamba_cache_mode` is "align": then the state after n tokens is in the block of token n - 1, and a
step may read one block and write another.
"""

from dataclasses import dataclass
from typing import Any

import torch
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionMetadata,
    AttentionMetadataBuilder,
    CommonAttentionMetadata,
)
from vllm.v1.kv_cache_interface import MambaSpec


@dataclass
class MetalStateMetadata(AttentionMetadata):
    """One step's batch, for all layers of a KV-cache group. Request i owns the rows
    query_start_loc[i]..query_start_loc[i + 1]."""

    query_start_loc: list[int]
    read_slots: list[int]
    """The block that holds a request's state, -1 where it has none yet."""
    write_slots: list[int]


class MetalStateMetadataBuilder(AttentionMetadataBuilder[MetalStateMetadata]):
    kv_cache_spec: MambaSpec

    def __init__(
        self,
        kv_cache_spec: MambaSpec,
        layer_names: list[str],
        vllm_config: Any,
        device: torch.device,
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        aligned = vllm_config.cache_config.mamba_cache_mode == "align"
        self.block_size: int | None = kv_cache_spec.block_size if aligned else None

    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: CommonAttentionMetadata,
        fast_build: bool = False,
        **kwargs: Any,
    ) -> MetalStateMetadata:
        common = common_attn_metadata
        starts = common.query_start_loc_cpu
        ends = common.seq_lens[: common.num_reqs].cpu().long()
        before = ends - starts.diff()[: common.num_reqs]
        return MetalStateMetadata(
            query_start_loc=starts[: common.num_reqs + 1].tolist(),
            read_slots=self._blocks(common.block_table_tensor, before),
            write_slots=self._blocks(common.block_table_tensor, ends),
        )

    def _blocks(self, block_table: torch.Tensor, lengths: torch.Tensor) -> list[int]:
        """Block of each request's state after so many tokens."""
        block_table = block_table[: lengths.shape[0]]
        columns = torch.zeros_like(lengths)
        if self.block_size is not None:
            columns = ((lengths - 1) // self.block_size).clamp(min=0)
        blocks = block_table.gather(1, columns[:, None])[:, 0]
        return torch.where(lengths > 0, blocks.long(), -1).tolist()


class MetalStateBackend(AttentionBackend):
    """What vLLM asks of a state layer: how its metadata is built."""

    @staticmethod
    def get_name() -> str:
        return "CUSTOM"

    @staticmethod
    def get_impl_cls() -> Any:
        raise NotImplementedError("state layers carry out their own recurrence")

    @staticmethod
    def get_builder_cls() -> type[MetalStateMetadataBuilder]:
        return MetalStateMetadataBuilder

    @classmethod
    def is_ssm(cls) -> bool:
        return True
