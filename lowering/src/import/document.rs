// SPDX-License-Identifier: Apache-2.0
//! The FX document: what capture writes. One `Deserialize` type for each part of the format.

use crate::error::{Error, Result};
use crate::ir::{DType, Float};
use serde::Deserialize;
use serde::de::{self, Deserializer};
use std::collections::BTreeMap;

/// Marks an FX document.
pub const FORMAT: &str = "vllm-metal/fx";

/// Format version that this build reads.
pub const VERSION: u32 = 1;

/// A captured model.
#[derive(Debug, Deserialize)]
pub struct Document {
    pub format: String,
    pub version: u32,
    pub architecture: String,
    pub dtype: String,
    #[serde(default)]
    pub layers: BTreeMap<String, Layer>,
    pub graphs: Vec<FxGraph>,
}

/// A layer that vLLM keeps state or parameters for outside the graph.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Layer {
    Attention(Box<AttentionFields>),
    /// A kind that the lowering does not know; its operators run in PyTorch.
    Other {
        kind: String,
    },
}

/// The marker of an attention layer.
#[derive(Debug, Deserialize)]
enum AttentionKind {
    #[serde(rename = "attention")]
    Attention,
}

/// An attention layer; see [`crate::plan::AttentionLayer`].
#[derive(Debug, Deserialize)]
pub struct AttentionFields {
    #[serde(rename = "kind")]
    _kind: AttentionKind,
    pub num_heads: i64,
    pub num_kv_heads: i64,
    pub head_size: i64,
    pub head_size_v: i64,
    pub scale: FloatArg,
    pub sliding_window: Option<i64>,
    pub logits_soft_cap: Option<FloatArg>,
    pub alibi_slopes: Option<Vec<FloatArg>>,
    #[serde(default)]
    pub use_alibi_sqrt: bool,
    pub sinks: Option<String>,
    pub attn_type: String,
    pub kv_sharing_target: Option<String>,
}

/// A float as `{"float": repr}`.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct FloatArg {
    #[serde(rename = "float", deserialize_with = "float_from_repr")]
    pub value: Float,
}

fn float_from_repr<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Float, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse::<f64>()
        .map(Float::new)
        .map_err(|_| de::Error::custom(format!("{text:?} is not a float")))
}

/// One traced function.
#[derive(Debug, Deserialize)]
pub struct FxGraph {
    pub name: String,
    pub symbols: Vec<FxSymbol>,
    pub nodes: Vec<FxNode>,
}

/// A symbolic size.
#[derive(Debug, Deserialize)]
pub struct FxSymbol {
    pub name: String,
    pub role: String,
}

/// One FX node.
#[derive(Debug, Deserialize)]
pub struct FxNode {
    pub name: String,
    pub op: NodeOp,
    #[serde(default)]
    pub role: Option<Role>,
    #[serde(default)]
    pub path: Option<String>,
    #[serde(default)]
    pub target: String,
    #[serde(default)]
    pub args: Vec<Arg>,
    #[serde(default)]
    pub kwargs: BTreeMap<String, Arg>,
    #[serde(default)]
    pub value: Option<FxValue>,
    /// Positions or names of the arguments that the call writes to.
    #[serde(default)]
    pub mutates: Vec<Arg>,
    #[serde(default)]
    pub module: String,
    #[serde(default)]
    pub source: String,
}

/// Kind of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeOp {
    Placeholder,
    Call,
    Output,
}

/// What a placeholder stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Input,
    Parameter,
    Buffer,
}

/// A size: a number or an expression in symbols.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum FxDim {
    Number(i64),
    Expression(String),
}

impl std::fmt::Display for FxDim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            FxDim::Number(value) => write!(f, "{value}"),
            FxDim::Expression(text) => f.write_str(text),
        }
    }
}

/// What a node yields.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum FxValue {
    Tensor {
        dtype: String,
        shape: Vec<FxDim>,
    },
    Tuple {
        tuple: Vec<Option<FxValue>>,
    },
    Scalar {
        scalar: String,
        #[serde(default)]
        expr: Option<FxDim>,
    },
}

/// An argument of a call.
#[derive(Clone, Debug, PartialEq)]
pub enum Arg {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Node(String),
    List(Vec<Arg>),
    Str(String),
    DType(String),
    Device(String),
    MemoryFormat(String),
    Layout(String),
    Layer(String),
    Expression(String),
    Other(String),
}

impl<'de> Deserialize<'de> for Arg {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Arg, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Arg;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("an FX argument")
            }
            fn visit_unit<E: de::Error>(self) -> Result<Arg, E> {
                Ok(Arg::None)
            }
            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Arg, E> {
                Ok(Arg::Bool(value))
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Arg, E> {
                Ok(Arg::Int(value))
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Arg, E> {
                i64::try_from(value)
                    .map(Arg::Int)
                    .map_err(|_| E::custom("an integer beyond 64 bits"))
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Arg, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Arg::List(items))
            }
            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Arg, A::Error> {
                let Some((key, text)) = map.next_entry::<String, String>()? else {
                    return Err(de::Error::custom("an empty argument object"));
                };
                let arg = match key.as_str() {
                    "float" => Arg::Float(
                        text.parse()
                            .map_err(|_| de::Error::custom(format!("{text:?} is not a float")))?,
                    ),
                    "node" => Arg::Node(text),
                    "str" => Arg::Str(text),
                    "dtype" => Arg::DType(text),
                    "device" => Arg::Device(text),
                    "memory_format" => Arg::MemoryFormat(text),
                    "layout" => Arg::Layout(text),
                    "layer" => Arg::Layer(text),
                    "expr" => Arg::Expression(text),
                    "other" => Arg::Other(text),
                    _ => {
                        return Err(de::Error::custom(format!(
                            "an argument of unknown kind {key:?}"
                        )));
                    }
                };
                match map.next_key::<String>()? {
                    None => Ok(arg),
                    Some(key) => Err(de::Error::custom(format!(
                        "a second key {key:?} in an argument"
                    ))),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl Document {
    /// Parses and checks format and version.
    pub fn parse(bytes: &[u8]) -> Result<Document> {
        let malformed = |reason: String| Error::Malformed {
            what: "FX document",
            reason,
        };
        let document: Document =
            serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
        if document.format != FORMAT || document.version != VERSION {
            return Err(malformed(format!(
                "it is {:?} version {}, and this build reads {FORMAT:?} version {VERSION}",
                document.format, document.version
            )));
        }
        Ok(document)
    }
}

/// The dtype of that name, or what is wrong with it.
pub fn parse_dtype(name: &str) -> Result<DType, String> {
    DType::from_name(name).ok_or_else(|| format!("dtype {name} has no MLX counterpart"))
}
