// SPDX-License-Identifier: Apache-2.0
//! The rules under the fuzzer, and wrong rules that it must catch.

use super::{cases, fuzz};
use crate::ir::{Activation, Float, Op, RopeStyle};
use crate::rules::{Build, Match, Numerics, Right, Rule, all};

#[test]
fn every_rule_is_fuzzed() {
    let mut failures = Vec::new();
    for rule in all() {
        match fuzz(rule, cases()) {
            Ok(fired) => assert!(fired >= cases(), "{} applied {fired} times", rule.name),
            Err(failure) => failures.push(failure),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

/// The whole and the rows of a half rotation, found without any guard.
fn rope_of(m: &Match, style: RopeStyle) -> Option<Right> {
    let rows = |name| {
        m.find(name, |op, children| match op {
            Op::Reshape { .. } => Some(Build::Class(children[0])),
            _ => None,
        })
    };
    let (first, second) = (m.last_axis_slice("?x1")?, m.last_axis_slice("?x2")?);
    let rotary_dim = second.stop;
    let operands = vec![rows("?c")?, rows("?s")?, Build::Class(first.whole)];
    let cut = Op::Slice {
        axis: 2,
        start: 0.into(),
        stop: rotary_dim.into(),
        step: 1,
        length: first.length.into(),
    };
    let rotated = Build::Node(Op::Rope { style, rotary_dim }, operands);
    Some(match first.length == rotary_dim {
        true => rotated.into(),
        false => Build::Node(cut, vec![rotated]).into(),
    })
}

/// Rules that are wrong on purpose.
static WRONG: &[Rule] = &[
    Rule {
        name: "rope_with_the_sign_flipped",
        numerics: Numerics::Improves,
        left: "(concat_last (add (mul ?x1 ?c) (mul ?x2 ?s)) (sub (mul ?x2 ?c) (mul ?x1 ?s)))",
        guards: &[],
        right: |m| rope_of(m, RopeStyle::Neox),
    },
    Rule {
        name: "rope_of_the_other_style",
        numerics: Numerics::Improves,
        left: "(concat_last (sub (mul ?x1 ?c) (mul ?x2 ?s)) (add (mul ?x2 ?c) (mul ?x1 ?s)))",
        guards: &[],
        right: |m| rope_of(m, RopeStyle::Gptj),
    },
    Rule {
        name: "rms_norm_ignoring_eps",
        numerics: Numerics::SameRounding,
        left: "(mul ?x (rsqrt (add (mean_last (square ?x)) ?eps)))",
        guards: &[],
        right: |m| {
            m.scalar("?eps")?;
            let eps = Float::new(0.0);
            Some(m.node(Op::RmsNorm { eps }, &["?x"]).into())
        },
    },
    Rule {
        name: "a_rounding_dropped",
        numerics: Numerics::Exact,
        left: "(cast ?n:(cast ?x))",
        guards: &[],
        right: |m| Some(Build::Class(m.id("?x")).into()),
    },
    Rule {
        name: "halves_swapped",
        numerics: Numerics::Improves,
        left: "(mul (silu (second_half ?x)) (first_half ?x))",
        guards: &[],
        right: |m| {
            let activation = Activation::Silu;
            Some(m.node(Op::GatedActivation { activation }, &["?x"]).into())
        },
    },
    Rule {
        name: "norm_of_the_sum_before_its_rounding",
        numerics: Numerics::Exact,
        left: "?n:(rms_norm (add ?a ?b))",
        guards: &[],
        right: |m| {
            let eps = m.find("?n", |op, _| match op {
                Op::RmsNorm { eps } => Some(*eps),
                _ => None,
            })?;
            let op = Op::AddRmsNorm {
                eps,
                rounded_sum: false,
            };
            Some(Build::Node(Op::Project(0), vec![m.node(op, &["?a", "?b"])]).into())
        },
    },
];

#[test]
fn wrong_rules_are_caught_within_200_cases() {
    for rule in WRONG {
        let failure = fuzz(rule, 200).expect_err(rule.name);
        assert!(failure.contains("does not allow"), "{failure}");
    }
}
