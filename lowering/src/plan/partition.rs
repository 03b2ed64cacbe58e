// SPDX-License-Identifier: Apache-2.0
//! Cuts a graph into constants, pieces without effects, and effects.
//!
//! Effects split the graph into levels: a node's level is the number of effects on the longest way
//! to it. The nodes of one level form a piece. What depends on parameters alone is computed once
//! at load and belongs to no piece. Reshapes and widening casts are repeated in each piece that needs
//! them, so that pieces exchange values in the form that computed them and rules see the movement.

use crate::ir::{Graph, NodeId, Op, Operands, Value, widens};
use rustc_hash::{FxHashMap, FxHashSet};

/// Where a node is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A graph input.
    Input,
    /// A number, repeated wherever it is used.
    Scalar,
    /// At load.
    Constant,
    /// In the piece of that level.
    Piece(u32),
    /// Between the pieces of this level and the next.
    Effect(u32),
}

/// A piece as a graph of its own: leaves are numbered in the order of their first use.
pub struct Piece {
    pub graph: Graph,
    /// What `Op::Input` leaves stand for.
    pub inputs: Vec<Value>,
    /// What `Op::Parameter` leaves stand for: constants of the whole graph.
    pub parameters: Vec<Value>,
    /// What the piece's outputs stand for.
    pub outputs: Vec<Value>,
}

/// The place of every node.
pub fn places(graph: &Graph) -> Vec<Place> {
    let mut places: Vec<Place> = Vec::with_capacity(graph.len());
    for id in graph.topological() {
        let node = graph.node(id);
        let operands = graph.operands(id);
        let of_operands = || operands.iter().map(|operand| places[operand.node.index()]);
        let level = of_operands()
            .map(|place| match place {
                Place::Piece(level) => level,
                Place::Effect(level) => level + 1,
                _ => 0,
            })
            .max()
            .unwrap_or(0);
        let fixed = node
            .types
            .iter()
            .all(|t| t.shape.iter().all(|dim| dim.fixed().is_some()));
        let constant = fixed
            && !matches!(node.op, Op::Island { .. })
            && !has_symbol(&node.op)
            && of_operands().all(|place| matches!(place, Place::Constant | Place::Scalar));
        places.push(match &node.op {
            Op::Input(_) => Place::Input,
            Op::Scalar(_) => Place::Scalar,
            Op::Parameter(_) => Place::Constant,
            op if op.is_effect() => Place::Effect(level),
            _ if constant => Place::Constant,
            _ => Place::Piece(level),
        });
    }
    places
}

fn has_symbol(op: &Op) -> bool {
    match op {
        Op::Full { value, .. } | Op::Scalar(value) => value.as_f64().is_none(),
        Op::Arange { start, .. } => start.fixed().is_none(),
        Op::Slice { start, stop, .. } => start.fixed().is_none() || stop.fixed().is_none(),
        _ => false,
    }
}

/// Values of each level's piece that something outside the piece reads, in the readers' order.
pub fn outputs(graph: &Graph, places: &[Place]) -> Vec<Vec<Value>> {
    let mut outputs: Vec<Vec<Value>> = Vec::new();
    let mut known: FxHashSet<Value> = FxHashSet::default();
    let mut emit = |value: Value, reader: Place| {
        let Place::Piece(level) = places[value.node.index()] else {
            return;
        };
        if reader != Place::Piece(level) && known.insert(value) {
            let level = level as usize;
            outputs.resize_with(outputs.len().max(level + 1), Vec::new);
            outputs[level].push(value);
        }
    };
    for id in graph.topological() {
        let reader = places[id.index()];
        for operand in graph.operands(id) {
            match reader {
                Place::Piece(level) if places[operand.node.index()] != Place::Piece(level) => {
                    emit(origin(graph, operand), reader);
                }
                Place::Piece(_) => {}
                _ => emit(operand, reader),
            }
        }
    }
    graph
        .outputs
        .iter()
        .for_each(|output| emit(*output, Place::Input));
    outputs
}

/// The piece of a level that yields these values.
pub fn piece(graph: &Graph, places: &[Place], level: u32, outputs: Vec<Value>) -> Piece {
    let inside = |value: Value| match places[value.node.index()] {
        Place::Piece(of) if of == level => true,
        Place::Piece(of) => of < level && moved(graph, value).is_some(),
        _ => false,
    };
    let mut piece = Piece {
        graph: Graph::default(),
        inputs: vec![],
        parameters: vec![],
        outputs,
    };
    let mut copied: FxHashMap<Value, Value> = FxHashMap::default();
    for root in piece.outputs.clone() {
        let mut stack = vec![root];
        while let Some(value) = stack.last().copied() {
            if copied.contains_key(&value) {
                stack.pop();
                continue;
            }
            let inside = inside(value);
            let operands = if inside {
                graph.operands(value.node)
            } else {
                Operands::new()
            };
            let before = stack.len();
            stack.extend(
                operands
                    .iter()
                    .rev()
                    .filter(|operand| !copied.contains_key(operand)),
            );
            if stack.len() > before {
                continue;
            }
            stack.pop();
            let place = if inside {
                Place::Piece(level)
            } else {
                places[value.node.index()]
            };
            copy(
                graph,
                place,
                level,
                &mut piece,
                &mut copied,
                value,
                &operands,
            );
        }
    }
    piece.graph.outputs = piece.outputs.iter().map(|output| copied[output]).collect();
    piece
}

/// What a reshape or a widening cast moves.
fn moved(graph: &Graph, value: Value) -> Option<Value> {
    let operand = || graph.operands(value.node).first().copied();
    match graph.node(value.node).op {
        Op::Reshape { .. } => operand(),
        Op::Cast { dtype } => operand().filter(|x| widens(graph.value_type(*x).dtype, dtype)),
        _ => None,
    }
}

/// What a chain of such movements starts from.
fn origin(graph: &Graph, value: Value) -> Value {
    moved(graph, value).map_or(value, |inner| origin(graph, inner))
}

fn copy(
    graph: &Graph,
    place: Place,
    level: u32,
    piece: &mut Piece,
    copied: &mut FxHashMap<Value, Value>,
    value: Value,
    operands: &[Value],
) {
    let node = graph.node(value.node);
    let leaf = |piece: &mut Piece, op: Op| {
        let types = vec![graph.value_type(value).clone()];
        Value {
            node: piece.graph.add(op, &[], types, node.source.clone()),
            output: 0,
        }
    };
    match place {
        Place::Piece(of) if of == level => {
            let operands: Operands = operands.iter().map(|operand| copied[operand]).collect();
            let id: NodeId = piece.graph.add(
                node.op.clone(),
                &operands,
                node.types.clone(),
                node.source.clone(),
            );
            for output in 0..node.types.len() as u32 {
                copied.insert(
                    Value {
                        node: value.node,
                        output,
                    },
                    Value { node: id, output },
                );
            }
        }
        Place::Scalar => {
            let leaf = leaf(piece, node.op.clone());
            copied.insert(value, leaf);
        }
        Place::Constant => {
            let leaf = leaf(piece, Op::Parameter(piece.parameters.len() as u32));
            piece.parameters.push(value);
            copied.insert(value, leaf);
        }
        Place::Input | Place::Effect(_) | Place::Piece(_) => {
            let leaf = leaf(piece, Op::Input(piece.inputs.len() as u32));
            piece.inputs.push(value);
            copied.insert(value, leaf);
        }
    }
}
