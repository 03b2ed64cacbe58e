// SPDX-License-Identifier: Apache-2.0
//! A token for each row of logits: temperature, min-p, top-k, top-p, and a random stream of its own.
//!
//! Of a row with temperature `t > 0` those tokens are kept whose logit is at least
//! `largest + t log(min_p)`, of those the `top_k` largest, and of those the largest that hold `top_p`
//! of the mass of `exp(x / t)`; of equal logits all or none. The token is the kept one with the largest
//! `x / t - log(-log u)`, a sample of their softmax (Gumbel 1954). `u` comes of Philox-4x32-10 with the
//! row's seed as key and token and step as counter: a row's token depends on its own logits and
//! parameters alone, and a step can be drawn again. Temperature 0 takes the largest logit, of equal ones
//! the first.
//!
//! [`sample`] is lazy. It launches the kernel `sample` where the plan chose it and the row fits, and is
//! MLX operations otherwise ([`reference`]), which draw the same numbers.

mod reference;

use super::error::{Error, Result};
use super::island::IslandRunner;
use super::kernels::{Kernels, Launcher, launch};
use super::mlx::{Array, Mlx, dtype, float_array, int_array, word_array};
use super::tensor::{Tensor, find};
use lowering::ir::DType;
use lowering::plan::KernelChoice;

/// What a row draws with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// 0 takes the largest logit.
    pub temperature: f32,
    /// 0 keeps all, and so does more than there are tokens.
    pub top_k: u32,
    /// 1 keeps all.
    pub top_p: f32,
    /// 0 keeps all.
    pub min_p: f32,
    /// Of the row's random stream.
    pub seed: u64,
    /// Tokens that the request has, or any other number that differs from draw to draw.
    pub step: u32,
}

impl Row {
    /// Takes the largest logit.
    pub const GREEDY: Row = Row {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        seed: 0,
        step: 0,
    };

    fn is_random(&self) -> bool {
        self.temperature > 0.0
    }

    fn check(&self) -> Result<(), String> {
        let Row {
            temperature,
            top_p,
            min_p,
            ..
        } = *self;
        let checks = [
            (
                "temperature",
                temperature,
                temperature >= 0.0 && temperature.is_finite(),
            ),
            ("top_p", top_p, top_p > 0.0 && top_p <= 1.0),
            ("min_p", min_p, (0.0..=1.0).contains(&min_p)),
        ];
        match checks.into_iter().find(|(.., holds)| !holds) {
            Some((name, value, _)) => Err(format!("{name} {value}")),
            None => Ok(()),
        }
    }
}

/// What any of the rows needs: decides which operations there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Needs {
    random: bool,
    top_k: bool,
    top_p: bool,
    min_p: bool,
}

/// The rows' parameters as arrays.
pub struct Sampling {
    needs: Needs,
    num_rows: usize,
    /// float32 `[rows]`
    temperature: Array,
    /// int32 `[rows]`
    top_k: Array,
    /// float32 `[rows]`
    top_p: Array,
    /// float32 `[rows]`
    min_p: Array,
    /// uint32 `[rows, 2]`, the low word first
    seeds: Array,
    /// uint32 `[rows]`
    steps: Array,
}

impl Sampling {
    /// Parameters of the rows of logits, in order.
    ///
    /// # Errors
    /// Names the row and the parameter that is out of range.
    pub fn new(rows: &[Row]) -> Result<Sampling> {
        for (index, row) in rows.iter().enumerate() {
            row.check()
                .map_err(|reason| Error::Tensor(format!("sampling: row {index} has {reason}")))?;
        }
        let random = || rows.iter().filter(|row| row.is_random());
        let needs = Needs {
            random: random().next().is_some(),
            top_k: random().any(|row| row.top_k > 0),
            top_p: random().any(|row| row.top_p < 1.0),
            min_p: random().any(|row| row.min_p > 0.0),
        };
        let count = rows.len() as i32;
        let floats = |of: fn(&Row) -> f32| {
            let values: Vec<f32> = rows.iter().map(of).collect();
            float_array(&values, &[count])
        };
        let top_k = rows.iter().map(|row| row.top_k.min(i32::MAX as u32) as i32);
        let seeds = rows.iter();
        let seeds = seeds.flat_map(|row| [row.seed as u32, (row.seed >> 32) as u32]);
        let steps = rows.iter().map(|row| row.step);
        Ok(Sampling {
            needs,
            num_rows: rows.len(),
            temperature: floats(|row| row.temperature)?,
            top_k: int_array(&top_k.collect::<Vec<_>>(), &[count])?,
            top_p: floats(|row| row.top_p)?,
            min_p: floats(|row| row.min_p)?,
            seeds: word_array(&seeds.collect::<Vec<_>>(), &[count, 2])?,
            steps: word_array(&steps.collect::<Vec<_>>(), &[count])?,
        })
    }

