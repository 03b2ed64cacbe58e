// SPDX-License-Identifier: Apache-2.0
//! What pattern variables may stand for: small vocabularies of values, one for each kind of place in
//! a model. A rule whose variables are in none of them needs a value here, and says so by failing
//! `every_rule_is_fuzzed`.

use crate::ir::{Builder, DType, Dim, Float, Op, RopeStyle, Scalar, TensorType, Value};

/// Sizes and dtype of one case.
#[derive(Clone, Debug)]
pub struct Env {
    pub tokens: i64,
    /// Whether the token count is a symbol.
    pub symbolic: bool,
    pub heads: i64,
    /// Half of the rotated part of a head, and what follows that part.
    pub half: i64,
    pub rest: i64,
    pub columns: i64,
    pub dtype: DType,
    pub eps: f64,
}

impl Env {
    /// The token count as a size.
    pub fn t(&self) -> Dim {
        match self.symbolic {
            true => Dim::symbol(0),
            false => Dim::Fixed(self.tokens),
        }
    }

    fn rotated(&self) -> i64 {
        2 * self.half
    }

    /// Shapes that a reshape may give.
    pub fn shapes(&self) -> Vec<Vec<Dim>> {
        let (t, h, r) = (self.t(), Dim::Fixed(self.heads), Dim::Fixed(self.rotated()));
        let one = Dim::Fixed(1);
        let [half, n] = [self.half, self.columns].map(Dim::Fixed);
        vec![
            vec![t, h, half, one],
            vec![t, h, r],
            vec![t, n],
            vec![t, one, n],
            vec![one, t, n],
            vec![n, t],
            vec![t, one, r],
        ]
    }
}

/// Builds a vocabulary. Its length does not depend on the sizes.
pub type Site = fn(&Env, &mut Values) -> Option<()>;

/// The vocabulary under construction.
#[derive(Default)]
pub struct Values {
    pub builder: Builder,
    pub inputs: Vec<TensorType>,
    pub values: Vec<Value>,
    /// Shapes that a reshape may give here, where they are not those of [`Env::shapes`].
    pub shapes: Option<Vec<Vec<Dim>>>,
}

impl Values {
    fn leaf(&mut self, dtype: DType, shape: &[Dim]) -> Value {
        let leaf = TensorType {
            dtype,
            shape: shape.to_vec(),
        };
        self.inputs.push(leaf.clone());
        let index = self.inputs.len() as u32 - 1;
        Value {
            node: self.builder.node(Op::Input(index), &[], vec![leaf]),
            output: 0,
        }
    }

    fn input(&mut self, dtype: DType, shape: &[Dim]) -> Value {
        let value = self.leaf(dtype, shape);
        self.values.push(value);
        value
    }

    fn constant(&mut self, number: f64, dtype: DType) {
        let constant = Scalar::Float(Float::new(number));
        let constant = self.builder.scalar(constant, dtype);
        self.values.push(constant);
    }

    fn cut(&mut self, x: Value, start: i64, stop: i64, step: i64) -> Option<()> {
        let axis = self.builder.shape(x).len() - 1;
        let cut = self.builder.slice(x, axis, start.into(), stop.into(), step);
        self.values.push(cut.ok()?);
        Some(())
    }

    /// A head's parts that rotations name.
    fn parts(&mut self, env: &Env, x: Value) -> Option<()> {
        self.values.push(x);
        self.cut(x, 0, env.half, 1)?;
        self.cut(x, env.half, env.rotated(), 1)?;
        self.cut(x, 0, env.rotated(), 1)?;
        self.cut(x, env.rotated(), env.rotated() + env.rest, 1)
    }
}

