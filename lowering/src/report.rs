// SPDX-License-Identifier: Apache-2.0
//! What was captured, fused, lowered and left to PyTorch. One type for the log, the command and the tests.

use crate::error::{Error, Result};
use crate::import::{Fallback, Program};
use crate::ir::Op;
use crate::plan::{Decode, Plan, PlanReport, PromptLayers, Step};
use crate::rewrite::all_near_misses;
use crate::rules::{Numerics, Rule, all};
use serde::Serialize;
use std::collections::BTreeMap;

/// The whole story of a lowering.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub architecture: String,
    pub dtype: String,
    /// Nodes after each stage.
    pub nodes: Stages,
    /// Fused operators over all layers.
    pub fused: BTreeMap<String, usize>,
    /// Other operators over all layers.
    pub lowered: BTreeMap<String, usize>,
    pub fallback: Vec<FallbackReport>,
    pub regions: Regions,
    /// Rules whose left side was found while the unique regions were rewritten.
    pub rules: BTreeMap<&'static str, RuleReport>,
    /// For rules that a fused graph still holds the left side of: how often each guard is the first
    /// that refuses, over all calls.
    pub near_misses: BTreeMap<&'static str, BTreeMap<&'static str, usize>>,
    /// One decode step at batch 1.
    pub decode: Decode,
    /// What the attention of prompts moves, by the kernel and by the reference.
    pub prompts: Vec<PromptLayers>,
    pub plan_sha256: String,
    pub timings_ms: Timings,
}

impl Report {
    /// The report as JSON.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|error| Error::Malformed {
            what: "report",
            reason: error.to_string(),
        })
    }
}

/// Nodes after each stage.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Stages {
    pub captured: usize,
    pub imported: usize,
    pub fused: usize,
    /// Instructions and effects that one step runs.
    pub plan: usize,
}

/// Calls of regions, and the regions that were compiled for them.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Regions {
    pub total: usize,
    pub unique: usize,
}

/// Milliseconds of each stage.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Timings {
    /// Parsing the document included.
    pub import: f64,
    pub rewrite: f64,
    pub plan: f64,
}

/// What became of a rule.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct RuleReport {
    pub numerics: Numerics,
    /// How often its left side was found.
    pub matches: usize,
    /// How often it joined something: its guards held, and the result was new.
    pub applied: usize,
}

/// What became of each rule.
pub fn rules(reports: &[PlanReport]) -> BTreeMap<&'static str, RuleReport> {
    let count = |counts: fn(&PlanReport) -> &BTreeMap<&'static str, usize>, name: &str| {
        let of_graphs = reports.iter().filter_map(|report| counts(report).get(name));
        of_graphs.sum::<usize>()
    };
    let of_rule = |rule: &'static Rule| {
        let report = RuleReport {
            numerics: rule.numerics,
            matches: count(|report| &report.matched, rule.name),
            applied: count(|report| &report.rules, rule.name),
        };
        (report.matches > 0).then_some((rule.name, report))
    };
    all().filter_map(of_rule).collect()
}

/// Near misses by rule and first failed guard, over all calls.
pub fn near_misses(
    reports: &[PlanReport],
) -> Result<BTreeMap<&'static str, BTreeMap<&'static str, usize>>> {
    let mut counts: BTreeMap<&'static str, BTreeMap<&'static str, usize>> = BTreeMap::new();
    for report in reports {
        for (region, calls) in report.regions.iter().zip(&report.calls) {
            for (rule, missed) in all_near_misses(region)? {
                let of_rule = counts.entry(rule.name).or_default();
                for guard in missed.iter().filter_map(|miss| miss.failed.first()) {
                    *of_rule.entry(guard).or_default() += calls;
                }
            }
        }
    }
    Ok(counts)
}

/// One kind of node that runs in PyTorch.
#[derive(Clone, Debug, Serialize)]
pub struct FallbackReport {
    pub target: String,
    pub count: usize,
    pub reason: String,
    /// The first such node.
    #[serde(rename = "where")]
    pub location: String,
}

/// Merges nodes of one target and reason.
pub fn fallbacks(program: &Program) -> Vec<FallbackReport> {
    let mut merged: BTreeMap<(String, String), FallbackReport> = BTreeMap::new();
    let all = program.graphs.iter().flat_map(|graph| &graph.fallbacks);
    for Fallback {
        target,
        reason,
        location,
    } in all
    {
        merged
            .entry((target.clone(), reason.clone()))
            .or_insert_with(|| FallbackReport {
                target: target.clone(),
                count: 0,
                reason: reason.clone(),
                location: location.to_string(),
            })
            .count += 1;
    }
    merged.into_values().collect()
}

/// Whether an operator is the product of fusion. Both forms of a norm count as one kind.
fn fused_name(op: &Op) -> Option<&'static str> {
    Some(match op {
        Op::RmsNorm { .. } | Op::AddRmsNorm { .. } => "rms_norm",
        Op::LayerNorm { .. } | Op::AddLayerNorm { .. } => "layer_norm",
        Op::Rope { .. } => "rope",
        Op::GatedActivation { .. } => "gated_mlp",
        Op::Attention { .. }
        | Op::SparseAttention { .. }
        | Op::ScaledDotProductAttention { .. } => "attention",
        Op::SelectKeys { .. } => "select_keys",
        Op::Recurrence { function, .. } => function.name(),
        _ => return None,
    })
}

/// Fused and other operators of a plan, over all calls, and how many there are.
pub fn census(
    plan: &Plan,
    reports: &[PlanReport],
) -> (BTreeMap<String, usize>, BTreeMap<String, usize>, usize) {
    let (mut fused, mut lowered, mut total) = (BTreeMap::new(), BTreeMap::new(), 0);
    let mut count = |op: &Op, times: usize| {
        total += times;
        match fused_name(op) {
            Some(name) => *fused.entry(name.to_string()).or_insert(0) += times,
            None => *lowered.entry(op.name().to_string()).or_insert(0) += times,
        }
    };
    for (graph, report) in plan.graphs.iter().zip(reports) {
        for (region, calls) in graph.regions.iter().zip(&report.calls) {
            region
                .instructions
                .iter()
                .for_each(|instruction| count(&instruction.op, *calls));
        }
        for step in &graph.steps {
            if let Step::Effect { op, .. } = step {
                count(op, 1);
            }
        }
    }
    (fused, lowered, total)
}
