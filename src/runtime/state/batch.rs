// SPDX-License-Identifier: Apache-2.0
//! Groups a step's requests into padded batches, so that each batch is one recurrence.

use super::StateMetadata;
use crate::runtime::error::Result;
use crate::runtime::mlx::{Array, host_array, int_array};
use lowering::ir::DType;

/// Requests of similar length, padded to the longest.
pub struct Batch {
    /// Requests.
    pub size: i32,
    /// Tokens of the longest.
    pub length: i32,
    /// Rows of the step, `[size * length]`, padding repeating a row; `None` is all rows in order.
    pub rows: Option<Array>,
    /// `bool[size, length]`, true for tokens that are not padding; `None` where there is none.
    pub valid: Option<Array>,
    /// Tokens of each request, where they differ.
    pub lengths: Option<Vec<i32>>,
    /// `[size]`, slot 0 where there is no state to read.
    pub read_slots: Array,
    /// `bool[size]`, false where a request starts without a state; `None` where all have one.
    pub has_state: Option<Array>,
    /// `[size]`
    pub write_slots: Array,
}

/// Tokens of a request that count as decoding.
const MAX_DECODE_TOKENS: i32 = 8;

/// The batches of a step. Layers of one KV-cache group share them.
pub struct Batches {
    pub batches: Vec<Batch>,
    /// For each of the step's tokens, its row among the batches' results one after the other;
    /// `None` where that is its own index.
    pub result_rows: Option<Array>,
}

fn indices(values: &[i32]) -> Result<Array> {
    Ok(int_array(values, &[values.len() as i32])?)
}

fn flags(values: &[bool], shape: &[i32]) -> Result<Array> {
    let bytes: Vec<u8> = values.iter().map(|value| u8::from(*value)).collect();
    Ok(host_array(&bytes, shape, DType::Bool)?)
}

/// Requests in groups whose padding is at most half of their tokens, longest first.
fn groups(metadata: &StateMetadata) -> Vec<Vec<usize>> {
    let length = |request: &usize| metadata.rows(*request).len();
    let mut requests: Vec<usize> = (0..metadata.num_reqs()).collect();
    requests.retain(|request| length(request) > 0);
    // Stable, so that requests of one length stay in the order of rows.
    requests.sort_by_key(|request| std::cmp::Reverse(length(request)));
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for request in requests {
        match groups.last_mut() {
            Some(group) if 2 * length(&request) > length(&group[0]) => group.push(request),
            _ => groups.push(vec![request]),
        }
    }
    groups
}

impl Batches {
    /// Whether every request decodes.
    pub fn is_decode(&self) -> bool {
        let mut batches = self.batches.iter();
        batches.all(|batch| batch.length <= MAX_DECODE_TOKENS)
    }

    /// The arrays, which differ between steps of one shape.
    pub fn arrays_mut(&mut self) -> impl Iterator<Item = &mut Array> {
        let batches = self.batches.iter_mut().flat_map(|batch| {
            let optional = [&mut batch.rows, &mut batch.valid, &mut batch.has_state];
            let slots = [&mut batch.read_slots, &mut batch.write_slots];
            optional.into_iter().flatten().chain(slots)
        });
        batches.chain(&mut self.result_rows)
    }

    /// All that decides the graph of a recurrence but the shapes and dtypes of the arrays.
    pub fn shape(&self) -> impl Iterator<Item = i32> {
        let batches = self.batches.iter().flat_map(|batch| {
            let given = [&batch.rows, &batch.valid, &batch.has_state];
            let given = given.map(|array| i32::from(array.is_some()));
            let lengths = batch.lengths.iter().flatten().copied();
            given
                .into_iter()
                .chain([batch.size, batch.length])
                .chain(lengths)
        });
        let is_gathered = i32::from(self.result_rows.is_some());
        batches.chain([is_gathered, self.batches.len() as i32])
    }

    /// The batches of metadata that was checked.
    pub fn new(metadata: &StateMetadata, num_tokens: usize) -> Result<Batches> {
        let mut batches = Vec::new();
        // Tokens that are padding of the step take any row.
        let mut result_rows = vec![0i32; num_tokens];
        let mut done = 0;
        for requests in groups(metadata) {
            let length = metadata.rows(requests[0]).len();
            let mut rows = Vec::with_capacity(requests.len() * length);
            let mut valid = Vec::with_capacity(requests.len() * length);
            for request in &requests {
                let own = metadata.rows(*request);
                for place in 0..length {
                    valid.push(place < own.len());
                    rows.push((own.start + place.min(own.len() - 1)) as i32);
                    if place < own.len() {
                        result_rows[own.start + place] = done;
                    }
                    done += 1;
                }
            }
            let lengths: Vec<i32> = requests
                .iter()
                .map(|request| metadata.rows(*request).len() as i32)
                .collect();
            let read: Vec<i32> = requests.iter().map(|r| metadata.read_slots[*r]).collect();
            let write: Vec<i32> = requests.iter().map(|r| metadata.write_slots[*r]).collect();
            let has_state: Vec<bool> = read.iter().map(|slot| *slot >= 0).collect();
            let read: Vec<i32> = read.into_iter().map(|slot| slot.max(0)).collect();
            let (size, length) = (requests.len() as i32, length as i32);
            let padded = valid.contains(&false);
            let in_order =
                rows.len() == num_tokens && rows.iter().copied().eq(0..num_tokens as i32);
            batches.push(Batch {
                size,
                length,
                rows: if in_order {
                    None
                } else {
                    Some(indices(&rows)?)
                },
                valid: if padded {
                    Some(flags(&valid, &[size, length])?)
                } else {
                    None
                },
                lengths: padded.then_some(lengths),
                read_slots: indices(&read)?,
                has_state: if has_state.contains(&false) {
                    Some(flags(&has_state, &[size])?)
                } else {
                    None
                },
                write_slots: indices(&write)?,
            });
        }
        let in_order =
            done as usize == num_tokens && result_rows.iter().copied().eq(0..num_tokens as i32);
        Ok(Batches {
            batches,
            result_rows: if in_order {
                None
            } else {
                Some(indices(&result_rows)?)
            },
        })
    }
}