/// All vocabularies, with the operator that a pattern must hold for the vocabulary to serve it: the
/// others would be searched in vain.
pub const SITES: &[(Site, Option<&str>)] = &[
    (norm, None),
    (rope, None),
    (rope_interleaved, None),
    (rotated_part, None),
    (|env, values| rotate_half(env, values, [0, 1, 2]), None),
    (|env, values| rotate_half(env, values, [3, 0, 1, 2]), None),
    (|env, values| rotate_half(env, values, [3, 1, 0, 2]), None),
    (rotate_pairs, None),
    (|env, values| rotate_half_batch(env, values, 1), None),
    (|env, values| rotate_half_batch(env, values, 2), None),
    (gate, None),
    (gate_pair, None),
    (gate_halves, Some("gated_activation")),
    (
        |env, values| written_out_gelu(env, values, env.dtype),
        Some("erf"),
    ),
    (
        |env, values| written_out_gelu(env, values, DType::Float32),
        Some("erf"),
    ),
    (
        |env, values| written_out_gelu(env, values, env.dtype),
        Some("tanh"),
    ),
    (
        |env, values| written_out_gelu(env, values, DType::Float32),
        Some("tanh"),
    ),
    (linear, None),
    (gather, None),
    (batches, None),
    (
        |env, values| heads_and_keys(env, values, true),
        Some("attention_scores"),
    ),
    (
        |env, values| heads_and_keys(env, values, false),
        Some("attention_scores"),
    ),
    (scores_and_sinks, Some("concat_last")),
    (scales, Some("attention_scores")),
    (shared_heads, Some("scaled_dot_product_attention")),
];

fn norm(env: &Env, values: &mut Values) -> Option<()> {
    let rows = [env.t(), Dim::Fixed(env.columns)];
    for dtype in [env.dtype, DType::Float32] {
        values.input(dtype, &rows);
        values.input(dtype, &rows);
        values.input(dtype, &rows[1..]);
    }
    values.constant(env.eps, DType::Float32);
    values.constant(env.columns as f64, DType::Float32);
    Some(())
}

fn angles(env: &Env, values: &mut Values, columns: i64, shape: &[Dim]) -> Option<()> {
    for _ in 0..2 {
        let rows = values.leaf(env.dtype, &[env.t(), Dim::Fixed(columns)]);
        let angle = values.builder.reshape(rows, shape.to_vec()).ok()?;
        values.values.push(angle);
    }
    Some(())
}

fn heads(env: &Env) -> [Dim; 3] {
    [
        env.t(),
        Dim::Fixed(env.heads),
        Dim::Fixed(env.rotated() + env.rest),
    ]
}

fn rope(env: &Env, values: &mut Values) -> Option<()> {
    angles(env, values, env.half, &[env.t(), 1.into(), env.half.into()])?;
    let x = values.leaf(env.dtype, &heads(env));
    values.parts(env, x)
}

fn rope_interleaved(env: &Env, values: &mut Values) -> Option<()> {
    angles(env, values, env.half, &[env.t(), 1.into(), env.half.into()])?;
    let x = values.leaf(env.dtype, &heads(env));
    values.cut(x, 0, env.rotated(), 2)?;
    values.cut(x, 1, env.rotated(), 2)
}

/// The first part of rotated heads, and the rest.
fn rotated_part(env: &Env, values: &mut Values) -> Option<()> {
    let rows = [env.t(), Dim::Fixed(env.half)];
    let (cos, sin) = (values.leaf(env.dtype, &rows), values.leaf(env.dtype, &rows));
    let x = values.leaf(env.dtype, &heads(env));
    let op = Op::Rope {
        style: RopeStyle::Neox,
        rotary_dim: env.rotated(),
    };
    let rotated = values.builder.add(op, &[cos, sin, x]).ok()?;
    values.cut(rotated, 0, env.rotated(), 1)?;
    values.cut(x, env.rotated(), env.rotated() + env.rest, 1)
}

