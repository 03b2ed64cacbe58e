// SPDX-License-Identifier: Apache-2.0
//! The plan: what the executor runs. Regions of flat instructions, and the calls that string them together.

mod build;
mod cache_work;
mod check;
mod decode;
mod flatten;
mod fusion;
mod kernels;
mod merge_ropes;
mod paged;
mod partition;
mod prompt_cost;
mod sampling;
mod work;

pub use build::{PlanReport, build};
pub use decode::{Decode, Launches, decode, effect_work, region_work};
pub use fusion::Fusion;
pub use kernels::{KernelChoice, choose};
pub use paged::{
    PAGED_DECODE, PAGED_PREFILL, PAGED_REDUCE, choose_layers, choose_paged, choose_prefill,
};
pub use prompt_cost::{PromptCost, PromptLayers, PromptSizes, Reference, prompt_costs};
pub use sampling::{SAMPLE, choose_sample};
pub use work::Work;

use crate::error::Error;
use crate::ir::{Dim, Float, Op, TensorType};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Format version of a serialised [`Plan`]; another version is refused.
pub const PLAN_VERSION: u32 = 4;

/// Marks a serialised [`Plan`].
pub const PLAN_FORMAT: &str = "vllm-metal/plan";

/// Index of an instruction's value inside one region.
pub type Register = u32;

/// Index of a value that crosses regions in one graph.
pub type Slot = u32;

/// Everything needed to run a model but the weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    pub format: String,
    pub version: u32,
    pub architecture: String,
    pub dtype: String,
    /// State that effects refer to by index: `Op::Attention { layer }` and its kin.
    pub layers: Vec<AttentionLayer>,
    /// `Op::Recurrence { layer, .. }`.
    pub state_layers: Vec<StateLayer>,
    pub graphs: Vec<GraphPlan>,
    /// What may draw tokens from the logits on Metal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<KernelChoice>,
}

/// One attention layer's constants, from vLLM's `Attention` module.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttentionLayer {
    /// vLLM's layer name, the key of its KV cache.
    pub name: String,
    pub num_heads: i64,
    pub num_kv_heads: i64,
    pub head_size: i64,
    pub head_size_v: i64,
    pub scale: Float,
    /// Tokens that a token sees, itself included; `None` is all.
    pub sliding_window: Option<i64>,
    pub logits_soft_cap: Option<Float>,
    pub alibi_slopes: Option<Vec<Float>>,
    /// Whether slopes are times the square root of the distance.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub alibi_sqrt: bool,
    /// Parameter path of the attention sinks `[num_heads]`.
    pub sinks: Option<String>,
    /// vLLM's `AttentionType`: `decoder`, `encoder_only`, ...
    pub attn_type: String,
    /// Reads the cache of this layer and writes none.
    pub kv_sharing_target: Option<String>,
    /// The first `head_size_v` elements of a key are its value: the cache holds keys alone (latent
    /// attention).
    pub value_in_key: bool,
    /// What decodes it on Metal, straight from its cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<KernelChoice>,
    /// What computes its prompts, where that moves less than to gather them; see [`PromptSizes`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefill: Option<KernelChoice>,
}

impl AttentionLayer {
    /// A decoder's layer that sees every token up to its own, with `[num_heads, num_kv_heads]` heads
    /// of one size.
    pub fn decoder(name: &str, [num_heads, num_kv_heads]: [i64; 2], head_size: i64) -> Self {
        AttentionLayer {
            name: name.to_owned(),
            num_heads,
            num_kv_heads,
            head_size,
            head_size_v: head_size,
            scale: Float::new(1.0),
            sliding_window: None,
            logits_soft_cap: None,
            alibi_slopes: None,
            alibi_sqrt: false,
            sinks: None,
            attn_type: "decoder".to_owned(),
            kv_sharing_target: None,
            value_in_key: false,
            kernel: None,
            prefill: None,
        }
    }

    /// What computes it on Metal without a kernel of ours: MLX's own attention caps no scores, adds no
    /// float32 bias to 16-bit ones and has keys and values of one size.
    pub fn reference(&self) -> Reference {
        let is_capped = self.logits_soft_cap.is_some_and(|cap| cap.get() != 0.0);
        let differs = self.head_size != self.head_size_v || self.value_in_key;
        match is_capped || self.alibi_slopes.is_some() || differs {
            true => Reference::Products,
            false => Reference::Fused,
        }
    }
}

/// A layer with recurrent states of fixed size, one set for each request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateLayer {
    /// vLLM's layer name, the key of its states.
    pub name: String,
    /// Shape of each state of one request.
    pub states: Vec<Vec<i64>>,
}

