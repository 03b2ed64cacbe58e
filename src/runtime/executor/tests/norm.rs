// SPDX-License-Identifier: Apache-2.0
//! Normalisations against their definition.

use super::*;
fn rms(x: &[f64], eps: f64) -> f64 {
    1.0 / (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + eps).sqrt()
}

#[test]
fn norms_equal_their_definition_with_the_rounding_that_the_plan_states() {
    let mlx = cpu();
    let mut random = Random(11);
    let eps = Float::new(1e-3);
    for dtype in [DType::Float32, DType::Bfloat16, DType::Float16] {
        let round = |values: &[f64]| -> Vec<f64> {
            let narrow: Vec<f32> = values.iter().map(|v| *v as f32).collect();
            let array = floats(&narrow, &[narrow.len() as i32]);
            self::values(&mlx, &half(&mlx, &array, dtype))
        };
        let array = |random: &mut Random, scale: f32| {
            let values: Vec<f32> = random.units(16).iter().map(|v| v * scale).collect();
            half(&mlx, &floats(&values, &[1, 16]), dtype)
        };
        let (x, residual) = (array(&mut random, 3.0), array(&mut random, 0.1));
        let weight = mlx.reshape(&array(&mut random, 1.0), &[16]).unwrap();
        let wide = mlx.cast(&weight, DType::Float32).unwrap();
        let (xs, rs, ws) = (
            values(&mlx, &x),
            values(&mlx, &residual),
            values(&mlx, &weight),
        );
        // One unit in the last place of the largest element, for sums in another order.
        let tolerance = match dtype {
            DType::Float32 => 1e-6,
            DType::Float16 => 2e-3,
            _ => 1.6e-2,
        };
        let normed = |x: &[f64]| -> Vec<f64> { x.iter().map(|v| v * rms(x, eps.get())).collect() };
        let times = |x: &[f64]| -> Vec<f64> { x.iter().zip(&ws).map(|(a, b)| a * b).collect() };
        let mostly_equal = |found: &[f64], expected: &[f64]| {
            assert!(
                difference(found, expected) < tolerance,
                "{dtype} {found:?} {expected:?}"
            );
            if dtype != DType::Float32 {
                let off = found.iter().zip(expected).filter(|(a, b)| a != b).count();
                assert!(off <= 1, "{dtype} {found:?} {expected:?}");
            }
        };

        let op = Op::RmsNorm { eps };
        let found = values(&mlx, &run(&mlx, &op, &[&x, &weight], dtype));
        mostly_equal(&found, &round(&times(&round(&normed(&xs)))));
        let found = values(&mlx, &run(&mlx, &op, &[&x, &wide], dtype));
        mostly_equal(&found, &round(&times(&normed(&xs))));
        let found = values(&mlx, &run(&mlx, &op, &[&x], dtype));
        mostly_equal(&found, &round(&normed(&xs)));

        let sum: Vec<f64> = xs.iter().zip(&rs).map(|(a, b)| a + b).collect();
        for (rounded_sum, seen) in [(false, sum.clone()), (true, round(&sum))] {
            let op = Op::AddRmsNorm { eps, rounded_sum };
            let results = run_all(&mlx, &op, &[&x, &residual, &weight], dtype);
            mostly_equal(
                &values(&mlx, &results[0]),
                &round(&times(&round(&normed(&seen)))),
            );
            mostly_equal(&values(&mlx, &results[1]), &round(&sum));
            let results = run_all(&mlx, &op, &[&x, &residual, &wide], dtype);
            mostly_equal(&values(&mlx, &results[0]), &round(&times(&normed(&seen))));
            assert!(
                results
                    .iter()
                    .all(|result| mlx::dtype(result) == Some(dtype))
            );
        }

        let mean = xs.iter().sum::<f64>() / 16.0;
        let centred: Vec<f64> = xs.iter().map(|v| v - mean).collect();
        let found = run(&mlx, &Op::LayerNorm { eps }, &[&x, &weight, &weight], dtype);
        let expected: Vec<f64> = times(&normed(&centred))
            .iter()
            .zip(&ws)
            .map(|(a, b)| a + b)
            .collect();
        assert!(difference(&values(&mlx, &found), &expected) < tolerance * 2.0);

        // The norm of the rounded sum, and the sum.
        let op = Op::AddLayerNorm { eps };
        for parameters in [vec![], vec![&wide], vec![&wide, &wide]] {
            let operands = [vec![&x, &residual], parameters.clone()].concat();
            let results = run_all(&mlx, &op, &operands, dtype);
            mostly_equal(&values(&mlx, &results[1]), &round(&sum));
            let seen = round(&sum);
            let mean = seen.iter().sum::<f64>() / 16.0;
            let centred: Vec<f64> = seen.iter().map(|v| v - mean).collect();
            let mut expected = normed(&centred);
            if !parameters.is_empty() {
                expected = times(&expected);
            }
            if parameters.len() > 1 {
                expected = expected.iter().zip(&ws).map(|(a, b)| a + b).collect();
            }
            let found = values(&mlx, &results[0]);
            assert!(difference(&found, &expected) < tolerance * 2.0);
            assert!(
                results
                    .iter()
                    .all(|result| mlx::dtype(result) == Some(dtype))
            );
        }
    }
}
