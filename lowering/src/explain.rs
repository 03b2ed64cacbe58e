// SPDX-License-Identifier: Apache-2.0
//! Why an instruction of the plan is what it is, and why a rule did not apply.

use crate::dump;
use crate::error::{Error, Result};
use crate::ir::Source;
use crate::lower::Lowered;
use crate::plan::{GraphPlan, PlanReport};
use crate::rewrite::{NearMiss, Origin, near_misses};
use crate::rules::{self, Numerics, Rule};
use std::fmt::Write;

/// Names that a message lists as near to what was asked for.
const HINTS: usize = 5;

/// An instruction by the value that it yields, as dumps name it.
struct Place<'a> {
    graph: Option<&'a str>,
    region: Option<usize>,
    register: u32,
}

/// `%14`, `1:%14` in region 1, `logits:1:%14`.
fn place(text: &str) -> Option<Place<'_>> {
    let mut parts = text.rsplit(':');
    let register = parts.next()?.strip_prefix('%')?.parse().ok()?;
    let region = parts.next().map(str::parse).transpose().ok()?;
    let graph = parts.next();
    parts.next().is_none().then_some(Place {
        graph,
        region,
        register,
    })
}

/// The history of plan instructions: the rules that made them, the captured nodes that they stand for.
///
/// `node` is an instruction as the text dump names it (`%14`, `1:%14` in region 1, `logits:1:%14`),
/// or a captured node by its name, for the instructions that it went into.
///
/// # Errors
/// Nothing has that name; near ones are listed.
pub fn explain(lowered: &Lowered, node: &str) -> Result<String> {
    let wanted = place(node);
    let mut text = String::new();
    let mut known: Vec<String> = Vec::new();
    for (graph, report) in lowered.planned() {
        for (index, region) in graph.regions.iter().enumerate() {
            let Some(origins) = report.origins.get(index) else {
                continue;
            };
            for (instruction, origin) in region.instructions.iter().zip(origins) {
                let is_wanted = match &wanted {
                    Some(place) => {
                        known.extend(instruction.outputs.iter().map(|of| format!("%{of}")));
                        place.graph.is_none_or(|name| name == graph.name)
                            && place.region.is_none_or(|number| number == index)
                            && instruction.outputs.contains(&place.register)
                    }
                    None => {
                        known.extend(origin.consumed.iter().map(|source| source.node.clone()));
                        origin.consumed.iter().any(|source| source.node == node)
                    }
                };
                if is_wanted {
                    let results: Vec<String> = instruction
                        .outputs
                        .iter()
                        .map(|of| format!("%{of}"))
                        .collect();
                    let types: Vec<String> =
                        instruction.types.iter().map(ToString::to_string).collect();
                    let _ = writeln!(
                        text,
                        "{}{} region {index}: {} = {} : {}",
                        if text.is_empty() { "" } else { "\n" },
                        graph.name,
                        results.join(" "),
                        dump::describe(&instruction.op),
                        types.join(" "),
                    );
                    write_origin(&mut text, origin);
                }
            }
        }
    }
    match text.is_empty() {
        false => Ok(text),
        true => Err(unknown("node", node, known)),
    }
}

fn write_origin(text: &mut String, origin: &Origin) {
    if origin.rules.is_empty() {
        text.push_str("  by no rule: it stands in the captured graph\n");
    }
    for rule in &origin.rules {
        let _ = writeln!(
            text,
            "  by {} ({})  {}",
            rule.name,
            class(rule.numerics),
            rule.left
        );
        for (guard, _) in rule.guards {
            let _ = writeln!(text, "      {guard}: ok");
        }
    }
    let count = origin.consumed.len();
    let plural = if count == 1 { "" } else { "s" };
    let _ = writeln!(text, "  from {count} captured node{plural}");
    for source in &origin.consumed {
        let _ = writeln!(text, "      {}", described(source));
    }
}

/// A captured node in a line.
fn described(source: &Source) -> String {
    let parts = [&source.node, &source.target, &source.module, &source.line];
    let given: Vec<&str> = parts
        .into_iter()
        .map(String::as_str)
        .filter(|part| !part.is_empty())
        .collect();
    given.join("  ")
}

fn class(numerics: Numerics) -> &'static str {
    match numerics {
        Numerics::Exact => "exact: bit for bit the same",
        Numerics::SameRounding => "same rounding points",
        Numerics::Improves => "improves: fewer roundings",
    }
}

/// Where the left side of a rule still stands in the plan, and which guard refused first.
///
/// # Errors
/// No rule has that name; near ones are listed.
pub fn explain_missing(lowered: &Lowered, rule: &str) -> Result<String> {
    let found = rules::all().find(|known| known.name == rule);
    let Some(rule) = found else {
        let names = rules::all().map(|known| known.name.to_owned()).collect();
        return Err(unknown("rule", rule, names));
    };
    let mut text = format!("{} ({})  {}\n", rule.name, class(rule.numerics), rule.left);
    let mut places = 0;
    for (graph, report) in lowered.planned() {
        places += missed_in(&mut text, graph, report, rule)?;
    }
    if places == 0 {
        text.push_str("  no near miss: nowhere in the plan does its left side stand unfused\n");
    }
    Ok(text)
}

fn missed_in(
    text: &mut String,
    graph: &GraphPlan,
    report: &PlanReport,
    rule: &Rule,
) -> Result<usize> {
    let mut places = 0;
    for (index, (region, calls)) in report.regions.iter().zip(&report.calls).enumerate() {
        for NearMiss { failed, source } in near_misses(region, rule)? {
            places += 1;
            let at = source
                .as_deref()
                .map_or("a node without a source".into(), described);
            let _ = writeln!(text, "  {} region {index} x {calls}: {at}", graph.name);
            let first = failed.first().copied().unwrap_or_default();
            for (guard, _) in rule.guards {
                let verdict = match (failed.contains(guard), *guard == first) {
                    (false, _) => "ok",
                    (true, true) => "FAILS, the first to",
                    (true, false) => "fails",
                };
                let _ = writeln!(text, "      {guard}: {verdict}");
            }
        }
    }
    Ok(places)
}

fn unknown(what: &'static str, name: &str, mut known: Vec<String>) -> Error {
    known.sort_by_cached_key(|other| (distance(name, other), other.len(), other.clone()));
    known.dedup();
    known.truncate(HINTS);
    Error::Unknown {
        what,
        name: name.to_owned(),
        near: known.join(", "),
    }
}

/// Edits between two names (Levenshtein 1966).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let kept = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = kept.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
