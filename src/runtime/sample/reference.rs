// SPDX-License-Identifier: Apache-2.0
//! Sampling by MLX operations: what the kernel `sample` computes, by sorting.

use super::Sampling;
use crate::runtime::error::Result;
use crate::runtime::mlx::{Array, Mlx, scalar, word};
use lowering::ir::DType;

/// The tokens `[rows]`, int32, of `logits [rows, vocab]`; some row is random.
pub fn draw(mlx: &Mlx, logits: &Array, sampling: &Sampling) -> Result<Array> {
    let number = |value: f64| scalar(mlx, value, DType::Float32);
    let none = number(f64::NEG_INFINITY)?;
    // As if what is no number were not there.
    let absent = |x: &Array| mlx.select(&mlx.isnan(x)?, &none, x);
    let x = absent(&mlx.cast(logits, DType::Float32)?)?;
    let (rows, vocab) = (x.shape()[0], x.shape()[1]);
    let column = |array: &Array| mlx.reshape(array, &[rows, 1]);

    let temperature = column(&sampling.temperature)?;
    let random = mlx.greater(&temperature, &number(0.0)?)?;
    let heat = mlx.select(&random, &temperature, &number(1.0)?)?;
    let largest = mlx.max(&x, &[1], true)?;
    let heated = |x: &Array| mlx.divide(&mlx.subtract(x, &largest)?, &heat);

    let mut score = mlx.add(&heated(&x)?, &gumbel(mlx, sampling, vocab)?)?;
    if let Some(bound) = bound(mlx, &x, &largest, &heat, sampling)? {
        score = mlx.select(&mlx.greater_equal(&x, &bound)?, &score, &none)?;
    }
    let score = absent(&mlx.select(&random, &score, &x)?)?;
    Ok(mlx.cast(&mlx.argmax(&score, -1, false)?, DType::Int32)?)
}

/// The smallest logit that is kept `[rows, 1]`; none where every row keeps all.
fn bound(
    mlx: &Mlx,
    x: &Array,
    largest: &Array,
    heat: &Array,
    sampling: &Sampling,
) -> Result<Option<Array>> {
    let (needs, &[rows, vocab]) = (sampling.needs, x.shape()) else {
        return Ok(None);
    };
    let number = |value: f64| scalar(mlx, value, DType::Float32);
    let column = |array: &Array| mlx.reshape(array, &[rows, 1]);
    let none = number(f64::NEG_INFINITY)?;
    let mut bound: Option<Array> = None;
    let raise = |bound: Option<Array>, to: Array| match bound {
        Some(bound) => mlx.maximum(&bound, &to),
        None => Ok(to),
    };
    if needs.min_p {
        let least = mlx.log(&column(&sampling.min_p)?)?;
        let least = mlx.add(largest, &mlx.multiply(heat, &least)?)?;
        bound = Some(raise(bound, least)?);
    }
    if !needs.top_k && !needs.top_p {
        return Ok(bound);
    }
    let falling = mlx.negative(&mlx.sort(&mlx.negative(x)?, 1)?)?;
    if needs.top_k {
        let one = scalar(mlx, 1.0, DType::Int32)?;
        let (count, all) = (
            column(&sampling.top_k)?,
            scalar(mlx, f64::from(vocab), DType::Int32)?,
        );
        let last = mlx.subtract(&mlx.maximum(&mlx.minimum(&count, &all)?, &one)?, &one)?;
        let least = mlx.take_along_axis(&falling, &last, 1)?;
        let least = mlx.select(&mlx.greater_equal(&count, &one)?, &least, &none)?;
        bound = Some(raise(bound, least)?);
    }
    if needs.top_p {
        let zero = number(0.0)?;
        let mut weights = mlx.exp(&mlx.divide(&mlx.subtract(&falling, largest)?, heat)?)?;
        if let Some(bound) = &bound {
            weights = mlx.select(&mlx.greater_equal(&falling, bound)?, &weights, &zero)?;
        }
        let sums = mlx.cumsum(&weights, 1)?;
        let total = mlx.slice(&sums, 1, vocab - 1, vocab, 1)?;
        let share = column(&sampling.top_p)?;
        // The largest is always kept.
        let limit = mlx.maximum(&mlx.multiply(&share, &total)?, &number(1e-30)?)?;
        // Equal logits follow each other, and the first of them decides.
        let larger = mlx.subtract(&sums, &weights)?;
        let kept = mlx.less(&larger, &limit)?;
        let least = mlx.select(&kept, &falling, &number(f64::INFINITY)?)?;
        let least = mlx.min(&least, &[1], true)?;
        let least = mlx.select(&mlx.less(&share, &number(1.0)?)?, &least, &none)?;
        bound = Some(raise(bound, least)?);
    }
    Ok(bound)
}

