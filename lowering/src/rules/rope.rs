// SPDX-License-Identifier: Apache-2.0
//! Rotary position embedding (Su et al. 2021; vLLM `ApplyRotaryEmb`).
//!
//! ```text
//! y1 = x1 * cos - x2 * sin
//! y2 = x2 * cos + x1 * sin
//! ```
//! where `x1`, `x2` are the halves of a head's first `rotary_dim` elements (GPT-NeoX), or their even
//! and odd elements (GPT-J). Hugging Face writes the first as `x * cos + [-x2, x1] * sin`, mostly on
//! heads that are transposed to `[b, heads, t, d]`.

use super::{Build, Guard, LastAxisSlice, Match, Numerics, Right, Rule};
use crate::ir::{Dim, Op, RopeStyle};
use egg::Id;

const HALVES: Guard = ("x1 and x2 are the halves of a head's first elements", |m| {
    halves(m).is_some()
});
const EVEN_ODD: Guard = ("x1 and x2 are a head's even and odd elements", |m| {
    even_odd(m).is_some()
});
const ROWS: Guard = ("cos and sin are rows [t, r/2] for all heads", |m| {
    rows(m, "?c").is_some() && rows(m, "?s").is_some()
});
const REST: Guard = ("the rest of the head follows the rotated part", |m| {
    rest(m).is_some()
});
const INTERLEAVED: Guard = ("y1 and y2 are interleaved on the last axis", |m| {
    let columns = |name| m.type_of(name).and_then(|t| t.last());
    columns("?y1") == Some(Dim::Fixed(1))
        && columns("?y2") == Some(Dim::Fixed(1))
        && m.type_of("?y1").is_some_and(|t| t.rank() == 4)
});

fn halves(m: &Match) -> Option<(Id, i64)> {
    let (a, b) = (m.last_axis_slice("?x1")?, m.last_axis_slice("?x2")?);
    let adjacent =
        a.whole == b.whole && (a.start, a.step, b.step) == (0, 1, 1) && b.start == a.stop;
    (adjacent && b.stop == 2 * a.stop).then_some((a.whole, b.stop))
}

fn even_odd(m: &Match) -> Option<(Id, i64)> {
    let (a, b) = (m.last_axis_slice("?x1")?, m.last_axis_slice("?x2")?);
    let paired = a.whole == b.whole && (a.step, b.step, a.start, b.start) == (2, 2, 0, 1);
    let rotary_dim = b.stop.max(a.stop);
    (paired && rotary_dim % 2 == 0 && a.stop + 1 >= rotary_dim && b.stop == rotary_dim)
        .then_some((a.whole, rotary_dim))
}

/// The `[t, r/2]` that a `[t, 1, r/2]` was reshaped from.
fn rows(m: &Match, name: &str) -> Option<Id> {
    let shape = &m.type_of(name)?.shape;
    let [tokens, Dim::Fixed(1), half] = shape.as_slice() else {
        return None;
    };
    m.find(name, |op, children| match op {
        Op::Reshape { .. } => {
            let rows = m.type_of_id(children[0])?;
            (rows.shape == [*tokens, *half]).then_some(children[0])
        }
        _ => None,
    })
}

/// The rotated whole of which `?head` is the first part, `?tail` being the rest of what it rotates.
fn rest(m: &Match) -> Option<Id> {
    let (head, tail) = (m.last_axis_slice("?head")?, m.last_axis_slice("?tail")?);
    let LastAxisSlice {
        start: 0,
        step: 1,
        stop: rotated,
        ..
    } = head
    else {
        return None;
    };
    let follows = tail.start == rotated && tail.stop == tail.length && tail.step == 1;
    let rotates = m.ops(head.whole).any(|(op, children)| {
        matches!(op, Op::Rope { rotary_dim, .. } if *rotary_dim == rotated)
            && m.same(children[2], tail.whole)
    });
    (follows && rotates).then_some(head.whole)
}

