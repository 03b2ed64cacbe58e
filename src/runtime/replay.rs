// SPDX-License-Identifier: Apache-2.0
//! Decode steps that are replayed instead of built: graphs by the shape of their step.
//!
//! The first step of a shape is built as any other, the second one is traced on placeholders, and
//! from then on steps of that shape replay the trace with their own inputs, index arrays and caches
//! (see [`super::mlx::Tape`]). A tape holds the parameters' handles and some hundred bytes for
//! each node, so only the shapes used last are kept.

use super::mlx::Tape;
use std::collections::VecDeque;

/// Shapes that are remembered to have been seen once.
const MAX_SEEN: usize = 64;

/// Shapes whose graphs a model keeps, unless told otherwise.
pub const KEPT_SHAPES: usize = 32;

/// What a step's graph depends on besides the shapes and dtypes of its arrays.
pub type Shape = Vec<i64>;

/// How steps came about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Builds {
    /// Built node by node.
    pub direct: u64,
    /// Built on placeholders and kept.
    pub traced: u64,
    /// Replayed.
    pub replayed: u64,
}

/// The graphs of a model's decode steps.
pub struct Replays {
    limit: usize,
    /// The one used last at the end.
    kept: Vec<(Shape, Tape)>,
    seen: VecDeque<Shape>,
    pub builds: Builds,
}

impl Replays {
    /// Keeps graphs of so many shapes; none where `limit` is 0, or where MLX is told to compile
    /// nothing (`MLX_DISABLE_COMPILE`).
    pub fn new(limit: usize) -> Replays {
        let disabled = std::env::var_os("MLX_DISABLE_COMPILE").is_some();
        Replays {
            limit: if disabled { 0 } else { limit },
            kept: Vec::new(),
            seen: VecDeque::new(),
            builds: Builds::default(),
        }
    }

    /// The graph kept for a shape.
    pub fn find(&mut self, shape: &Shape) -> Option<&Tape> {
        let index = self.kept.iter().position(|(other, _)| other == shape)?;
        self.kept[index..].rotate_left(1);
        self.kept.last().map(|(_, graph)| graph)
    }

    /// Whether the shape is to be traced now: it was met before.
    pub fn is_due(&mut self, shape: &Shape) -> bool {
        if self.limit == 0 {
            return false;
        }
        if let Some(index) = self.seen.iter().position(|other| other == shape) {
            self.seen.remove(index);
            return true;
        }
        self.seen.truncate(MAX_SEEN - 1);
        self.seen.push_front(shape.clone());
        false
    }

    /// Keeps a graph, in the place of the one that was not used for longest where there are enough.
    pub fn keep(&mut self, shape: Shape, graph: Tape) {
        if self.kept.len() >= self.limit {
            self.kept.remove(0);
        }
        self.kept.push((shape, graph));
    }

    /// Forgets all graphs.
    pub fn clear(&mut self) {
        self.kept.clear();
        self.seen.clear();
    }
}