/// Heads `[t, heads, d]`, or with a batch of 1 in the order that `axes` takes from `[t, heads, d, 1]`.
fn rotate_half<const N: usize>(env: &Env, values: &mut Values, axes: [usize; N]) -> Option<()> {
    let [t, h, d] = heads(env);
    let order = |sizes: [Dim; 4]| axes.map(|axis| sizes[axis]);
    let one = Dim::Fixed(1);
    let columns = env.rotated();
    angles(env, values, columns, &order([t, one, columns.into(), one]))?;
    let x = values.leaf(env.dtype, &order([t, h, d, one]));
    values.parts(env, x)
}

/// Heads `[t, heads, d]` with their even and odd elements, and angles for each element.
fn rotate_pairs(env: &Env, values: &mut Values) -> Option<()> {
    let one = Dim::Fixed(1);
    let columns = env.rotated();
    angles(env, values, columns, &[env.t(), one, columns.into()])?;
    let x = values.leaf(env.dtype, &heads(env));
    values.cut(x, 0, columns, 2)?;
    values.cut(x, 1, columns, 2)?;
    values.cut(x, 0, columns, 1)?;
    values.cut(x, columns, columns + env.rest, 1)?;
    let (t, h) = (env.t(), Dim::Fixed(env.heads));
    values.shapes = Some(vec![
        vec![t, h, env.half.into(), one],
        vec![t, h, columns.into()],
    ]);
    Some(())
}

/// A batch of 2 heads `[2, heads, t, d]` with angles for each or for all of them.
fn rotate_half_batch(env: &Env, values: &mut Values, angles: i64) -> Option<()> {
    let [t, h, d] = heads(env);
    let columns = Dim::Fixed(env.rotated());
    for _ in 0..2 {
        values.input(env.dtype, &[angles.into(), 1.into(), t, columns]);
    }
    let x = values.leaf(env.dtype, &[2.into(), h, t, d]);
    values.parts(env, x)
}

fn gate(env: &Env, values: &mut Values) -> Option<()> {
    values.input(env.dtype, &[env.t(), Dim::Fixed(2 * env.columns)]);
    values.input(env.dtype, &[env.t(), 3.into(), Dim::Fixed(2 * env.columns)]);
    Some(())
}

fn attention_heads(env: &Env, values: &mut Values, batch: bool) -> Vec<Dim> {
    let (t, h) = (env.t(), Dim::Fixed(env.heads));
    let outer: &[Dim] = if batch { &[Dim::Fixed(2)] } else { &[] };
    let of = |size: i64| [outer, &[h, t, Dim::Fixed(size)]].concat();
    values.input(env.dtype, &of(env.rotated()));
    values.input(env.dtype, &of(env.rotated()));
    values.input(env.dtype, &of(env.columns));
    of(1)
}

/// Queries, keys and values of an attention, with masks and what hides a score.
fn heads_and_keys(env: &Env, values: &mut Values, batch: bool) -> Option<()> {
    let (t, h) = (env.t(), Dim::Fixed(env.heads));
    attention_heads(env, values, batch);
    values.input(env.dtype, &[t, t]);
    values.input(env.dtype, &[h, 1.into(), t]);
    values.input(DType::Bool, &[t, t]);
    values.constant(-5.0, env.dtype);
    Some(())
}

/// Queries, keys and values of an attention with a number for each head beside its scores.
fn scores_and_sinks(env: &Env, values: &mut Values) -> Option<()> {
    let (h, one) = (Dim::Fixed(env.heads), Dim::Fixed(1));
    let column = attention_heads(env, values, true);
    let per_head = values.leaf(env.dtype, &[h]);
    let sinks = values.builder.reshape(per_head, vec![one, h, one, one]);
    let sinks = values.builder.broadcast(sinks.ok()?, column);
    values.values.push(sinks.ok()?);
    values.input(env.dtype, &[env.t(), env.t()]);
    Some(())
}