/// `rope(x)`, or its first part where only that was rotated.
fn rope(m: &Match, style: RopeStyle, (whole, rotary_dim): (Id, i64)) -> Option<Right> {
    let operands = [rows(m, "?c")?, rows(m, "?s")?, whole]
        .map(Build::Class)
        .into();
    let rotated = Build::Node(Op::Rope { style, rotary_dim }, operands);
    let length = m.type_of_id(whole)?.last()?;
    if length == Dim::Fixed(rotary_dim) {
        return Some(rotated.into());
    }
    let cut = Op::Slice {
        axis: 2,
        start: 0.into(),
        stop: rotary_dim.into(),
        step: 1,
        length,
    };
    Some(Build::Node(cut, vec![rotated]).into())
}

const ROTATED_HALF: Guard = ("[-x2, x1] is x rotated by half", |m| {
    half_rotated(m).is_some()
});
const ROTATED_PAIRS: Guard = ("x1 and x2 are the even and odd elements of x", |m| {
    pairs_rotated(m).is_some()
});
const LAYOUT: Guard = ("cos and sin are rows [t, r] for all heads", |m| {
    layout(m, half_rotated(m)).is_some()
});
const PAIRS_LAYOUT: Guard = ("cos and sin are rows [t, r] for all heads", |m| {
    layout(m, pairs_rotated(m)).is_some()
});
const STACKED: Guard = ("-x2 and x1 are interleaved on the last axis", |m| {
    let columns = |name| m.type_of(name).and_then(|t| t.last());
    let rank = |name| m.type_of(name).map_or(0, |t| t.rank());
    columns("?y1") == Some(Dim::Fixed(1))
        && columns("?y2") == Some(Dim::Fixed(1))
        && rank("?y1") == rank("?x1") + 1
        && m.type_of("?z").map(|z| &z.shape) == m.type_of("?x").map(|x| &x.shape)
});
const TAIL: Guard = ("the rest of the head follows the rotated part", |m| {
    is_tail(m, half_rotated(m))
});
const PAIRS_TAIL: Guard = ("the rest of the head follows the rotated part", |m| {
    is_tail(m, pairs_rotated(m))
});

/// The heads of which `?x` is the whole or the first part, and the size of that part.
fn half_rotated(m: &Match) -> Option<(Id, i64)> {
    covered(m, halves(m)?)
}

fn pairs_rotated(m: &Match) -> Option<(Id, i64)> {
    covered(m, even_odd(m)?)
}

fn covered(m: &Match, (whole, rotary_dim): (Id, i64)) -> Option<(Id, i64)> {
    let covers = match m.last_axis_slice("?x") {
        Some(part) => {
            m.same(part.whole, whole) && (part.start, part.stop, part.step) == (0, rotary_dim, 1)
        }
        None => false,
    };
    let is_whole = || {
        let length = m.type_of("?x").and_then(|x| x.last());
        m.same(m.id("?x"), whole) && length == Some(Dim::Fixed(rotary_dim))
    };
    (covers || is_whole()).then_some((whole, rotary_dim))
}

fn is_tail(m: &Match, rotated: Option<(Id, i64)>) -> bool {
    let tail = m.last_axis_slice("?tail");
    rotated
        .zip(tail)
        .is_some_and(|((whole, rotary_dim), tail)| {
            m.same(tail.whole, whole)
                && (tail.start, tail.stop, tail.step) == (rotary_dim, tail.length, 1)
        })
}

