// SPDX-License-Identifier: Apache-2.0
//! Fuzzing of rules: random left sides, run as they are and rewritten, compared by the rule's
//! numerics class. Left sides are derived from the patterns, so a new rule needs no generator.
//!
//! `LOWERING_FUZZ_CASES` is the number of cases for each rule, 200 when unset; the long form is 10000.

mod compare;
mod instance;
pub mod site;

pub use compare::compare;

use super::{Numerics, Rule};
use crate::dump::{Format, imported, write};
use crate::interpret::{Data, Interpreter, Precision, Tensor, ulp};
use crate::ir::{DType, Graph, TensorType, verify};
use crate::rewrite::rewrite_by;
use instance::{instance, recipes};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRng, TestRunner};
use site::{Env, TABLE_ROWS};
use std::cell::Cell;

/// Cases for each rule.
pub fn cases() -> u32 {
    let given = std::env::var("LOWERING_FUZZ_CASES").ok();
    given.and_then(|text| text.parse().ok()).unwrap_or(200)
}

/// A runner whose cases are the same on every run.
pub fn runner(cases: u32) -> TestRunner {
    let config = Config {
        cases,
        failure_persistence: None,
        max_global_rejects: cases * 20,
        ..Config::default()
    };
    let rng = TestRng::deterministic_rng(config.rng_algorithm);
    TestRunner::new_with_rng(config, rng)
}

/// The environment in which recipes are looked for.
pub fn typical() -> Env {
    Env {
        tokens: 9,
        symbolic: true,
        heads: 3,
        half: 2,
        rest: 3,
        columns: 6,
        dtype: DType::Bfloat16,
        eps: 1e-6,
    }
}

fn env() -> impl Strategy<Value = Env> {
    (
        prop::sample::select(vec![1i64, 2, 8, 9, 33]),
        any::<bool>(),
        1i64..4,
        1i64..5,
        0i64..4,
        1i64..9,
        prop::sample::select(vec![DType::Float32, DType::Float16, DType::Bfloat16]),
        prop::sample::select(vec![0.0, 1e-12, 1e-6, 1e-5, 0.1]),
    )
        .prop_map(
            |(tokens, symbolic, heads, half, rest, columns, dtype, eps)| Env {
                tokens,
                symbolic,
                heads,
                half,
                rest,
                columns,
                dtype,
                eps,
            },
        )
}

/// SplitMix64: values from a seed.
pub struct Values(pub u64);

impl Values {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A number between -4 and 4, or with `special` now and then one from the edges of the dtype.
    fn float(&mut self, dtype: DType, special: bool) -> f64 {
        let (largest, least) = match dtype {
            DType::Float16 => (65504.0, 2f64.powi(-24)),
            DType::Bfloat16 => (f64::from(half::bf16::MAX), 2f64.powi(-133)),
            _ => (f64::from(f32::MAX), 2f64.powi(-149)),
        };
        let plain = 8.0 * self.uniform() - 4.0;
        let edges = [
            f64::INFINITY,
            f64::NEG_INFINITY,
            -0.0,
            0.0,
            least,
            -3.0 * least,
            1000.0 * least,
            largest,
            -largest,
            largest.sqrt(),
            least.sqrt(),
        ];
        match special && self.next().is_multiple_of(6) {
            true => edges[self.next() as usize % edges.len()],
            false => plain,
        }
    }

    /// A tensor of that type; whole numbers are indices into a table.
    pub fn tensor(&mut self, of: &TensorType, tokens: i64, special: bool) -> Tensor {
        let sizes = of.shape.iter().map(|dim| dim.eval(&[tokens]).unwrap());
        let shape: Vec<usize> = sizes.map(|size| size as usize).collect();
        let count = shape.iter().product::<usize>();
        if of.dtype.is_float() {
            let values = (0..count).map(|_| self.float(of.dtype, special));
            return Tensor::floats(of.dtype, shape, values.collect());
        }
        let values = (0..count).map(|_| (self.next() % TABLE_ROWS as u64) as i64);
        Tensor::ints(of.dtype, shape, values.collect())
    }
}

/// What [`check`] says where the left side has no result, such as an index beyond its table.
const UNDEFINED: &str = "undefined";

