// SPDX-License-Identifier: Apache-2.0
//! Greedy generation from a plan file and a checkpoint: no Python, no PyTorch.

use crate::plan_file::PlanFile;
use crate::runtime::error::{Error, Result};
use crate::runtime::host::HostTensor;
use crate::runtime::tensor::Tensor;
use crate::runtime::weights::{Checkpoint, LoadReport, Recipe, Source, required};
use crate::runtime::{
    Argument, CacheSpec, KEPT_SHAPES, LayerMetadata, LoadedModel, Metadata, Pages, Requests,
    Runtime, StateMetadata, StateSpec,
};
use lowering::ir::{DType, Dim};
use lowering::plan::{Binding, Plan};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

/// Tokens in a block of the KV cache.
const BLOCK_SIZE: usize = 16;

/// Tokens that one step computes.
const MAX_STEP: usize = 2048;

/// The graph of a step.
const BACKBONE: &str = "backbone";

/// Its input besides token ids.
const POSITIONS: &str = "positions";

/// What a plan file says about its model.
#[derive(Clone, Debug, Deserialize)]
pub struct Facts {
    /// Ids that prompts may have are below this.
    pub vocab_size: i64,
    /// Tokens of prompt and text together.
    pub max_model_len: usize,
    /// Generation stops after one of these.
    pub eos_token_ids: Vec<i64>,
    /// Element type of the KV cache.
    pub kv_cache_dtype: DType,
    /// Operators that would run in PyTorch.
    pub islands: Vec<String>,
}

/// A step's inputs by name.
type Inputs<'a> = Vec<(String, Argument<'a>)>;

/// A model that generates.
pub struct Generator {
    plan: Plan,
    model: LoadedModel,
    /// What the plan file says.
    pub facts: Facts,
    /// Texts that are generated at once, all of one prompt.
    batch: usize,
    /// Blocks of the KV cache that each of them has.
    num_blocks: usize,
}

/// The most likely next tokens of all texts, which may still be computed.
pub struct Next {
    tokens: Tensor,
    vocab_size: i64,
}

impl Next {
    /// Waits for them; gives the first text's.
    ///
    /// # Errors
    /// MLX fails.
    pub fn token(&self) -> Result<i64> {
        let ids = self.tokens.to_host()?.integers()?;
        let id = ids.first().copied();
        id.ok_or_else(|| Error::Internal("a token of no text".to_owned()))
    }
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// With a token that ends texts.
    Stop,
    /// With as many tokens as were allowed, or fit.
    Length,
}

impl Finish {
    /// The word of OpenAI's API.
    pub fn name(self) -> &'static str {
        match self {
            Finish::Stop => "stop",
            Finish::Length => "length",
        }
    }
}

impl Generator {
    /// Loads a plan file with the weights of a checkpoint folder.
    ///
    /// # Errors
    /// One of them is damaged, they do not belong together, the plan is not one of a text generator
    /// with token ids alone, or it has operators that need PyTorch.
    pub fn load(runtime: &Runtime, plan: &Path, weights: &Path) -> Result<Generator> {
        let file = PlanFile::open(plan)?;
        let wrong = |reason: String| Error::PlanFile {
            path: plan.display().to_string(),
            reason,
        };
        let facts: Facts = serde_json::from_slice(file.text("model")?)
            .map_err(|error| wrong(format!("\"model\" is malformed: {error}")))?;
        let mut loaded = file.plan()?;
        // Nothing here checks kernels against their references.
        loaded.keep_kernels(&BTreeSet::new());
        check(&loaded, &facts).map_err(wrong)?;
        let recipe = Recipe::from_json(file.text("recipe")?)?;
        let checkpoint = Checkpoint::open(weights)?;
        let loading = runtime.begin_loading()?;
        for path in required(&loaded) {
            let stored = format!("tensors/{path}");
            let source = if file.has(&stored) {
                Source::File(file.tensor(&stored)?)
            } else {
                recipe.build(&path, &checkpoint)?
            };
            loading.add(path, source)?;
        }
        let model = loading.finish(loaded.clone(), None, KEPT_SHAPES)?;
        Ok(Generator {
            plan: loaded,
            model,
            facts,
            batch: 1,
            num_blocks: 0,
        })
    }

