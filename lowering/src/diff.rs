// SPDX-License-Identifier: Apache-2.0
//! What differs between two lowered models, as text.

use crate::dump::{self, Format, Listing};
use crate::error::Result;
use crate::lower::Lowered;
use similar::TextDiff;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// Lines around a difference.
const CONTEXT: usize = 2;

/// Two lowered models compared.
pub struct Difference {
    /// The plans are one, byte for byte.
    pub same: bool,
    pub text: String,
}

/// Compares counts of operators, regions with their instructions, and the calls that string them
/// together. Sources and weights are not compared.
pub fn diff(a: &Lowered, b: &Lowered) -> Result<Difference> {
    let title = |lowered: &Lowered| {
        let report = &lowered.report;
        format!(
            "{}  {}  {} instructions  sha {}",
            report.architecture,
            report.dtype,
            report.nodes.plan,
            &report.plan_sha256[..12]
        )
    };
    let mut text = format!("--- {}\n+++ {}\n", title(a), title(b));
    let same = a.report.plan_sha256 == b.report.plan_sha256;
    if same {
        text.push_str("the same plan, byte for byte\n");
        return Ok(Difference { same, text });
    }
    write_counts(&mut text, a, b);
    let (a, b) = (listings(a), listings(b));
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    for name in names {
        match (a.get(name), b.get(name)) {
            (Some(old), Some(new)) => write_listing(&mut text, name, old, new)?,
            (Some(_), None) => drop(writeln!(text, "\n{name}: only in the first")),
            _ => drop(writeln!(text, "\n{name}: only in the second")),
        }
    }
    Ok(Difference { same, text })
}

/// Operators whose counts differ.
fn write_counts(text: &mut String, a: &Lowered, b: &Lowered) {
    let counts = |lowered: &Lowered| -> BTreeMap<String, usize> {
        let report = &lowered.report;
        let islands = report
            .fallback
            .iter()
            .map(|island| (format!("island {}", island.target), island.count));
        let all = report
            .fused
            .clone()
            .into_iter()
            .chain(report.lowered.clone());
        all.chain(islands).collect()
    };
    let (a, b) = (counts(a), counts(b));
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    for name in names {
        let count = |of: &BTreeMap<String, usize>| of.get(name).copied().unwrap_or(0);
        if count(&a) != count(&b) {
            let _ = writeln!(text, "  {name}: {} -> {}", count(&a), count(&b));
        }
    }
}

/// Regions and steps by a name that both models share.
fn listings(lowered: &Lowered) -> BTreeMap<String, Listing> {
    let mut all = BTreeMap::new();
    for (graph, report) in lowered.planned() {
        for (index, region) in dump::regions(graph, report).into_iter().enumerate() {
            all.insert(format!("{} region {index}", graph.name), region);
        }
        let steps = dump::steps(graph, &lowered.plan);
        all.insert(format!("{} steps", graph.name), steps);
    }
    all
}

fn write_listing(text: &mut String, name: &str, a: &Listing, b: &Listing) -> Result<()> {
    let (a, b) = (bare(a)?, bare(b)?);
    if a == b {
        return Ok(());
    }
    let lines = TextDiff::from_lines(&a, &b);
    let count = |tag| {
        lines
            .iter_all_changes()
            .filter(|line| line.tag() == tag)
            .count()
    };
    let _ = writeln!(
        text,
        "\n{name}: -{} +{} lines",
        count(similar::ChangeTag::Delete),
        count(similar::ChangeTag::Insert)
    );
    let _ = write!(text, "{}", lines.unified_diff().context_radius(CONTEXT));
    Ok(())
}

/// A listing's text without sources, which move with every line of the model's code.
fn bare(listing: &Listing) -> Result<String> {
    let mut listing = listing.clone();
    for line in &mut listing.lines {
        line.source.clear();
        line.consumed.clear();
    }
    dump::write(&[listing], Format::Text)
}