/// Runs both graphs and compares their outputs.
pub fn check(
    numerics: Numerics,
    before: &Graph,
    after: &Graph,
    inputs: &[Tensor],
    tokens: i64,
) -> Result<(), String> {
    let symbols = [tokens];
    let run = |graph: &Graph, precision, inputs: &[Tensor]| {
        let interpreter = Interpreter {
            precision,
            symbols: &symbols,
            effect: None,
        };
        let results = interpreter.graph(graph, inputs, &[]);
        results.map_err(|error| error.to_string())
    };
    verify(before).map_err(|reason| format!("the left side: {reason}"))?;
    verify(after).map_err(|reason| format!("the right side: {reason}"))?;
    let old = run(before, Precision::Rounded, inputs).map_err(|_| UNDEFINED)?;
    let new = run(after, Precision::Rounded, inputs)?;
    let exact = run(before, Precision::Unrounded, inputs)?;
    for (output, ((old, new), exact)) in old.iter().zip(&new).zip(&exact).enumerate() {
        let condition = || {
            let mut moved = vec![0f64; exact.len()];
            for seed in 0..PERTURBATIONS {
                let inputs: Vec<Tensor> = inputs.iter().map(|x| perturbed(x, seed)).collect();
                let Ok(results) = run(before, Precision::Unrounded, &inputs) else {
                    continue;
                };
                let values = results[output].to_f64().into_iter().zip(exact.to_f64());
                for (most, (value, exact)) in moved.iter_mut().zip(values) {
                    *most = most.max((value - exact).abs());
                }
            }
            moved
        };
        compare(numerics, old, new, exact, condition)
            .map_err(|reason| format!("output {output}, {reason}\n{}", show(before, after)))?;
    }
    Ok(())
}

/// Ways in which inputs are moved to see how far a result moves.
const PERTURBATIONS: u64 = 8;

/// Every float moved by one unit in the last place of float32, up or down, as the seed says.
fn perturbed(x: &Tensor, seed: u64) -> Tensor {
    let mut random = Values(seed);
    let data = match &x.data {
        Data::Float(values) => Data::Float(
            values
                .iter()
                .map(|value| match random.next().is_multiple_of(2) {
                    true => value + ulp(DType::Float32, *value),
                    false => value - ulp(DType::Float32, *value),
                })
                .collect(),
        ),
        Data::Int(values) => Data::Int(values.clone()),
    };
    Tensor { data, ..x.clone() }
}

fn show(before: &Graph, after: &Graph) -> String {
    let listings = [imported("before", before), imported("after", after)];
    write(&listings, Format::Text).unwrap_or_default()
}

/// Cases in which the rule applied, or the smallest case in which it was wrong.
pub fn fuzz(rule: &'static Rule, cases: u32) -> Result<u32, String> {
    let recipes = recipes(rule, &typical());
    if recipes.is_empty() {
        return Err(format!(
            "{}: no site of rules/fuzz/site.rs has its left side",
            rule.name
        ));
    }
    let fired = Cell::new(0);
    let strategy = (0..recipes.len(), env(), any::<u64>(), any::<bool>());
    let result = runner(cases).run(&strategy, |(recipe, env, seed, special)| {
        let Some(left) = instance(rule, &recipes[recipe], &env, seed) else {
            return Err(TestCaseError::reject("no such left side"));
        };
        let right =
            rewrite_by(&left.graph, &[rule]).map_err(|e| TestCaseError::fail(e.to_string()))?;
        if right.applied.is_empty() {
            return Err(TestCaseError::reject("the rule did not apply"));
        }
        fired.set(fired.get() + 1);
        let mut values = Values(seed);
        let inputs: Vec<Tensor> = left
            .inputs
            .iter()
            .map(|input| values.tensor(input, env.tokens, special))
            .collect();
        let checked = check(
            rule.numerics,
            &left.graph,
            &right.graph,
            &inputs,
            env.tokens,
        );
        checked.map_err(|reason| match reason.as_str() {
            UNDEFINED => TestCaseError::reject(reason),
            _ => TestCaseError::fail(reason),
        })
    });
    match result {
        Ok(()) => Ok(fired.get()),
        Err(error) => Err(format!("{}: {error}", rule.name)),
    }
}

mod tests;