/// How heads are laid out: the permutation to `[.., t, heads, d]`, its own inverse, and the shape
/// `[.., t, r]` of their angles.
fn layout(m: &Match, rotated: Option<(Id, i64)>) -> Option<(Vec<usize>, Vec<Dim>)> {
    let (whole, rotary_dim) = rotated?;
    let shape = &m.type_of_id(whole)?.shape;
    if m.type_of("?c")? != m.type_of("?s")? {
        return None;
    }
    let (rank, one) = (shape.len(), Dim::Fixed(1));
    let angles = &m.type_of("?c")?.shape;
    let mut padded = vec![one; rank.checked_sub(angles.len())?];
    padded.extend(angles);
    let (before, heads_and_size) = padded.split_at(rank.checked_sub(3)?);
    let outer_fits = before.iter().zip(shape).all(|(c, x)| c == x || *c == one);
    let &[a, b, last] = heads_and_size else {
        return None;
    };
    let mut permutation: Vec<usize> = (0..rank).collect();
    let tokens = match (shape[rank - 3], shape[rank - 2]) {
        (_, tokens) if a == one && b == tokens => {
            permutation.swap(rank - 3, rank - 2);
            tokens
        }
        (tokens, _) if a == tokens && b == one => tokens,
        _ => return None,
    };
    let fits = outer_fits && last == Dim::Fixed(rotary_dim);
    fits.then(|| (permutation, [before, &[tokens, last]].concat()))
}

/// `rope` of heads in any layout, back in that layout.
fn rotate(m: &Match, style: RopeStyle, rotated: Option<(Id, i64)>) -> Option<Build> {
    let (whole, rotary_dim) = rotated?;
    let (permutation, angles) = layout(m, rotated)?;
    let straight = permutation.windows(2).all(|pair| pair[0] < pair[1]);
    let transpose = |x| match straight {
        true => x,
        false => Build::Node(
            Op::Transpose {
                permutation: permutation.clone(),
            },
            vec![x],
        ),
    };
    let rows = |name| {
        let shape = angles.clone();
        m.node(Op::Reshape { shape }, &[name])
    };
    let op = Op::Rope { style, rotary_dim };
    let x = transpose(Build::Class(whole));
    Some(transpose(Build::Node(op, vec![rows("?c"), rows("?s"), x])))
}

/// As [`rotate`], cut to the part that is rotated.
fn rotate_first(m: &Match, style: RopeStyle, part: Option<(Id, i64)>) -> Option<Right> {
    let (whole, rotary_dim) = part?;
    let length = m.type_of_id(whole)?.last()?;
    let rotated = rotate(m, style, part)?;
    if length == Dim::Fixed(rotary_dim) {
        return Some(rotated.into());
    }
    let cut = Op::Slice {
        axis: m.type_of_id(whole)?.rank() - 1,
        start: 0.into(),
        stop: rotary_dim.into(),
        step: 1,
        length,
    };
    Some(Build::Node(cut, vec![rotated]).into())
}

