# SPDX-License-Identifier: Apache-2.0
"""FX documents: what capture and `torch.compile` hand to the lowering. Needs torch alone."""

from vllm_metal.fx.document import FORMAT, VERSION, document_bytes, graph_json
from vllm_metal.fx.encode import Sizes, encode_float
from vllm_metal.fx.graph import GETITEM, Node, TensorType, ValueType, live_nodes

__all__ = [
    "FORMAT",
    "GETITEM",
    "VERSION",
    "Node",
    "Sizes",
    "TensorType",
    "ValueType",
    "document_bytes",
    "encode_float",
    "graph_json",
    "live_nodes",
]
