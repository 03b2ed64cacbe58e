// SPDX-License-Identifier: Apache-2.0
//! One FX graph to one IR graph.

use super::call::{Call, Item};
use super::document::{Arg, FxDim, FxGraph, FxNode, FxValue, NodeOp, Role, parse_dtype};
use super::expression::parse_expression;
use super::storage::{Storages, Tensor};
use crate::error::{Error, Result};
use crate::ir::{Builder, Dim, Graph, Op, Source, TensorType, Value, verify};
use crate::lower::Options;
use crate::plan::{AttentionLayer, Binding, StateLayer, Symbol};
use rustc_hash::FxHashMap;
use serde::Serialize;
use serde_json::json;
use std::sync::Arc;

/// A node that runs in PyTorch, and why.
#[derive(Clone, Debug, Serialize)]
pub struct Fallback {
    pub target: String,
    pub reason: String,
    #[serde(rename = "where")]
    pub location: Source,
}

/// An imported graph with what it takes from outside.
pub struct ImportedGraph {
    pub name: String,
    pub symbols: Vec<Symbol>,
    pub inputs: Vec<Binding>,
    pub parameters: Vec<Binding>,
    pub graph: Graph,
    pub fallbacks: Vec<Fallback>,
    /// FX nodes of the captured graph.
    pub captured_nodes: usize,
}

/// The state of an import.
pub struct Importer<'a> {
    pub builder: Builder,
    pub storages: Storages,
    pub layers: &'a [AttentionLayer],
    pub state_layers: &'a [StateLayer],
    symbols: &'a [super::document::FxSymbol],
}

/// Imports one graph.
pub fn import_graph(
    fx: &FxGraph<'_>,
    layers: &[AttentionLayer],
    state_layers: &[StateLayer],
    options: &Options,
) -> Result<ImportedGraph> {
    let mut importer = Importer {
        builder: Builder::default(),
        storages: Storages::default(),
        layers,
        state_layers,
        symbols: &fx.symbols,
    };
    let mut known: FxHashMap<&str, Item> = FxHashMap::default();
    let mut inputs = Vec::new();
    let mut parameters = Vec::new();
    let mut fallbacks = Vec::new();
    let mut outputs = Vec::new();
    for node in &fx.nodes {
        let location = Arc::new(Source {
            node: node.name.to_string(),
            target: node.target.to_string(),
            module: node.module.to_string(),
            line: node.source.to_string(),
        });
        let failed = |reason: String| Error::Node {
            reason,
            location: Box::new((*location).clone()),
        };
        importer.builder.source = Some(location.clone());
        let item = match node.op {
            NodeOp::Placeholder => {
                let (op, bindings, name) = match node.role {
                    Some(Role::Input) => (Op::Input(inputs.len() as u32), &mut inputs, &node.name),
                    Some(Role::Parameter | Role::Buffer) => {
                        let path = node
                            .path
                            .as_ref()
                            .ok_or_else(|| failed("a parameter without a path".into()))?;
                        (
                            Op::Parameter(parameters.len() as u32),
                            &mut parameters,
                            path,
                        )
                    }
                    None => return Err(failed("a placeholder without a role".into())),
                };
                match &node.value {
                    Some(FxValue::Tensor { dtype, shape }) => {
                        let value = importer.tensor_type(dtype, shape).map_err(failed)?;
                        bindings.push(Binding {
                            name: name.to_string(),
                            value: value.clone(),
                        });
                        let id = importer.builder.node(op, &[], vec![value]);
                        Item::Tensor(importer.storages.fresh(Value {
                            node: id,
                            output: 0,
                        }))
                    }
                    Some(FxValue::Scalar {
                        expr: Some(expr), ..
                    }) => Item::Size(importer.dim(expr).map_err(failed)?),
                    _ => {
                        return Err(failed(
                            "a placeholder without a tensor's dtype and shape".into(),
                        ));
                    }
                }
            }
            NodeOp::Call => {
                let call = resolve_call(&importer, node, &known).map_err(failed)?;
                match importer.lower(&call) {
                    Ok(item) => item,
                    Err(reason) => {
                        let fallback = Fallback {
                            target: node.target.to_string(),
                            reason: reason.clone(),
                            location: (*location).clone(),
                        };
                        if options.refuse_fallback {
                            return Err(Error::Unsupported {
                                target: fallback.target,
                                reason,
                                location: Box::new(fallback.location),
                            });
                        }
                        fallbacks.push(fallback);
                        importer.island(&call, &known).map_err(|cause| {
                            failed(format!("{} cannot be lowered ({reason}) and cannot run in PyTorch: {cause}", node.target))
                        })?
                    }
                }
            }
            NodeOp::Output => {
                let items =
                    node.args
                        .iter()
                        .map(|arg| match (arg, resolve(&importer, arg, &known)?) {
                            (Arg::Node(name), Item::None) => Err(format!("{name} is not computed")),
                            (_, item) => Ok(item),
                        });
                let items: Result<Vec<Item>, String> = items.collect();
                for item in flatten(&items.map_err(failed)?) {
                    outputs.push(importer.value(&item).map_err(failed)?);
                }
                Item::None
            }
        };
        known.insert(&node.name, item);
    }
    let mut graph = importer.builder.graph;
    graph.outputs = outputs;
    let mut graph = graph.into_canonical();
    let inputs = renumber(&mut graph, &inputs, |op| match op {
        Op::Input(index) => Some((*index, Op::Input as fn(u32) -> Op)),
        _ => None,
    });
    let parameters = renumber(&mut graph, &parameters, |op| match op {
        Op::Parameter(index) => Some((*index, Op::Parameter as fn(u32) -> Op)),
        _ => None,
    });
    verify(&graph).map_err(|reason| Error::Verifier {
        stage: "import",
        reason,
    })?;
    Ok(ImportedGraph {
        name: fx.name.clone(),
        symbols: fx
            .symbols
            .iter()
            .map(|symbol| Symbol {
                name: symbol.name.clone(),
                role: symbol.role.clone(),
            })
            .collect(),
        inputs,
        parameters,
        graph,
        fallbacks,
        captured_nodes: fx.nodes.len(),
    })
}