#[rustfmt::skip]
pub(super) const RULES: &[Rule] = &[
    // [x1 * cos - x2 * sin, x2 * cos + x1 * sin]  =>  rope(x)
    Rule {
        name: "rope_neox",
        numerics: Numerics::Improves,
        left: "(concat_last (sub (mul ?x1 ?c) (mul ?x2 ?s)) (add (mul ?x2 ?c) (mul ?x1 ?s)))",
        guards: &[HALVES, ROWS],
        right: |m| rope(m, RopeStyle::Neox, halves(m)?),
    },
    // interleave(x1 * cos - x2 * sin, x2 * cos + x1 * sin)  =>  rope(x)
    Rule {
        name: "rope_gptj",
        numerics: Numerics::Improves,
        left: "(reshape (concat_last ?y1:(reshape (sub (mul ?x1 ?c) (mul ?x2 ?s))) ?y2:(reshape (add (mul ?x2 ?c) (mul ?x1 ?s)))))",
        guards: &[EVEN_ODD, ROWS, INTERLEAVED],
        right: |m| rope(m, RopeStyle::Gptj, even_odd(m)?),
    },
    // x * cos + [-x2, x1] * sin  =>  rope(x)
    Rule {
        name: "rope_rotate_half",
        numerics: Numerics::Improves,
        left: "(add (mul ?x ?c) (mul (concat_last (neg ?x2) ?x1) ?s))",
        guards: &[ROTATED_HALF, LAYOUT],
        right: |m| rotate_first(m, RopeStyle::RotateHalf, half_rotated(m)),
    },
    // x * cos + interleave(-x2, x1) * sin  =>  rope(x)
    Rule {
        name: "rope_rotate_pairs",
        numerics: Numerics::Improves,
        left: "(add (mul ?x ?c) (mul ?z:(reshape (concat_last ?y2:(reshape (neg ?x2)) ?y1:(reshape ?x1))) ?s))",
        guards: &[ROTATED_PAIRS, PAIRS_LAYOUT, STACKED],
        right: |m| rotate_first(m, RopeStyle::RotatePairs, pairs_rotated(m)),
    },
    Rule {
        name: "rope_rotate_pairs_partial",
        numerics: Numerics::Improves,
        left: "(concat_last (add (mul ?x ?c) (mul ?z:(reshape (concat_last ?y2:(reshape (neg ?x2)) ?y1:(reshape ?x1))) ?s)) ?tail)",
        guards: &[ROTATED_PAIRS, PAIRS_LAYOUT, STACKED, PAIRS_TAIL],
        right: |m| rotate(m, RopeStyle::RotatePairs, pairs_rotated(m)).map(Right::from),
    },
    // [x * cos + [-x2, x1] * sin, x[r..]]  =>  rope(x)
    Rule {
        name: "rope_rotate_half_partial",
        numerics: Numerics::Improves,
        left: "(concat_last (add (mul ?x ?c) (mul (concat_last (neg ?x2) ?x1) ?s)) ?tail)",
        guards: &[ROTATED_HALF, LAYOUT, TAIL],
        right: |m| rotate(m, RopeStyle::RotateHalf, half_rotated(m)).map(Right::from),
    },
    // [rope(x)[..r], x[r..]]  =>  rope(x)
    Rule {
        name: "rope_partial",
        numerics: Numerics::Exact,
        left: "(concat_last ?head ?tail)",
        guards: &[REST],
        right: |m| rest(m).map(|whole| Build::Class(whole).into()),
    },
];

#[cfg(test)]
pub(super) mod tests {
    use crate::rules::notation::Case;
    use crate::rules::notation::Expect::*;

