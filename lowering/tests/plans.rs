// SPDX-License-Identifier: Apache-2.0
//! Plans compute what their graphs compute: captured models and random programs, both interpreted.

mod common;

use common::{Choices, MODELS, cases, document};
use lowering::import::{Document, ImportedGraph, import};
use lowering::interpret::{Interpreter, Precision, Tensor};
use lowering::ir::{Binary, Builder, DType, Dim, Float, Op, Reduction, Scalar, TensorType};
use lowering::ir::{Unary, Value};
use lowering::lower::Options;
use lowering::plan::{Binding, build};
use lowering::rules::{Numerics, Rule, all};
use proptest::prelude::*;

/// A stand-in for attention: it depends on every operand, and stays finite.
fn attend(
    _: &Op,
    operands: &[&Tensor],
    types: &[TensorType],
    symbols: &[i64],
) -> Result<Vec<Tensor>, String> {
    let operands: Vec<Vec<f64>> = operands.iter().map(|x| x.to_f64()).collect();
    let sizes: Option<Vec<i64>> = types[0].shape.iter().map(|dim| dim.eval(symbols)).collect();
    let sizes: Vec<usize> = sizes
        .ok_or("sizes")?
        .iter()
        .map(|size| *size as usize)
        .collect();
    let count = sizes.iter().product();
    let value = |i: usize| {
        let of = operands.iter().map(|x| x[i % x.len()]);
        of.enumerate().map(|(n, x)| x / (n + 2) as f64).sum()
    };
    let values = (0..count).map(value).collect();
    Ok(vec![Tensor::floats(types[0].dtype, sizes, values)])
}

fn random(binding: &Binding, tokens: i64, choices: &mut Choices) -> Tensor {
    let sizes = binding.value.shape.iter().map(|dim| dim.eval(&[tokens]));
    let shape: Vec<usize> = sizes
        .map(|size| size.expect("one symbol") as usize)
        .collect();
    let count: usize = shape.iter().product();
    let dtype = binding.value.dtype;
    if dtype.is_float() {
        let values = (0..count).map(|_| choices.below(2001) as f64 / 1000.0 - 1.0);
        Tensor::floats(dtype, shape, values.collect())
    } else {
        let values = (0..count).map(|_| choices.below(8) as i64);
        Tensor::ints(dtype, shape, values.collect())
    }
}

/// Outputs of graph and plan, and the graph's without roundings; and whether a rule that was applied
/// leaves roundings out.
fn outputs(imported: &ImportedGraph, tokens: i64, seed: u64) -> ([Vec<Tensor>; 3], bool) {
    let (plan, report) = build(imported).expect("a plan");
    let improves = |rule: &Rule| rule.numerics == Numerics::Improves;
    let rounds_less = all().any(|rule| improves(rule) && report.rules.contains_key(rule.name));
    let mut choices = Choices(seed);
    let mut draw = |bindings: &[Binding]| -> Vec<Tensor> {
        let tensors = bindings.iter().map(|of| random(of, tokens, &mut choices));
        tensors.collect()
    };
    let (inputs, parameters) = (draw(&imported.inputs), draw(&imported.parameters));
    let symbols = [tokens];
    let with = |precision| Interpreter {
        precision,
        symbols: &symbols,
        effect: Some(attend),
    };
    let graph = |precision| {
        let results = with(precision).graph(&imported.graph, &inputs, &parameters);
        results.expect("a graph that has a meaning")
    };
    let planned = with(Precision::Rounded).plan(&plan, &inputs, &parameters);
    let outputs = [
        graph(Precision::Rounded),
        planned.expect("a plan that has a meaning"),
        graph(Precision::Unrounded),
    ];
    (outputs, rounds_less)
}

/// Bit for bit the same elements; all NaNs are one.
fn same(a: &Tensor, b: &Tensor) -> bool {
    let pair = |(a, b): (f64, f64)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
    a.to_f64().into_iter().zip(b.to_f64()).all(pair)
}

/// Largest distance from `exact`, over the size of the largest exact element.
fn error(of: &Tensor, exact: &Tensor) -> f64 {
    let exact = exact.to_f64();
    let largest = exact.iter().fold(f64::MIN_POSITIVE, |a, b| a.max(b.abs()));
    let distances = of
        .to_f64()
        .into_iter()
        .zip(&exact)
        .map(|(a, b)| match (a - b).abs() {
            distance if distance.is_nan() && !(a.is_nan() && b.is_nan()) => f64::INFINITY,
            distance if distance.is_nan() => 0.0,
            distance => distance,
        });
    distances.fold(0.0, f64::max) / largest
}

/// Relative rounding error of one operator.
fn unit(dtype: DType) -> f64 {
    match dtype {
        DType::Float16 => 2f64.powi(-11),
        DType::Bfloat16 => 2f64.powi(-8),
        _ => 2f64.powi(-24),
    }
}

#[test]
fn plans_of_captured_models_compute_what_was_captured() {
    for model in MODELS {
        let bytes = document(&format!("{model}.whole"));
        let document = Document::parse(&bytes).expect("a document");
        let program = import(&document, &Options::default()).expect("a program");
        for imported in &program.graphs {
            for tokens in [1, 3] {
                let ([graph, plan, exact], _) = outputs(imported, tokens, 7);
                for ((old, new), exact) in graph.iter().zip(&plan).zip(&exact) {
                    assert_eq!((old.dtype, &old.shape), (new.dtype, &new.shape));
                    let (before, after) = (error(old, exact), error(new, exact));
                    // Two evaluations of a deep model differ by their roundings alone.
                    let allowed = 2.0 * before + 4.0 * unit(new.dtype);
                    assert!(
                        after <= allowed,
                        "{model} {}, {tokens} tokens: {after:e}, unfused {before:e}",
                        imported.name
                    );
                }
            }
        }
    }
}