    /// What loading did with the weights' bytes.
    pub fn report(&self) -> LoadReport {
        self.model.report
    }

    /// Allocates KV caches for `batch` texts of that many tokens; returns their bytes.
    ///
    /// # Errors
    /// They do not fit in memory.
    pub fn allocate(&mut self, num_tokens: usize, batch: usize) -> Result<usize> {
        self.batch = batch.max(1);
        self.num_blocks = num_tokens.div_ceil(BLOCK_SIZE).max(1);
        let pages = Pages {
            num_blocks: self.batch * self.num_blocks,
            block_size: BLOCK_SIZE,
        };
        // A layer that shares another's keys and values has no cache of its own.
        let own = self
            .plan
            .layers
            .iter()
            .filter(|layer| layer.kv_sharing_target.is_none());
        let specs = own.map(|layer| CacheSpec {
            layers: vec![layer.name.clone()],
            pages,
            dtype: self.facts.kv_cache_dtype,
        });
        let states = self.plan.state_layers.iter().map(|layer| StateSpec {
            layers: vec![layer.name.clone()],
            num_slots: self.batch,
            dtypes: vec![DType::Float32; layer.states.len()],
        });
        self.model
            .allocate_kv_cache(specs.collect(), states.collect())
    }

    /// Computes a prompt, all of it, up to the most likely next token. [`Generator::allocate`] must have
    /// reserved what follows.
    ///
    /// # Errors
    /// The prompt is empty, or has an id that the model does not know.
    pub fn prefill(&self, prompt: &[i64]) -> Result<Next> {
        let chunk = (MAX_STEP / self.batch).max(1);
        let last = prompt.len().saturating_sub(1) / chunk * chunk;
        for start in (0..last).step_by(chunk) {
            let (inputs, attention) = self.step(&prompt[start..start + chunk], start)?;
            self.model.run(BACKBONE, inputs, attention)?;
        }
        if prompt.is_empty() {
            return Err(Error::Inputs {
                graph: BACKBONE.to_owned(),
                reason: "the prompt has no token".to_owned(),
            });
        }
        let (inputs, attention) = self.step(&prompt[last..], last)?;
        self.sample(inputs, attention, prompt.len() - last)
    }

    /// Begins to compute one more token at that position, up to the most likely next one. The token
    /// itself may still be computed.
    ///
    /// # Errors
    /// The position lies beyond the caches.
    pub fn decode(&self, token: &Next, position: usize) -> Result<Next> {
        let (mut inputs, attention) = self.step(&[0], position)?;
        let ids = inputs.iter_mut().filter(|(name, _)| name != POSITIONS);
        for (_, argument) in ids {
            if let Argument::Host(known) = argument {
                *argument = Argument::Sampled {
                    known: known.clone(),
                    tokens: &token.tokens,
                    vocab_size: token.vocab_size,
                    places: (0..self.batch).map(|text| (text, text)).collect(),
                };
            }
        }
        self.sample(inputs, attention, 1)
    }

    /// Whether a token ends the text.
    pub fn ends(&self, token: i64) -> bool {
        self.facts.eos_token_ids.contains(&token)
    }

