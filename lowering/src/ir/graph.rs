// SPDX-License-Identifier: Apache-2.0
//! The graph: operators as nodes of a petgraph, operands as edges.

use super::{DType, Dim, Op};
use petgraph::Direction;
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;
use rustc_hash::FxHasher;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// Identity of a node in its [`Graph`].
pub type NodeId = NodeIndex<u32>;

/// No axis is longer, so that arithmetic on sizes stays far from overflow.
pub const MAX_SIZE: i64 = 1 << 40;

/// Dtype and shape of a value.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TensorType {
    pub dtype: DType,
    pub shape: Vec<Dim>,
}

impl TensorType {
    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Refuses sizes that no tensor has: negative ones, and those beyond [`MAX_SIZE`].
    pub fn check_sizes(&self) -> Result<(), String> {
        let fits = |dim: &Dim| dim.fixed().unwrap_or(0) >= 0 && dim.fits(MAX_SIZE);
        match self.shape.iter().all(fits) {
            true => Ok(()),
            false => Err(format!("a tensor {self}")),
        }
    }

    /// Bytes of all elements where every symbol has this value; an unknown size counts as 0.
    pub fn num_bytes(&self, symbol: i64) -> u64 {
        let symbols = [symbol; 8];
        let size = |dim: &Dim| dim.eval(&symbols).unwrap_or(0).max(0) as u64;
        let elements = self.shape.iter().map(size).fold(1, u64::saturating_mul);
        elements.saturating_mul(self.dtype.size() as u64)
    }

    /// Size of the last axis; `None` for rank 0.
    pub fn last(&self) -> Option<Dim> {
        self.shape.last().copied()
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sizes: Vec<String> = self.shape.iter().map(Dim::to_string).collect();
        write!(f, "{}[{}]", self.dtype, sizes.join(","))
    }
}

/// Where a node comes from: FX node, module path, source line. For messages and reports, never for decisions.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Source {
    pub node: String,
    pub target: String,
    pub module: String,
    pub line: String,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}", self.node, self.target)?;
        if !self.module.is_empty() {
            write!(f, ", {}", self.module)?;
        }
        if !self.line.is_empty() {
            write!(f, ", {}", self.line)?;
        }
        write!(f, ")")
    }
}

/// One result of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value {
    pub node: NodeId,
    /// Which of the node's results.
    pub output: u32,
}

/// An operator with the types of its results.
#[derive(Clone, Debug)]
pub struct Node {
    pub op: Op,
    pub types: Vec<TensorType>,
    pub source: Option<Arc<Source>>,
}

/// An edge carries this result of its source. A node's edges are added in the order of its operands.
#[derive(Clone, Copy, Debug)]
struct Use {
    output: u32,
}

/// Operands of a node: few, and asked for at every turn.
pub type Operands = SmallVec<[Value; 4]>;

/// A dataflow graph. Effects run in the order of [`Graph::effects`].
#[derive(Clone, Debug, Default)]
pub struct Graph {
    nodes: DiGraph<Node, Use, u32>,
    /// Effect nodes in program order.
    pub effects: Vec<NodeId>,
    pub outputs: Vec<Value>,
}

impl Graph {
    /// Adds a node; its operands must be in the graph.
    pub fn add(
        &mut self,
        op: Op,
        operands: &[Value],
        types: Vec<TensorType>,
        source: Option<Arc<Source>>,
    ) -> NodeId {
        let is_effect = op.is_effect();
        let node = self.nodes.add_node(Node { op, types, source });
        for value in operands {
            let edge = Use {
                output: value.output,
            };
            self.nodes.add_edge(value.node, node, edge);
        }
        if is_effect {
            self.effects.push(node);
        }
        node
    }

    /// The node of that identity.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id]
    }

    /// The node of that identity, to change its source.
    pub(crate) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id]
    }

    /// Type of a value.
    pub fn value_type(&self, value: Value) -> &TensorType {
        &self.nodes[value.node].types[value.output as usize]
    }

    /// Operands in order.
    pub fn operands(&self, id: NodeId) -> Operands {
        let edges = self.nodes.edges_directed(id, Direction::Incoming);
        let mut operands: Operands = edges
            .map(|edge| Value {
                node: edge.source(),
                output: edge.weight().output,
            })
            .collect();
        // petgraph lists the edge that was added last first.
        operands.reverse();
        operands
    }

    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.nodes.node_count()
    }

    /// Whether there is no node.
    pub fn is_empty(&self) -> bool {
        self.nodes.node_count() == 0
    }

    /// All nodes, operands first. Nodes are only ever added after their operands, so index order is
    /// a topological order.
    pub fn topological(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.nodes.node_indices()
    }

    /// The graph in canonical order: what effects, then outputs need, operands first in operand order.
    /// Nothing else is kept, and the order of construction leaves no trace.
    pub fn into_canonical(mut self) -> Graph {
        let mut canonical = Graph::default();
        let mut renamed: Vec<Option<NodeId>> = vec![None; self.len()];
        let effects = std::mem::take(&mut self.effects);
        let outputs = std::mem::take(&mut self.outputs);
        let roots = effects.into_iter();
        let mut stack: Vec<NodeId> = Vec::new();
        for root in roots.chain(outputs.iter().map(|value| value.node)) {
            stack.push(root);
            while let Some(id) = stack.last().copied() {
                if renamed[id.index()].is_some() {
                    stack.pop();
                    continue;
                }
                let operands = self.operands(id);
                let missing = operands
                    .iter()
                    .rev()
                    .filter(|value| renamed[value.node.index()].is_none());
                let before = stack.len();
                stack.extend(missing.map(|value| value.node));
                if stack.len() > before {
                    continue;
                }
                stack.pop();
                let operands: Operands = operands
                    .iter()
                    .filter_map(|value| rename(&renamed, *value))
                    .collect();
                let node = &mut self.nodes[id];
                // A node is visited once: what it holds can move.
                let op = std::mem::replace(&mut node.op, Op::Input(0));
                let (types, source) = (std::mem::take(&mut node.types), node.source.take());
                renamed[id.index()] = Some(canonical.add(op, &operands, types, source));
            }
        }
        canonical.outputs = outputs
            .iter()
            .filter_map(|value| rename(&renamed, *value))
            .collect();
        canonical
    }

    /// Whether the graphs differ in names and sources alone.
    pub fn same_structure(&self, other: &Graph) -> bool {
        let same = |id: NodeId| {
            let (a, b) = (self.node(id), other.node(id));
            a.op == b.op && a.types == b.types && self.operands(id) == other.operands(id)
        };
        self.len() == other.len()
            && (&self.effects, &self.outputs) == (&other.effects, &other.outputs)
            && self.topological().all(same)
    }

    /// A hash that graphs of [the same structure](Graph::same_structure) share.
    pub fn structure_hash(&self) -> u64 {
        let mut hasher = FxHasher::default();
        for id in self.topological() {
            let node = self.node(id);
            (&node.op, &node.types, self.operands(id)).hash(&mut hasher);
        }
        (&self.effects, &self.outputs).hash(&mut hasher);
        hasher.finish()
    }

    /// Renumbers leaves: `choose` maps a leaf's operator to its new one.
    pub fn map_leaves(&mut self, mut choose: impl FnMut(&Op) -> Option<Op>) {
        for node in self.nodes.node_weights_mut() {
            if let Some(op) = choose(&node.op) {
                node.op = op;
            }
        }
    }
}

fn rename(renamed: &[Option<NodeId>], value: Value) -> Option<Value> {
    renamed[value.node.index()].map(|node| Value {
        node,
        output: value.output,
    })
}