    #[rustfmt::skip]
    pub const CASES: &[Case] = &[
        ("rope_neox", Fuses("rope"), "c = (reshape:t,1,2 cc:bf16[t,2]); s = (reshape:t,1,2 ss:bf16[t,2]); x1 = (slice:2:0:2 x:bf16[t,3,4]); x2 = (slice:2:2:4 x); (concat:2 (sub (mul x1 c) (mul x2 s)) (add (mul x2 c) (mul x1 s)))"),
        ("rope_neox", Refuses("x1 and x2 are the halves of a head's first elements"), "c = (reshape:t,1,2 cc:bf16[t,2]); s = (reshape:t,1,2 ss:bf16[t,2]); x1 = (slice:2:0:2 x:bf16[t,3,4]); x2 = (slice:2:1:3 x); (concat:2 (sub (mul x1 c) (mul x2 s)) (add (mul x2 c) (mul x1 s)))"),
        ("rope_neox", Refuses("x1 and x2 are the halves of a head's first elements"), "c = (reshape:t,1,2 cc:bf16[t,2]); s = (reshape:t,1,2 ss:bf16[t,2]); x1 = (slice:2:0:2 x:bf16[t,3,4]); x2 = (slice:2:2:4 y:bf16[t,3,4]); (concat:2 (sub (mul x1 c) (mul x2 s)) (add (mul x2 c) (mul x1 s)))"),
        ("rope_neox", Refuses("cos and sin are rows [t, r/2] for all heads"), "c = cc:bf16[t,1,2]; s = ss:bf16[t,1,2]; x1 = (slice:2:0:2 x:bf16[t,3,4]); x2 = (slice:2:2:4 x); (concat:2 (sub (mul x1 c) (mul x2 s)) (add (mul x2 c) (mul x1 s)))"),
        ("rope_neox", Differs, "c = (reshape:t,1,2 cc:bf16[t,2]); s = (reshape:t,1,2 ss:bf16[t,2]); x1 = (slice:2:0:2 x:bf16[t,3,4]); x2 = (slice:2:2:4 x); (concat:2 (add (mul x1 c) (mul x2 s)) (sub (mul x2 c) (mul x1 s)))"),
        ("rope_gptj", Fuses("rope"), "c = (reshape:t,1,2 cc:bf16[t,2]); s = (reshape:t,1,2 ss:bf16[t,2]); x1 = (slice:2:0:4:2 x:bf16[t,3,4]); x2 = (slice:2:1:4:2 x); (reshape:t,3,4 (concat:3 (reshape:t,3,2,1 (sub (mul x1 c) (mul x2 s))) (reshape:t,3,2,1 (add (mul x2 c) (mul x1 s)))))"),
        ("rope_gptj", Refuses("x1 and x2 are a head's even and odd elements"), "c = (reshape:t,1,2 cc:bf16[t,2]); s = (reshape:t,1,2 ss:bf16[t,2]); x1 = (slice:2:0:2 x:bf16[t,3,4]); x2 = (slice:2:2:4 x); (reshape:t,3,4 (concat:3 (reshape:t,3,2,1 (sub (mul x1 c) (mul x2 s))) (reshape:t,3,2,1 (add (mul x2 c) (mul x1 s)))))"),
        ("rope_gptj", Refuses("cos and sin are rows [t, r/2] for all heads"), "c = cc:bf16[t,1,2]; s = ss:bf16[t,1,2]; x1 = (slice:2:0:4:2 x:bf16[t,3,4]); x2 = (slice:2:1:4:2 x); (reshape:t,3,4 (concat:3 (reshape:t,3,2,1 (sub (mul x1 c) (mul x2 s))) (reshape:t,3,2,1 (add (mul x2 c) (mul x1 s)))))"),
        ("rope_gptj", Refuses("y1 and y2 are interleaved on the last axis"), "c = (reshape:t,1,2 cc:bf16[t,2]); s = (reshape:t,1,2 ss:bf16[t,2]); x1 = (slice:2:0:4:2 x:bf16[t,3,4]); x2 = (slice:2:1:4:2 x); (reshape:t,3,4 (concat:3 (reshape:t,3,1,2 (sub (mul x1 c) (mul x2 s))) (reshape:t,3,1,2 (add (mul x2 c) (mul x1 s)))))"),
        ("rope_rotate_half", Fuses("rope"), "c = (reshape:t,1,4 cc:bf16[t,4]); s = (reshape:t,1,4 ss:bf16[t,4]); x1 = (slice:2:0:2 x:bf16[t,3,4]); x2 = (slice:2:2:4 x); (add (mul x c) (mul (concat:2 (neg x2) x1) s))"),
        ("rope_rotate_half", Fuses("rope"), "c = (reshape:1,1,t,4 cc:bf16[t,4]); s = (reshape:1,1,t,4 ss:bf16[t,4]); y = (transpose:0,2,1,3 (reshape:1,t,3,4 h:bf16[t,12])); x1 = (slice:3:0:2 y); x2 = (slice:3:2:4 y); (add (mul y c) (mul (concat:3 (neg x2) x1) s))"),
        ("rope_rotate_half", Fuses("rope"), "c = cc:bf16[2,1,t,4]; s = ss:bf16[2,1,t,4]; y = h:bf16[2,3,t,4]; x1 = (slice:3:0:2 y); x2 = (slice:3:2:4 y); (add (mul y c) (mul (concat:3 (neg x2) x1) s))"),
        ("rope_rotate_half", Fuses("rope"), "c = cc:bf16[1,t,1,4]; s = ss:bf16[1,t,1,4]; y = h:bf16[2,t,3,4]; x1 = (slice:3:0:2 y); x2 = (slice:3:2:4 y); (add (mul y c) (mul (concat:3 (neg x2) x1) s))"),
        ("rope_rotate_half", Refuses("cos and sin are rows [t, r] for all heads"), "c = cc:bf16[2,3,t,4]; s = ss:bf16[2,3,t,4]; y = h:bf16[2,3,t,4]; x1 = (slice:3:0:2 y); x2 = (slice:3:2:4 y); (add (mul y c) (mul (concat:3 (neg x2) x1) s))"),
        ("rope_rotate_half", Refuses("[-x2, x1] is x rotated by half"), "c = (reshape:t,1,4 cc:bf16[t,4]); s = (reshape:t,1,4 ss:bf16[t,4]); x1 = (slice:2:0:2 x:bf16[t,3,4]); x2 = (slice:2:2:4 x); (add (mul x c) (mul (concat:2 (neg x1) x2) s))"),
        ("rope_rotate_half", Refuses("cos and sin are rows [t, r] for all heads"), "c = cc:bf16[t,3,4]; s = ss:bf16[t,3,4]; x1 = (slice:2:0:2 x:bf16[t,3,4]); x2 = (slice:2:2:4 x); (add (mul x c) (mul (concat:2 (neg x2) x1) s))"),
        ("rope_rotate_pairs", Fuses("rope"), "c = cc:bf16[t,1,4]; s = ss:bf16[t,1,4]; x1 = (slice:2:0:4:2 x:bf16[t,3,4]); x2 = (slice:2:1:4:2 x); (add (mul x c) (mul (reshape:t,3,4 (concat:3 (reshape:t,3,2,1 (neg x2)) (reshape:t,3,2,1 x1))) s))"),
        ("rope_rotate_pairs", Refuses("x1 and x2 are the even and odd elements of x"), "c = cc:bf16[t,1,4]; s = ss:bf16[t,1,4]; x1 = (slice:2:0:2 x:bf16[t,3,4]); x2 = (slice:2:2:4 x); (add (mul x c) (mul (reshape:t,3,4 (concat:3 (reshape:t,3,2,1 (neg x2)) (reshape:t,3,2,1 x1))) s))"),
        ("rope_rotate_pairs", Refuses("cos and sin are rows [t, r] for all heads"), "c = cc:bf16[t,3,4]; s = ss:bf16[t,3,4]; x1 = (slice:2:0:4:2 x:bf16[t,3,4]); x2 = (slice:2:1:4:2 x); (add (mul x c) (mul (reshape:t,3,4 (concat:3 (reshape:t,3,2,1 (neg x2)) (reshape:t,3,2,1 x1))) s))"),
        ("rope_rotate_pairs", Refuses("-x2 and x1 are interleaved on the last axis"), "c = cc:bf16[t,1,4]; s = ss:bf16[t,1,4]; x1 = (slice:2:0:4:2 x:bf16[t,3,4]); x2 = (slice:2:1:4:2 x); (add (mul x c) (mul (reshape:t,3,4 (concat:3 (reshape:t,3,1,2 (neg x2)) (reshape:t,3,1,2 x1))) s))"),
        ("rope_rotate_pairs_partial", Fuses("rope"), "c = cc:bf16[t,1,4]; s = ss:bf16[t,1,4]; x1 = (slice:2:0:4:2 x:bf16[t,3,6]); x2 = (slice:2:1:4:2 x); p = (slice:2:0:4 x); (concat:2 (add (mul p c) (mul (reshape:t,3,4 (concat:3 (reshape:t,3,2,1 (neg x2)) (reshape:t,3,2,1 x1))) s)) (slice:2:4:6 x))"),
        ("rope_rotate_pairs_partial", Refuses("x1 and x2 are the even and odd elements of x"), "c = cc:bf16[t,1,4]; s = ss:bf16[t,1,4]; x1 = (slice:2:0:2 x:bf16[t,3,6]); x2 = (slice:2:2:4 x); p = (slice:2:0:4 x); (concat:2 (add (mul p c) (mul (reshape:t,3,4 (concat:3 (reshape:t,3,2,1 (neg x2)) (reshape:t,3,2,1 x1))) s)) (slice:2:4:6 x))"),
        ("rope_rotate_pairs_partial", Refuses("cos and sin are rows [t, r] for all heads"), "c = cc:bf16[t,3,4]; s = ss:bf16[t,3,4]; x1 = (slice:2:0:4:2 x:bf16[t,3,6]); x2 = (slice:2:1:4:2 x); p = (slice:2:0:4 x); (concat:2 (add (mul p c) (mul (reshape:t,3,4 (concat:3 (reshape:t,3,2,1 (neg x2)) (reshape:t,3,2,1 x1))) s)) (slice:2:4:6 x))"),
        ("rope_rotate_pairs_partial", Refuses("-x2 and x1 are interleaved on the last axis"), "c = cc:bf16[t,1,4]; s = ss:bf16[t,1,4]; x1 = (slice:2:0:4:2 x:bf16[t,3,6]); x2 = (slice:2:1:4:2 x); p = (slice:2:0:4 x); (concat:2 (add (mul p c) (mul (reshape:t,3,4 (concat:3 (reshape:t,3,1,2 (neg x2)) (reshape:t,3,1,2 x1))) s)) (slice:2:4:6 x))"),
        ("rope_rotate_pairs_partial", Refuses("the rest of the head follows the rotated part"), "c = cc:bf16[t,1,4]; s = ss:bf16[t,1,4]; x1 = (slice:2:0:4:2 x:bf16[t,3,6]); x2 = (slice:2:1:4:2 x); p = (slice:2:0:4 x); (concat:2 (add (mul p c) (mul (reshape:t,3,4 (concat:3 (reshape:t,3,2,1 (neg x2)) (reshape:t,3,2,1 x1))) s)) (slice:2:0:2 x))"),
        ("rope_rotate_half_partial", Fuses("rope"), "c = (reshape:t,1,4 cc:bf16[t,4]); s = (reshape:t,1,4 ss:bf16[t,4]); x1 = (slice:2:0:2 x:bf16[t,3,6]); x2 = (slice:2:2:4 x); p = (slice:2:0:4 x); (concat:2 (add (mul p c) (mul (concat:2 (neg x2) x1) s)) (slice:2:4:6 x))"),
        ("rope_rotate_half_partial", Refuses("[-x2, x1] is x rotated by half"), "c = (reshape:t,1,4 cc:bf16[t,4]); s = (reshape:t,1,4 ss:bf16[t,4]); x1 = (slice:2:0:2 x:bf16[t,3,6]); x2 = (slice:2:2:4 x); p = (slice:2:0:4 x); (concat:2 (add (mul p c) (mul (concat:2 (neg x1) x2) s)) (slice:2:4:6 x))"),
        ("rope_rotate_half_partial", Refuses("cos and sin are rows [t, r] for all heads"), "c = cc:bf16[t,3,4]; s = ss:bf16[t,3,4]; x1 = (slice:2:0:2 x:bf16[t,3,6]); x2 = (slice:2:2:4 x); p = (slice:2:0:4 x); (concat:2 (add (mul p c) (mul (concat:2 (neg x2) x1) s)) (slice:2:4:6 x))"),
        ("rope_rotate_half_partial", Refuses("the rest of the head follows the rotated part"), "c = (reshape:t,1,4 cc:bf16[t,4]); s = (reshape:t,1,4 ss:bf16[t,4]); x1 = (slice:2:0:2 x:bf16[t,3,6]); x2 = (slice:2:2:4 x); p = (slice:2:0:4 x); (concat:2 (add (mul p c) (mul (concat:2 (neg x2) x1) s)) (slice:2:0:2 x))"),
        ("rope_partial", Fuses("rope"), "r = (rope_neox:4 c:bf16[t,2] s:bf16[t,2] x:bf16[t,3,6]); (concat:2 (slice:2:0:4 r) (slice:2:4:6 x))"),
        ("rope_partial", Refuses("the rest of the head follows the rotated part"), "r = (rope_neox:4 c:bf16[t,2] s:bf16[t,2] x:bf16[t,3,6]); (concat:2 (slice:2:0:4 r) (slice:2:4:6 y:bf16[t,3,6]))"),
    ];
}