    /// Whether every row takes its largest logit.
    pub fn is_greedy(&self) -> bool {
        !self.needs.random
    }
}

/// A token for each row of `logits [rows, vocab]`, lazily: int32 `[rows]`.
///
/// `kernel` is the plan's choice, where it may be used, and `launch` launches it; nothing else does.
///
/// # Errors
/// Logits of another rank or number of rows, or a launch that fails.
pub fn sample(
    mlx: &Mlx,
    logits: &Array,
    sampling: &Sampling,
    kernel: Option<&KernelChoice>,
    launch: &mut Launcher,
) -> Result<Array> {
    let &[rows, vocab] = logits.shape() else {
        let reason = format!("sampling: logits of shape {:?}", logits.shape());
        return Err(Error::Tensor(reason));
    };
    if rows as usize != sampling.num_rows || vocab < 1 {
        let given = sampling.num_rows;
        let reason = format!("sampling: parameters of {given} rows for logits [{rows}, {vocab}]");
        return Err(Error::Tensor(reason));
    }
    if rows == 0 {
        return Ok(mlx.zeros(&[0], DType::Int32)?);
    }
    if sampling.is_greedy() {
        return Ok(mlx.cast(&mlx.argmax(logits, -1, false)?, DType::Int32)?);
    }
    let Some(kernel) = kernel.filter(|kernel| takes(kernel, vocab, dtype(logits))) else {
        return reference::draw(mlx, logits, sampling);
    };
    let inputs = [
        logits,
        &sampling.temperature,
        &sampling.top_k,
        &sampling.top_p,
        &sampling.min_p,
        &sampling.seeds,
        &sampling.steps,
    ];
    let found = launch(kernel, &[("num_requests", i64::from(rows))], &inputs)?;
    let tokens = found.into_iter().next();
    tokens.ok_or_else(|| Error::Internal("a kernel without a result".to_owned()))
}

/// Whether the kernel that the plan chose is for such rows.
fn takes(kernel: &KernelChoice, vocab: i32, logits: Option<DType>) -> bool {
    kernel.sizes.get("vocab_size") == Some(&i64::from(vocab))
        && logits.is_some()
        && kernel.dtypes.get("T").copied() == logits
}

/// [`sample`] on a tensor by itself, outside of any model's step. Without Metal the kernel is run by its
/// stand-in, as in a model.
///
/// # Errors
/// As [`sample`], or parameters out of range.
pub fn sample_tensor(
    logits: &Tensor,
    rows: Vec<Row>,
    kernel: Option<KernelChoice>,
    stand_in: Option<Box<dyn IslandRunner>>,
) -> Result<Tensor> {
    let (id, owner) = (logits.id(), logits.owner().clone());
    logits.owner().call(move |state| {
        let mlx = &state.mlx;
        let sampling = Sampling::new(&rows)?;
        let mut kernels = Kernels::default();
        let stand_in = stand_in.as_deref();
        let mut launch = |choice: &KernelChoice, step: &[_], inputs: &[&Array]| {
            launch(mlx, &owner, &mut kernels, stand_in, choice, step, inputs)
        };
        let logits = find(state, id)?;
        let tokens = sample(mlx, logits, &sampling, kernel.as_ref(), &mut launch)?;
        Tensor::new(state, &owner, tokens)
    })
}

#[cfg(test)]
mod tests;