/// Numbers leaves in the order of their first use, and lists their bindings in it.
fn renumber(
    graph: &mut Graph,
    bindings: &[Binding],
    leaf: impl Fn(&Op) -> Option<(u32, fn(u32) -> Op)>,
) -> Vec<Binding> {
    let mut order: Vec<u32> = Vec::new();
    let mut positions: Vec<Option<u32>> = vec![None; bindings.len()];
    graph.map_leaves(|op| {
        let (index, make) = leaf(op)?;
        let position = positions[index as usize].get_or_insert_with(|| {
            order.push(index);
            order.len() as u32 - 1
        });
        Some(make(*position))
    });
    order
        .iter()
        .map(|index| bindings[*index as usize].clone())
        .collect()
}

fn flatten(items: &[Item]) -> Vec<Item> {
    items
        .iter()
        .flat_map(|item| match item {
            Item::Tuple(items) => flatten(items),
            Item::None => Vec::new(),
            other => vec![other.clone()],
        })
        .collect()
}

fn resolve_call<'a>(
    importer: &Importer,
    node: &'a FxNode<'a>,
    known: &FxHashMap<&str, Item>,
) -> Result<Call<'a>, String> {
    let args: Result<Vec<Item>, String> = node
        .args
        .iter()
        .map(|arg| resolve(importer, arg, known))
        .collect();
    let kwargs: Result<Vec<(&str, Item)>, String> = node
        .kwargs
        .iter()
        .map(|(name, arg)| Ok((&**name, resolve(importer, arg, known)?)))
        .collect();
    Ok(Call {
        node,
        args: args?,
        kwargs: kwargs?,
    })
}