    /// Inputs of a step of tokens that follow `start` others in each text.
    fn step(&self, tokens: &[i64], start: usize) -> Result<(Inputs<'_>, Vec<LayerMetadata>)> {
        let end = start + tokens.len();
        let (batch, count) = (self.batch, tokens.len() as i32);
        let query_start_loc: Vec<i32> = (0..=batch as i32).map(|text| text * count).collect();
        let size = self.num_blocks * BLOCK_SIZE;
        let slots = (0..batch).flat_map(|text| text * size + start..text * size + end);
        let metadata = Arc::new(Metadata {
            block_table: (0..(batch * self.num_blocks) as i32).collect(),
            max_blocks: self.num_blocks,
            slot_mapping: slots.map(|slot| slot as i64).collect(),
            query_start_loc: query_start_loc.clone(),
            seq_lens: vec![end as i32; batch],
            num_actual_tokens: batch * tokens.len(),
            causal: vec![true; batch],
            spans: Vec::new(),
        });
        let names = self.plan.layers.iter().map(|layer| layer.name.clone());
        let state_names = self.plan.state_layers.iter();
        let state_names = state_names.map(|layer| layer.name.clone());
        let slots = 0..batch as i32;
        let states = Arc::new(StateMetadata {
            query_start_loc,
            read_slots: slots
                .clone()
                .map(|slot| if start == 0 { -1 } else { slot })
                .collect(),
            write_slots: slots.collect(),
        });
        let attention = vec![
            (names.collect(), Requests::Attention(metadata)),
            (state_names.collect(), Requests::State(states)),
        ];
        let graph = self
            .plan
            .graph(BACKBONE)
            .ok_or_else(|| Error::Internal("a plan without a backbone was loaded".to_owned()))?;
        let inputs = graph.inputs.iter().map(|input| {
            let values: Vec<i64> = match input.name.as_str() {
                POSITIONS => (start as i64..end as i64).collect(),
                _ => tokens.to_vec(),
            };
            let values = values.repeat(batch);
            (input.name.clone(), Argument::Host(rows(input, &values)))
        });
        Ok((inputs.collect(), attention))
    }

    /// Tokens after the last of `count` of each text.
    fn sample(
        &self,
        inputs: Inputs<'_>,
        attention: Vec<LayerMetadata>,
        count: usize,
    ) -> Result<Next> {
        let rows = (1..=self.batch).map(|text| (text * count - 1) as i64);
        let rows = Some(rows.collect());
        let (_, tokens, vocab_size) = self.model.sample(inputs, attention, rows, None, true)?;
        Ok(Next { tokens, vocab_size })
    }
}

/// The values as an input: `[num_tokens]`, or `[n, num_tokens]` with n equal rows, which is what
/// positions of several axes are for text.
fn rows(input: &Binding, values: &[i64]) -> HostTensor {
    let leading = match input.value.shape.as_slice() {
        [Dim::Fixed(leading), _] => *leading,
        _ => 1,
    };
    let bytes = (0..leading).flat_map(|_| values.iter().flat_map(|value| value.to_ne_bytes()));
    let mut shape = vec![values.len() as i32];
    if input.value.shape.len() == 2 {
        shape.insert(0, leading as i32);
    }
    HostTensor {
        dtype: DType::Int64,
        shape,
        bytes: bytes.collect(),
    }
}

/// Whether the plan is one of a text generator.
fn check(plan: &Plan, facts: &Facts) -> std::result::Result<(), String> {
    if !facts.islands.is_empty() {
        return Err(format!(
            "operators of {} run in PyTorch, which is not here: {}",
            plan.architecture,
            facts.islands.join(", ")
        ));
    }
    let backbone = plan.graph(BACKBONE);
    if backbone.is_none() || plan.graph("logits").is_none() {
        return Err(format!("{} does not generate text", plan.architecture));
    }
    let known = ["input_ids", POSITIONS];
    for input in backbone.into_iter().flat_map(|graph| &graph.inputs) {
        if !known.contains(&input.name.as_str()) {
            return Err(format!(
                "{} needs an input {:?}, and text gives token ids and positions",
                plan.architecture, input.name
            ));
        }
    }
    let decoder = plan
        .layers
        .iter()
        .find(|layer| layer.attn_type != "decoder");
    decoder.map_or(Ok(()), |layer| {
        Err(format!(
            "layer {} is of the kind {}, and a text generator has decoder layers",
            layer.name, layer.attn_type
        ))
    })
}
