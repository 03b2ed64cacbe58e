// SPDX-License-Identifier: Apache-2.0
//! The FX document: what capture writes. One `Deserialize` type for each part of the format.

use crate::error::{Error, Result};
use crate::ir::{DType, Float};
use serde::Deserialize;
use serde::de::{self, Deserializer};
use std::borrow::{Borrow, Cow};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;

/// Marks an FX document.
pub const FORMAT: &str = "vllm-metal/fx";

/// Format version that this build reads.
pub const VERSION: u32 = 1;

/// A string of the document, which it borrows unless the JSON has an escape in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(transparent)]
pub struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Text<'_> {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

/// A captured model.
#[derive(Debug, Deserialize)]
pub struct Document<'a> {
    pub format: String,
    pub version: u32,
    pub architecture: String,
    pub dtype: String,
    #[serde(default)]
    pub layers: BTreeMap<String, Layer>,
    #[serde(borrow)]
    pub graphs: Vec<FxGraph<'a>>,
}

/// A layer that vLLM keeps state or parameters for outside the graph.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Layer {
    Attention(Box<AttentionFields>),
    Index(IndexFields),
    State(StateFields),
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
    #[serde(default)]
    pub value_in_key: bool,
}

/// The marker of an index layer.
#[derive(Debug, Deserialize)]
enum IndexKind {
    #[serde(rename = "index")]
    Index,
}

/// A layer that selects keys for attention by keys of its own, one for each token.
#[derive(Debug, Deserialize)]
pub struct IndexFields {
    #[serde(rename = "kind")]
    _kind: IndexKind,
    pub num_heads: i64,
    pub head_size: i64,
}

/// The marker of a state layer.
#[derive(Debug, Deserialize)]
enum StateKind {
    #[serde(rename = "state")]
    State,
}

/// A layer with recurrent states; see [`crate::plan::StateLayer`].
#[derive(Debug, Deserialize)]
pub struct StateFields {
    #[serde(rename = "kind")]
    _kind: StateKind,
    pub states: Vec<Vec<i64>>,
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
pub struct FxGraph<'a> {
    pub name: String,
    pub symbols: Vec<FxSymbol>,
    #[serde(borrow)]
    pub nodes: Vec<FxNode<'a>>,
}

/// A symbolic size.
#[derive(Debug, Deserialize)]
pub struct FxSymbol {
    pub name: String,
    pub role: String,
}

/// One FX node.
#[derive(Debug, Deserialize)]
pub struct FxNode<'a> {
    #[serde(borrow)]
    pub name: Text<'a>,
    pub op: NodeOp,
    #[serde(default)]
    pub role: Option<Role>,
    #[serde(default, borrow)]
    pub path: Option<Text<'a>>,
    #[serde(default, borrow)]
    pub target: Text<'a>,
    #[serde(default, borrow)]
    pub args: Vec<Arg<'a>>,
    #[serde(default, borrow)]
    pub kwargs: BTreeMap<Text<'a>, Arg<'a>>,
    #[serde(default, borrow)]
    pub value: Option<FxValue<'a>>,
    /// Positions or names of the arguments that the call writes to.
    #[serde(default, borrow)]
    pub mutates: Vec<Arg<'a>>,
    #[serde(default, borrow)]
    pub module: Text<'a>,
    #[serde(default, borrow)]
    pub source: Text<'a>,
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FxDim<'a> {
    Number(i64),
    Expression(Text<'a>),
}

impl fmt::Display for FxDim<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FxDim::Number(value) => write!(f, "{value}"),
            FxDim::Expression(text) => f.write_str(text),
        }
    }
}