/// The plan of one captured graph.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GraphPlan {
    /// `backbone` or `logits`.
    pub name: String,
    pub symbols: Vec<Symbol>,
    pub inputs: Vec<Binding>,
    /// What the checkpoint provides, then what `folds` compute at load, in one index space.
    pub parameters: Vec<Binding>,
    /// Run once at load, in order; each appends parameters.
    pub folds: Vec<Fold>,
    pub regions: Vec<Region>,
    pub steps: Vec<Step>,
    /// Slots `0..inputs.len()` hold the inputs.
    pub num_slots: u32,
    pub outputs: Vec<Slot>,
}

/// A symbolic size that a run binds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Symbol {
    pub name: String,
    /// `num_tokens` for the step's token count.
    pub role: String,
}

/// A named tensor that comes from outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// Input name, or parameter path in the vLLM model.
    pub name: String,
    #[serde(flatten)]
    pub value: TensorType,
}

/// A computation on parameters only, done at load.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fold {
    pub op: Op,
    /// Parameter indices.
    pub inputs: Vec<u32>,
    /// Parameter indices.
    pub outputs: Vec<u32>,
}

/// A piece of the graph without effects, compiled once and called by every identical layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Region {
    /// Registers `0..num_inputs` hold the call's inputs, the next `num_parameters` its parameters.
    pub num_inputs: u32,
    pub num_parameters: u32,
    pub num_registers: u32,
    pub instructions: Vec<Instruction>,
    /// What kernels compute of them on Metal.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fusions: Vec<Fusion>,
    pub outputs: Vec<Register>,
}

/// One operator on registers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Instruction {
    pub op: Op,
    /// What may compute it on Metal; `op` is the reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<KernelChoice>,
    pub inputs: Vec<Register>,
    pub outputs: Vec<Register>,
    /// Types of the outputs.
    pub types: Vec<TensorType>,
    /// Registers whose last reader is this instruction.
    pub release: Vec<Register>,
}

/// One step of a graph: a call of a region, or an effect.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Step {
    Call {
        region: u32,
        inputs: Vec<Slot>,
        parameters: Vec<u32>,
        outputs: Vec<Slot>,
        release: Vec<Slot>,
    },
    /// One of those of which `Op::is_effect` says so.
    Effect {
        op: Op,
        inputs: Vec<Slot>,
        outputs: Vec<Slot>,
        types: Vec<TensorType>,
        release: Vec<Slot>,
    },
}

impl Plan {
    /// Canonical bytes: the same plan gives the same bytes on every machine.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        serde_json::to_vec(self).map_err(|error| Error::Malformed {
            what: "plan",
            reason: error.to_string(),
        })
    }

    /// Reads a plan and checks every index in it, so that the executor may trust them.
    pub fn from_bytes(bytes: &[u8]) -> Result<Plan, Error> {
        let malformed = |reason: String| Error::Malformed {
            what: "plan",
            reason,
        };
        let plan: Plan =
            serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
        if plan.format != PLAN_FORMAT || plan.version != PLAN_VERSION {
            return Err(malformed(format!(
                "it is {:?} version {}, and this build reads {PLAN_FORMAT:?} version {PLAN_VERSION}: lower the model again",
                plan.format, plan.version
            )));
        }
        plan.check().map_err(malformed)?;
        Ok(plan)
    }

    /// SHA-256 of [`Plan::to_bytes`], in hexadecimal.
    pub fn sha256(&self) -> Result<String, Error> {
        Ok(hex::encode(Sha256::digest(self.to_bytes()?)))
    }

    /// Paths of the tensors that the checkpoint or the model's construction provides, each once.
    pub fn checkpoint_parameters(&self) -> Vec<String> {
        let folded = |graph: &GraphPlan| {
            graph
                .folds
                .iter()
                .map(|fold| fold.outputs.len())
                .sum::<usize>()
        };
        let of_graphs = self.graphs.iter().flat_map(|graph| {
            let given = graph.parameters.len().saturating_sub(folded(graph));
            graph.parameters[..given]
                .iter()
                .map(|binding| binding.name.clone())
        });
        let sinks = self.layers.iter().filter_map(|layer| layer.sinks.clone());
        let paths: std::collections::BTreeSet<String> = of_graphs.chain(sinks).collect();
        paths.into_iter().collect()
    }

    /// The plan of the graph of that name.
    pub fn graph(&self, name: &str) -> Option<&GraphPlan> {
        self.graphs.iter().find(|graph| graph.name == name)
    }
}

/// Sizes under a binding of the symbols; `None` where a size is unbound, negative or too large.
pub fn eval_shape(shape: &[Dim], symbols: &[i64]) -> Option<Vec<i32>> {
    shape
        .iter()
        .map(|dim| dim.eval(symbols).filter(|size| *size >= 0)?.try_into().ok())
        .collect()
}
