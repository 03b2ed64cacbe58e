// SPDX-License-Identifier: Apache-2.0
//! The whole way: FX document to plan and report.

use crate::dump::{self, Format, Listing, Stage};
use crate::error::Result;
use crate::import::{Document, Program, import};
use crate::plan::{self, GraphPlan, PLAN_FORMAT, PLAN_VERSION, Plan, PlanReport, Step};
use crate::report::{self, Regions, Report, Stages, Timings, census, fallbacks};
use std::time::Instant;

/// What a caller may choose.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `VLLM_METAL_FALLBACK=error`: a node without a lowering is an error.
    pub refuse_fallback: bool,
}

/// A lowered model.
pub struct Lowered {
    pub plan: Plan,
    pub report: Report,
    /// The FX document, parsed again by the dump that shows it.
    document: Vec<u8>,
    program: Program,
    reports: Vec<PlanReport>,
}

impl Lowered {
    /// Each graph's plan with how it was planned.
    pub fn planned(&self) -> impl Iterator<Item = (&GraphPlan, &PlanReport)> {
        self.plan.graphs.iter().zip(&self.reports)
    }

    /// A stage as text, JSON or DOT.
    pub fn dump(&self, stage: Stage, format: Format) -> Result<String> {
        let regions = || {
            self.planned()
                .flat_map(|(graph, report)| dump::regions(graph, report))
        };
        let listings: Vec<Listing> = match stage {
            Stage::Captured => dump::captured(&Document::parse(&self.document)?),
            Stage::Imported => self
                .program
                .graphs
                .iter()
                .map(|graph| dump::imported(&graph.name, &graph.graph))
                .collect(),
            Stage::Fused => regions().collect(),
            Stage::Plan => regions()
                .chain(
                    self.plan
                        .graphs
                        .iter()
                        .map(|graph| dump::steps(graph, &self.plan)),
                )
                .collect(),
        };
        dump::write(&listings, format)
    }
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// Lowers an FX document.
pub fn lower(document: &[u8], options: &Options) -> Result<Lowered> {
    let start = Instant::now();
    let program = import(&Document::parse(document)?, options)?;
    let import_time = milliseconds(start);

    let start = Instant::now();
    let mut graphs = Vec::new();
    let mut reports: Vec<PlanReport> = Vec::new();
    for graph in &program.graphs {
        let (plan, report) = plan::build(graph)?;
        graphs.push(plan);
        reports.push(report);
    }
    let rewrite = milliseconds(start);

    let start = Instant::now();
    let mut layers = program.layers.clone();
    plan::choose_layers(&mut layers, &graphs);
    let plan = Plan {
        format: PLAN_FORMAT.into(),
        version: PLAN_VERSION,
        architecture: program.architecture.clone(),
        dtype: program.dtype.clone(),
        layers,
        state_layers: program.state_layers.clone(),
        sample: plan::choose_sample(&graphs),
        graphs,
    };
    let plan_sha256 = plan.sha256()?;
    let plan_time = milliseconds(start);

    let (fused, lowered, instructions) = census(&plan, &reports);
    let effects = |graph: &plan::GraphPlan| {
        graph
            .steps
            .iter()
            .filter(|step| matches!(step, Step::Effect { .. }))
            .count()
    };
    let report = Report {
        architecture: program.architecture.clone(),
        dtype: program.dtype.clone(),
        nodes: Stages {
            captured: program
                .graphs
                .iter()
                .map(|graph| graph.captured_nodes)
                .sum(),
            imported: program.graphs.iter().map(|graph| graph.graph.len()).sum(),
            fused: reports
                .iter()
                .map(|report| report.nodes_after)
                .sum::<usize>()
                + plan.graphs.iter().map(effects).sum::<usize>(),
            plan: instructions,
        },
        fused,
        lowered,
        fallback: fallbacks(&program),
        regions: Regions {
            total: reports
                .iter()
                .map(|report| report.calls.iter().sum::<usize>())
                .sum(),
            unique: plan.graphs.iter().map(|graph| graph.regions.len()).sum(),
        },
        rules: report::rules(&reports),
        near_misses: report::near_misses(&reports)?,
        decode: plan::decode(&plan.graphs, &reports, &plan.layers, &plan.dtype),
        prompts: plan::prompt_costs(&plan.layers),
        plan_sha256,
        timings_ms: Timings {
            import: import_time,
            rewrite,
            plan: plan_time,
        },
    };
    Ok(Lowered {
        plan,
        report,
        document: document.to_vec(),
        program,
        reports,
    })
}
