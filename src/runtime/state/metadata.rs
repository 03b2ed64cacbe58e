// SPDX-License-Identifier: Apache-2.0
//! Which state each request of a step reads and writes. Checked here, because MLX's gather and
//! scatter check no index.

use crate::runtime::error::{Error, Result};

/// One step's requests, for the state layers of one KV-cache group, on the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateMetadata {
    /// First token of each request, then the end: `[num_reqs + 1]`.
    pub query_start_loc: Vec<i32>,
    /// Slot that holds a request's state before the step, -1 where it has none: `[num_reqs]`.
    pub read_slots: Vec<i32>,
    /// Slot that its state after the step goes to: `[num_reqs]`. Another than the one it was read
    /// from where the earlier state is kept for prefix caching.
    pub write_slots: Vec<i32>,
}

fn wrong(field: &'static str, reason: String) -> Error {
    Error::Metadata { field, reason }
}

impl StateMetadata {
    /// Number of requests.
    pub fn num_reqs(&self) -> usize {
        self.write_slots.len()
    }

    /// Tokens of a request in this step, as a range of rows.
    pub fn rows(&self, request: usize) -> std::ops::Range<usize> {
        self.query_start_loc[request] as usize..self.query_start_loc[request + 1] as usize
    }

    /// Checks that the requests tile the step's tokens and their slots lie in the cache.
    ///
    /// # Errors
    /// Names the field and the request.
    pub fn check(&self, num_tokens: usize, num_slots: usize) -> Result<()> {
        let (starts, num_reqs) = (&self.query_start_loc, self.num_reqs());
        if starts.len() != num_reqs + 1 || self.read_slots.len() != num_reqs {
            let reason = format!(
                "{} starts and {} slots to read for {num_reqs} requests",
                starts.len(),
                self.read_slots.len()
            );
            return Err(wrong("query_start_loc", reason));
        }
        let rises = starts[0] == 0 && starts.windows(2).all(|pair| pair[0] <= pair[1]);
        if !rises || starts[num_reqs] as usize > num_tokens {
            let reason = format!("{starts:?} does not rise from 0 to {num_tokens} tokens at most");
            return Err(wrong("query_start_loc", reason));
        }
        let mut written = vec![false; num_slots];
        for request in (0..num_reqs).filter(|request| !self.rows(*request).is_empty()) {
            let (read, write) = (self.read_slots[request], self.write_slots[request]);
            if read < -1 || read >= num_slots as i32 {
                let reason = format!("request {request} reads slot {read} of {num_slots}");
                return Err(wrong("read_slots", reason));
            }
            if !(0..num_slots as i32).contains(&write) {
                let reason = format!("request {request} writes slot {write} of {num_slots}");
                return Err(wrong("write_slots", reason));
            }
            if std::mem::replace(&mut written[write as usize], true) {
                let reason = format!("request {request} writes slot {write}, as another does");
                return Err(wrong("write_slots", reason));
            }
        }
        Ok(())
    }
}