// serde's untagged enums copy what they read before they choose, which was a third of the time that
// a large document took: the types below choose by what they see.
impl<'de: 'a, 'a> Deserialize<'de> for FxDim<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<FxDim<'a>, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = FxDim<'de>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a size")
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<FxDim<'de>, E> {
                Ok(FxDim::Number(value))
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<FxDim<'de>, E> {
                i64::try_from(value)
                    .map(FxDim::Number)
                    .map_err(|_| E::custom("a size beyond 64 bits"))
            }
            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<FxDim<'de>, E> {
                Ok(FxDim::Expression(Text(Cow::Borrowed(text))))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<FxDim<'de>, E> {
                Ok(FxDim::Expression(Text(Cow::Owned(text.to_owned()))))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// What a node yields.
#[derive(Clone, Debug)]
pub enum FxValue<'a> {
    Tensor {
        dtype: Text<'a>,
        shape: Vec<FxDim<'a>>,
    },
    Tuple {
        tuple: Vec<Option<FxValue<'a>>>,
    },
    Scalar {
        scalar: Text<'a>,
        expr: Option<FxDim<'a>>,
    },
}

/// All fields that an [`FxValue`] may have.
#[derive(Deserialize)]
struct ValueFields<'a> {
    #[serde(default, borrow)]
    dtype: Option<Text<'a>>,
    #[serde(default, borrow)]
    shape: Option<Vec<FxDim<'a>>>,
    #[serde(default, borrow)]
    tuple: Option<Vec<Option<FxValue<'a>>>>,
    #[serde(default, borrow)]
    scalar: Option<Text<'a>>,
    #[serde(default, borrow)]
    expr: Option<FxDim<'a>>,
}

impl<'de: 'a, 'a> Deserialize<'de> for FxValue<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<FxValue<'a>, D::Error> {
        match ValueFields::deserialize(deserializer)? {
            ValueFields {
                dtype: Some(dtype),
                shape: Some(shape),
                ..
            } => Ok(FxValue::Tensor { dtype, shape }),
            ValueFields {
                tuple: Some(tuple), ..
            } => Ok(FxValue::Tuple { tuple }),
            ValueFields {
                scalar: Some(scalar),
                expr,
                ..
            } => Ok(FxValue::Scalar { scalar, expr }),
            _ => Err(de::Error::custom(
                "a value that is neither a tensor (dtype, shape), a tuple nor a scalar",
            )),
        }
    }
}

/// An argument of a call.
#[derive(Clone, Debug, PartialEq)]
pub enum Arg<'a> {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Node(Text<'a>),
    List(Vec<Arg<'a>>),
    Str(Text<'a>),
    DType(Text<'a>),
    Device(Text<'a>),
    MemoryFormat(Text<'a>),
    Layout(Text<'a>),
    Layer(Text<'a>),
    Expression(Text<'a>),
    Other(Text<'a>),
}

impl<'de: 'a, 'a> Deserialize<'de> for Arg<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Arg<'a>, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Arg<'de>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an FX argument")
            }
            fn visit_unit<E: de::Error>(self) -> Result<Arg<'de>, E> {
                Ok(Arg::None)
            }
            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Arg<'de>, E> {
                Ok(Arg::Bool(value))
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Arg<'de>, E> {
                Ok(Arg::Int(value))
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Arg<'de>, E> {
                i64::try_from(value)
                    .map(Arg::Int)
                    .map_err(|_| E::custom("an integer beyond 64 bits"))
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Arg<'de>, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Arg::List(items))
            }
            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Arg<'de>, A::Error> {
                let Some((key, text)) = map.next_entry::<Text, Text>()? else {
                    return Err(de::Error::custom("an empty argument object"));
                };
                let arg =
                    match &*key {
                        "float" => Arg::Float(text.parse().map_err(|_| {
                            de::Error::custom(format!("{:?} is not a float", &*text))
                        })?),
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
                                "an argument of unknown kind {:?}",
                                &*key
                            )));
                        }
                    };
                match map.next_key::<Text>()? {
                    None => Ok(arg),
                    Some(key) => Err(de::Error::custom(format!(
                        "a second key {:?} in an argument",
                        &*key
                    ))),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl<'a> Document<'a> {
    /// Parses and checks format and version.
    pub fn parse(bytes: &'a [u8]) -> Result<Document<'a>> {
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