/// `-log(-log u)` `[rows, vocab]`, with `u` between 0 and 1 from the rows' streams.
fn gumbel(mlx: &Mlx, sampling: &Sampling, vocab: i32) -> Result<Array> {
    let number = |value: f64| scalar(mlx, value, DType::Float32);
    let rows = sampling.num_rows as i32;
    let blocks = (vocab + 3) / 4;
    let words = philox(mlx, sampling, blocks)?;
    let words: Vec<Array> = words
        .iter()
        .map(|words| mlx.reshape(words, &[rows, blocks, 1]))
        .collect::<Result<_, _>>()?;
    let words = mlx.concatenate(&words.iter().collect::<Vec<_>>(), 2)?;
    let words = mlx.slice(&mlx.reshape(&words, &[rows, blocks * 4])?, 1, 0, vocab, 1)?;
    // 23 bits and a half: a float has them all, so that u is never 1.
    let high = mlx.cast(&mlx.right_shift(&words, &word(9)?)?, DType::Float32)?;
    let u = mlx.multiply(
        &mlx.add(&high, &number(0.5)?)?,
        &number(f64::powi(2.0, -23))?,
    )?;
    Ok(mlx.negative(&mlx.log(&mlx.negative(&mlx.log(&u)?)?)?)?)
}

/// Philox-4x32-10 (Salmon et al. 2011) with counters `(block, step, 0, 0)` and the rows' seeds as keys:
/// four words of each block, `[rows, blocks]` each.
pub fn philox(mlx: &Mlx, sampling: &Sampling, blocks: i32) -> Result<[Array; 4]> {
    let rows = sampling.num_rows as i32;
    let factors = [word(0xD251_1F53)?, word(0xCD9E_8D57)?];
    let steps = [word(0x9E37_79B9)?, word(0xBB67_AE85)?];
    let key = |at: i32| mlx.slice(&sampling.seeds, 1, at, at + 1, 1);
    let mut keys = [key(0)?, key(1)?];
    let zero = mlx.reshape(&word(0)?, &[1, 1])?;
    let mut counter = [
        mlx.reshape(&mlx.count(blocks, DType::Uint32)?, &[1, blocks])?,
        mlx.reshape(&sampling.steps, &[rows, 1])?,
        zero.clone(),
        zero,
    ];
    for _ in 0..10 {
        let [high_0, low_0] = mlx.multiply_words(&counter[0], &factors[0])?;
        let [high_2, low_2] = mlx.multiply_words(&counter[2], &factors[1])?;
        let mix = |x: &Array, y: &Array, key: &Array| mlx.bitwise_xor(&mlx.bitwise_xor(x, y)?, key);
        counter = [
            mix(&high_2, &counter[1], &keys[0])?,
            low_2,
            mix(&high_0, &counter[3], &keys[1])?,
            low_0,
        ];
        keys = [mlx.add(&keys[0], &steps[0])?, mlx.add(&keys[1], &steps[1])?];
    }
    let shape = [rows, blocks];
    let [a, b, c, d] = counter;
    let whole = |x: Array| mlx.broadcast_to(&x, &shape);
    Ok([whole(a)?, whole(b)?, whole(c)?, whole(d)?])
}