/// Queries and keys, also transposed, and factors.
fn scales(env: &Env, values: &mut Values) -> Option<()> {
    let (t, h, size) = (env.t(), Dim::Fixed(env.heads), Dim::Fixed(env.rotated()));
    values.input(env.dtype, &[2.into(), h, t, size]);
    values.input(env.dtype, &[2.into(), h, t, size]);
    values.input(env.dtype, &[2.into(), h, size, t]);
    values.constant(0.5, env.dtype);
    values.constant(0.3, DType::Float32);
    Some(())
}

/// Queries of several heads that share keys, with all keys of one batch.
fn shared_heads(env: &Env, values: &mut Values) -> Option<()> {
    let (t, h) = (env.t(), Dim::Fixed(env.heads));
    let size = Dim::Fixed(env.rotated());
    values.input(env.dtype, &[2.into(), Dim::Fixed(3 * env.heads), t, size]);
    values.input(env.dtype, &[2.into(), h, t, size]);
    values.input(env.dtype, &[2.into(), h, t, size]);
    values.input(env.dtype, &[t, t]);
    values.input(env.dtype, &[Dim::Fixed(3 * env.heads)]);
    values.shapes = Some(vec![
        vec![2.into(), h, 1.into(), t, size],
        vec![2.into(), h, 3.into(), t, size],
        vec![2.into(), Dim::Fixed(3 * env.heads), t, size],
    ]);
    Some(())
}

/// Batches of matrices.
fn batches(env: &Env, values: &mut Values) -> Option<()> {
    let (t, n) = (env.t(), Dim::Fixed(env.columns));
    values.input(env.dtype, &[Dim::Fixed(2 * env.heads), t, n]);
    values.input(env.dtype, &[Dim::Fixed(2 * env.heads), n, t]);
    values.shapes = Some(vec![vec![2.into(), Dim::Fixed(env.heads), t, t]]);
    Some(())
}

/// Gates with what they let through, and their scales.
fn gate_pair(env: &Env, values: &mut Values) -> Option<()> {
    values.input(env.dtype, &[env.t(), Dim::Fixed(env.columns)]);
    values.input(env.dtype, &[env.t(), Dim::Fixed(env.columns)]);
    values.constant(1.702, DType::Float32);
    values.constant(0.5, env.dtype);
    Some(())
}

/// An operand and the constants of GELU's two forms: as the operand, and what is float32.
fn written_out_gelu(env: &Env, values: &mut Values, dtype: DType) -> Option<()> {
    values.input(dtype, &[env.t(), Dim::Fixed(env.columns)]);
    for number in [0.5, 1.0, 3.0] {
        values.constant(number, dtype);
    }
    for number in [0.044715, 0.7978845608028654, std::f64::consts::SQRT_2] {
        values.constant(number, DType::Float32);
    }
    Some(())
}

/// Both halves of an operand.
fn gate_halves(env: &Env, values: &mut Values) -> Option<()> {
    let x = values.leaf(env.dtype, &[env.t(), Dim::Fixed(2 * env.columns)]);
    values.cut(x, 0, env.columns, 1)?;
    values.cut(x, env.columns, 2 * env.columns, 1)
}

fn linear(env: &Env, values: &mut Values) -> Option<()> {
    let (h, n) = (Dim::Fixed(env.heads), Dim::Fixed(env.columns));
    values.input(env.dtype, &[env.t(), h]);
    values.input(env.dtype, &[2.into(), env.t(), h]);
    values.input(env.dtype, &[h, n]);
    values.input(env.dtype, &[n]);
    Some(())
}

/// Rows of the table that indices may name.
pub const TABLE_ROWS: i64 = 5;

fn gather(env: &Env, values: &mut Values) -> Option<()> {
    values.input(env.dtype, &[TABLE_ROWS.into(), Dim::Fixed(env.columns)]);
    values.input(DType::Int32, &[env.t()]);
    values.input(DType::Uint32, &[env.t()]);
    values.input(DType::Int64, &[env.t()]);
    Some(())
}