fn resolve(importer: &Importer, arg: &Arg, known: &FxHashMap<&str, Item>) -> Result<Item, String> {
    Ok(match arg {
        Arg::None => Item::None,
        Arg::Bool(flag) => Item::Bool(*flag),
        Arg::Int(value) => Item::Size(Dim::Fixed(*value)),
        Arg::Float(value) => Item::Float(*value),
        Arg::Node(name) => known
            .get(&**name)
            .cloned()
            .ok_or_else(|| format!("{name} is used before it is defined"))?,
        Arg::List(items) => {
            let items: Result<Vec<Item>, String> = items
                .iter()
                .map(|item| resolve(importer, item, known))
                .collect();
            Item::Tuple(items?)
        }
        Arg::Str(text) => Item::Str(text.to_string()),
        Arg::DType(_) => Item::DType,
        Arg::Layer(name) => Item::Layer(name.to_string()),
        Arg::Expression(text) => Item::Size(parse_expression(text, importer.symbols)?),
        Arg::Device(_) | Arg::MemoryFormat(_) | Arg::Layout(_) | Arg::Other(_) => Item::Other,
    })
}

impl Importer<'_> {
    /// The value of a tensor argument.
    pub fn value(&mut self, item: &Item) -> Result<Value, String> {
        match item {
            Item::Tensor(tensor) => self.storages.read(&mut self.builder, tensor),
            other => Err(format!("{other:?} where a tensor is expected")),
        }
    }

    /// A new tensor.
    pub fn fresh(&mut self, value: Value) -> Item {
        Item::Tensor(self.storages.fresh(value))
    }

    /// A view of a tensor argument.
    pub fn view(&mut self, item: &Item, step: Op) -> Result<Item, String> {
        Ok(Item::Tensor(self.storages.view(
            &mut self.builder,
            tensor(item)?,
            step,
            None,
        )?))
    }

    /// Rows of a tensor argument along an axis, as a view.
    pub fn gather_view(&mut self, item: &Item, axis: usize, places: Value) -> Result<Item, String> {
        Ok(Item::Tensor(self.storages.view(
            &mut self.builder,
            tensor(item)?,
            Op::Take { axis },
            Some(places),
        )?))
    }

    /// Writes a tensor argument and yields it.
    pub fn write(&mut self, item: &Item, new: Value) -> Result<Item, String> {
        self.storages.write(&mut self.builder, tensor(item)?, new)?;
        Ok(item.clone())
    }

    /// A size from its text.
    pub fn dim(&self, dim: &FxDim) -> Result<Dim, String> {
        match dim {
            FxDim::Number(value) => Ok(Dim::Fixed(*value)),
            FxDim::Expression(text) => parse_expression(text, self.symbols),
        }
    }

    /// Size of an axis of the call's only result, as PyTorch recorded it.
    pub fn result_size(&self, call: &Call, axis: usize) -> Option<Dim> {
        match &call.node.value {
            Some(FxValue::Tensor { shape, .. }) => self.dim(shape.get(axis)?).ok(),
            _ => None,
        }
    }

    /// A tensor's type from its recorded dtype and shape.
    pub fn tensor_type(&self, dtype: &str, shape: &[FxDim]) -> Result<TensorType, String> {
        let shape: Result<Vec<Dim>, String> = shape.iter().map(|dim| self.dim(dim)).collect();
        let value = TensorType {
            dtype: parse_dtype(dtype)?,
            shape: shape?,
        };
        value.check_sizes()?;
        Ok(value)
    }

    /// The call as an operator that PyTorch runs. Arguments are written as in the document, with
    /// tensors as `{"operand": i}`.
    fn island(&mut self, call: &Call, known: &FxHashMap<&str, Item>) -> Result<Item, String> {
        if !call.node.mutates.is_empty() {
            return Err("it writes to its arguments".into());
        }
        let mut operands = Vec::new();
        let args: Result<Vec<_>, String> = call
            .node
            .args
            .iter()
            .map(|arg| self.island_arg(arg, known, &mut operands))
            .collect();
        let kwargs: Result<serde_json::Map<_, _>, String> = call
            .node
            .kwargs
            .iter()
            .map(|(name, arg)| {
                Ok((
                    name.to_string(),
                    self.island_arg(arg, known, &mut operands)?,
                ))
            })
            .collect();
        let arguments = json!({"args": args?, "kwargs": kwargs?}).to_string();
        let value = call
            .node
            .value
            .clone()
            .ok_or("its result's type is not recorded")?;
        let mut types = Vec::new();
        self.island_types(&value, &mut types)?;
        let op = Op::Island {
            target: call.node.target.to_string(),
            arguments,
        };
        let node = self.builder.node(op, &operands, types);
        let mut output = 0;
        self.island_item(&value, node, &mut output)
    }

    fn island_arg(
        &mut self,
        arg: &Arg,
        known: &FxHashMap<&str, Item>,
        operands: &mut Vec<Value>,
    ) -> Result<serde_json::Value, String> {
        Ok(match arg {
            Arg::None => json!(null),
            Arg::Bool(flag) => json!(flag),
            Arg::Int(value) => json!(value),
            Arg::Float(value) => json!({"float": format!("{value:?}")}),
            Arg::Str(text) => json!({"str": &**text}),
            Arg::DType(name) => json!({"dtype": &**name}),
            Arg::Device(name) => json!({"device": &**name}),
            Arg::MemoryFormat(name) => json!({"memory_format": &**name}),
            Arg::Layout(name) => json!({"layout": &**name}),
            Arg::Layer(name) => json!({"layer": &**name}),
            Arg::Expression(text) => json!({"size": parse_expression(text, self.symbols)?}),
            Arg::Other(text) => return Err(format!("its argument {text} has no textual form")),
            Arg::List(items) => {
                let items: Result<Vec<_>, String> = items
                    .iter()
                    .map(|item| self.island_arg(item, known, operands))
                    .collect();
                json!(items?)
            }
            Arg::Node(name) => match known.get(&**name) {
                Some(item @ Item::Tensor(_)) => {
                    operands.push(self.value(item)?);
                    json!({"operand": operands.len() - 1})
                }
                Some(Item::Size(Dim::Fixed(value))) => json!(value),
                Some(Item::Size(dim)) => json!({"size": dim}),
                Some(Item::Float(value)) => json!({"float": format!("{value:?}")}),
                Some(Item::Bool(flag)) => json!(flag),
                Some(Item::None) => json!(null),
                other => return Err(format!("its argument {name} is {other:?}")),
            },
        })
    }

    fn island_types(&self, value: &FxValue, types: &mut Vec<TensorType>) -> Result<(), String> {
        match value {
            FxValue::Tensor { dtype, shape } => types.push(self.tensor_type(dtype, shape)?),
            FxValue::Tuple { tuple } => {
                for value in tuple.iter().flatten() {
                    self.island_types(value, types)?;
                }
            }
            FxValue::Scalar { scalar, .. } => {
                return Err(format!("it yields a {scalar} that decides shapes"));
            }
        }
        Ok(())
    }

    fn island_item(
        &mut self,
        value: &FxValue,
        node: crate::ir::NodeId,
        output: &mut u32,
    ) -> Result<Item, String> {
        Ok(match value {
            FxValue::Tuple { tuple } => {
                let items: Result<Vec<Item>, String> = tuple
                    .iter()
                    .map(|value| match value {
                        Some(value) => self.island_item(value, node, output),
                        None => Ok(Item::None),
                    })
                    .collect();
                Item::Tuple(items?)
            }
            _ => {
                let item = self.fresh(Value {
                    node,
                    output: *output,
                });
                *output += 1;
                item
            }
        })
    }
}

fn tensor(item: &Item) -> Result<&Tensor, String> {
    match item {
        Item::Tensor(tensor) => Ok(tensor),
        other => Err(format!("{other:?} where a tensor is expected")),
    }
}
