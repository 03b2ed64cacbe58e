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

/// All vocabularies.
pub const SITES: &[Site] = &[
    norm,
    rope,
    rope_interleaved,
    rotated_part,
    |env, values| rotate_half(env, values, [0, 1, 2]),
    |env, values| rotate_half(env, values, [3, 0, 1, 2]),
    |env, values| rotate_half(env, values, [3, 1, 0, 2]),
    gate,
    linear,
    gather,
];

fn norm(env: &Env, values: &mut Values) -> Option<()> {
    let rows = [env.t(), Dim::Fixed(env.columns)];
    for dtype in [env.dtype, DType::Float32] {
        values.input(dtype, &rows);
        values.input(dtype, &rows);
        values.input(dtype, &rows[1..]);
    }
    let eps = values
        .builder
        .scalar(Scalar::Float(Float::new(env.eps)), DType::Float32);
    values.values.push(eps);
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

fn gate(env: &Env, values: &mut Values) -> Option<()> {
    values.input(env.dtype, &[env.t(), Dim::Fixed(2 * env.columns)]);
    values.input(env.dtype, &[env.t(), 3.into(), Dim::Fixed(2 * env.columns)]);
    Some(())
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