/// A random program: operators on what is there already, those that do not fit left out.
fn program(seed: u64) -> ImportedGraph {
    let mut choices = Choices(seed);
    let dtype = [DType::Float32, DType::Float16, DType::Bfloat16][choices.below(3)];
    let (t, n) = (
        Dim::symbol(0),
        Dim::Fixed(2 * (1 + choices.below(3)) as i64),
    );
    let mut builder = Builder::default();
    let mut values = Vec::new();
    let mut inputs = Vec::new();
    let mut parameters = Vec::new();
    let shapes = [vec![t, n], vec![t, 3.into(), n], vec![t, 1.into(), n]];
    for shape in shapes {
        let value = TensorType { dtype, shape };
        let leaf = Op::Input(inputs.len() as u32);
        let node = builder.node(leaf, &[], vec![value.clone()]);
        values.push(Value { node, output: 0 });
        let name = format!("x{}", inputs.len());
        inputs.push(Binding { name, value });
    }
    for shape in [vec![n], vec![n, n], vec![n]] {
        let value = TensorType { dtype, shape };
        let leaf = Op::Parameter(parameters.len() as u32);
        let node = builder.node(leaf, &[], vec![value.clone()]);
        values.push(Value { node, output: 0 });
        let name = format!("w{}", parameters.len());
        parameters.push(Binding { name, value });
    }
    let eps = builder.scalar(Scalar::Float(Float::new(1e-3)), DType::Float32);
    for _ in 0..12 + choices.below(30) {
        let recent = |choices: &mut Choices| {
            let back = choices.below(values.len()).min(choices.below(values.len()));
            values[values.len() - 1 - back]
        };
        let (x, y) = (recent(&mut choices), recent(&mut choices));
        let last = builder.shape(x).len().saturating_sub(1);
        let added = match choices.below(14) {
            0 => builder.cast(x, DType::Float32),
            1 => builder.cast(x, dtype),
            2 => builder.unary([Unary::Silu, Unary::Gelu, Unary::Neg][choices.below(3)], x),
            3 | 4 => builder.binary(
                [Binary::Add, Binary::Sub, Binary::Mul][choices.below(3)],
                x,
                y,
            ),
            5 => builder.matmul(x, values[4]),
            6 => builder.add(Op::Softmax { axis: last }, &[x]),
            7 => builder.slice(x, last, 0.into(), (n.fixed().unwrap_or(2) / 2).into(), 1),
            8 => builder.concat(&[x, y], last),
            9 | 10 => normalise(&mut builder, x, eps, values[3 + 2 * choices.below(2)]),
            11 => gate(&mut builder, x, last),
            12 => builder
                .num_elements(x)
                .ok_or_else(String::new)
                .and_then(|total| {
                    let rest = total.checked_div(2).ok_or_else(String::new)?;
                    builder.reshape(x, vec![rest, 2.into()])
                }),
            _ => builder.reduce(Reduction::Mean, x, vec![last], true),
        };
        values.extend(added);
    }
    let mut graph = builder.graph;
    let outputs = values.iter().rev().take(3);
    graph.outputs = outputs.copied().collect();
    ImportedGraph {
        name: "random".into(),
        symbols: vec![],
        inputs,
        parameters,
        graph: graph.into_canonical(),
        fallbacks: vec![],
        captured_nodes: 0,
    }
}

/// vLLM's RMSNorm.
fn normalise(b: &mut Builder, x: Value, eps: Value, weight: Value) -> Result<Value, String> {
    let dtype = b.dtype(x);
    let wide = b.cast(x, DType::Float32)?;
    let axis = b.shape(x).len().checked_sub(1).ok_or("rank 0")?;
    let square = b.unary(Unary::Square, wide)?;
    let mean = b.reduce(Reduction::Mean, square, vec![axis], true)?;
    let shifted = b.binary(Binary::Add, mean, eps)?;
    let scale = b.unary(Unary::Rsqrt, shifted)?;
    let normal = b.binary(Binary::Mul, wide, scale)?;
    let normal = b.cast(normal, dtype)?;
    b.binary(Binary::Mul, normal, weight)
}

/// vLLM's SiLU gate.
fn gate(b: &mut Builder, x: Value, last: usize) -> Result<Value, String> {
    let length = *b.shape(x).get(last).ok_or("rank 0")?;
    let half = length.checked_div(2).ok_or("odd")?;
    let first = b.slice(x, last, 0.into(), half, 1)?;
    let second = b.slice(x, last, half, length, 1)?;
    let first = b.unary(Unary::Silu, first)?;
    b.binary(Binary::Mul, first, second)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cases(),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn plans_of_random_programs_compute_their_graphs(
        seed in any::<u64>(),
        tokens in prop::sample::select(vec![1i64, 2, 8, 9, 33]),
    ) {
        let imported = program(seed);
        let ([graph, plan, exact], rounds_less) = outputs(&imported, tokens, seed);
        for ((old, new), exact) in graph.iter().zip(&plan).zip(&exact) {
            prop_assert_eq!((old.dtype, &old.shape), (new.dtype, &new.shape));
            if !rounds_less {
                prop_assert!(same(old, new), "{old:?} became {new:?}");
                continue;
            }
            let (before, after) = (error(old, exact), error(new, exact));
            // Whatever a fusion rounds less, later operators may amplify: a bound on both.
            let unit = imported.inputs.first().map_or(0.0, |x| unit(x.value.dtype));
            prop_assert!(after <= 4.0 * before + 64.0 * unit, "{after:e}, unfused {before:e}");
        }
    }
}
