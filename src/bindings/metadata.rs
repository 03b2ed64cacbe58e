// SPDX-License-Identifier: Apache-2.0
//! `AttentionMetadata` and `StateMetadata`: which tokens of a step belong to which request.

use super::dlpack;
use crate::runtime::error::Error;
use crate::runtime::{Metadata, StateMetadata};
use pyo3::prelude::*;
use std::sync::Arc;

/// Which tokens of a step belong to which request, for one KV-cache group.
///
/// block_table `[num_reqs, max_blocks]`, slot_mapping `[num_tokens]` (-1 is nowhere),
/// query_start_loc `[num_reqs + 1]` and seq_lens `[num_reqs]` are int32 or int64 CPU tensors and are
/// copied. `causal` is one bool, or one for each request; `spans` are (request, first, last) positions
/// whose tokens all see each other. All is checked when a step runs.
#[pyclass(frozen, module = "vllm_metal._core")]
pub struct AttentionMetadata {
    pub metadata: Arc<Metadata>,
}

/// Which state each request of a step reads and writes, for one KV-cache group of state layers.
///
/// query_start_loc `[num_reqs + 1]`, read_slots `[num_reqs]` (-1 where a request has no state yet) and
/// write_slots `[num_reqs]` are int32 or int64 CPU tensors and are copied. All is checked when a step
/// runs.
#[pyclass(frozen, name = "StateMetadata", module = "vllm_metal._core")]
pub struct PyStateMetadata {
    pub metadata: Arc<StateMetadata>,
}

#[pymethods]
impl PyStateMetadata {
    #[new]
    fn new(
        query_start_loc: &Bound<'_, PyAny>,
        read_slots: &Bound<'_, PyAny>,
        write_slots: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        let metadata = StateMetadata {
            query_start_loc: dlpack::host(query_start_loc)?.integers_32()?,
            read_slots: dlpack::host(read_slots)?.integers_32()?,
            write_slots: dlpack::host(write_slots)?.integers_32()?,
        };
        Ok(PyStateMetadata {
            metadata: Arc::new(metadata),
        })
    }
}

/// One bool, or one for each request.
#[derive(FromPyObject)]
enum Causal {
    All(bool),
    Each(Vec<bool>),
}

#[pymethods]
impl AttentionMetadata {
    #[new]
    #[pyo3(signature = (block_table, slot_mapping, query_start_loc, seq_lens, num_actual_tokens, causal = None, spans = Vec::new()))]
    fn new(
        block_table: &Bound<'_, PyAny>,
        slot_mapping: &Bound<'_, PyAny>,
        query_start_loc: &Bound<'_, PyAny>,
        seq_lens: &Bound<'_, PyAny>,
        num_actual_tokens: usize,
        causal: Option<Causal>,
        spans: Vec<(usize, usize, usize)>,
    ) -> PyResult<Self> {
        let blocks = dlpack::host(block_table)?;
        let max_blocks = match blocks.shape.as_slice() {
            [_, columns] => *columns as usize,
            shape => {
                let reason = format!("of shape {shape:?}, and two axes expected");
                return Err(Error::Metadata {
                    field: "block_table",
                    reason,
                }
                .into());
            }
        };
        let seq_lens = dlpack::host(seq_lens)?.integers_32()?;
        let metadata = Metadata {
            block_table: blocks.integers_32()?,
            max_blocks,
            slot_mapping: dlpack::integers(slot_mapping)?,
            query_start_loc: dlpack::host(query_start_loc)?.integers_32()?,
            causal: match causal {
                None => vec![true; seq_lens.len()],
                Some(Causal::All(causal)) => vec![causal; seq_lens.len()],
                Some(Causal::Each(causal)) => causal,
            },
            seq_lens,
            num_actual_tokens,
            spans,
        };
        Ok(AttentionMetadata {
            metadata: Arc::new(metadata),
        })
    }
}
