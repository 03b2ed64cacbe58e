// SPDX-License-Identifier: Apache-2.0
//! Triangles and diagonals.

use super::call::{Call, Item, fixed};
use super::dispatch::{Claims, Lowered};
use super::graph::Importer;
use super::movement::replaced;
use crate::ir::{Dim, Op, Scalar};

/// Views, which [`super::dispatch`] also claims as copies.
pub const VIEWS: Claims = &[("aten.diagonal.default", diagonal)];

/// Operators of this family.
pub const CLAIMS: Claims = &[
    ("aten.block_diag.default", block_diag),
    ("aten.diag_embed.default", diag_embed),
    ("aten.diagonal_scatter.default", diagonal_scatter),
];

/// Those that have an in-place form.
pub const WITH_IN_PLACE: Claims = &[
    ("aten.tril.default", |i, call| {
        triangle(i, call, |diagonal| Op::Tril { diagonal })
    }),
    ("aten.triu.default", |i, call| {
        triangle(i, call, |diagonal| Op::Triu { diagonal })
    }),
];

fn triangle(importer: &mut Importer, call: &Call, op: fn(i64) -> Op) -> Lowered {
    let [x, diagonal] = call.bind(["self", "diagonal"])?;
    let x = importer.value(&x)?;
    let result = importer.builder.add(op(diagonal.int_or(0)?), &[x])?;
    Ok(importer.fresh(result))
}

/// The diagonal of two axes, as a view whose last axis it is: rows and columns laid out in one axis,
/// of which every `columns + 1`st element is on a diagonal.
pub fn diagonal_view(
    importer: &mut Importer,
    x: &Item,
    offset: i64,
    first: usize,
    second: usize,
) -> Lowered {
    let shape = importer.shape_of(x)?;
    let rank = shape.len();
    if first == second || first >= rank || second >= rank {
        return Err(format!(
            "a diagonal of axes {first} and {second} of rank {rank}"
        ));
    }
    let (rows, columns) = (fixed(shape[first])?, fixed(shape[second])?);
    let mut permutation: Vec<usize> = (0..rank)
        .filter(|axis| *axis != first && *axis != second)
        .collect();
    let mut flat: Vec<Dim> = permutation.iter().map(|axis| shape[*axis]).collect();
    permutation.extend([first, second]);
    let area = rows.checked_mul(columns).ok_or("an area that overflows")?;
    flat.push(Dim::Fixed(area));
    let length = match offset {
        0.. => rows.min(columns.saturating_sub(offset)),
        _ => columns.min(rows.saturating_add(offset)),
    };
    let length = length.max(0);
    let start = match offset {
        _ if length == 0 => 0,
        0.. => offset,
        _ => offset.saturating_neg().saturating_mul(columns),
    };
    let stop = match length {
        0 => 0,
        length => start + (length - 1) * (columns + 1) + 1,
    };
    let axis = flat.len() - 1;
    let x = importer.view(x, Op::Transpose { permutation })?;
    let x = importer.view(&x, Op::Reshape { shape: flat })?;
    importer.view(
        &x,
        Op::Slice {
            axis,
            start: Dim::Fixed(start),
            stop: Dim::Fixed(stop),
            step: columns + 1,
            length: Dim::Fixed(area),
        },
    )
}

fn diagonal(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, offset, first, second] = call.bind(["self", "offset", "dim1", "dim2"])?;
    let rank = importer.shape_of(&x)?.len();
    let (first, second) = (first.axis(rank, 0)?, second.axis(rank, 1)?);
    diagonal_view(importer, &x, offset.int_or(0)?, first, second)
}

fn diagonal_scatter(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, source, offset, first, second] =
        call.bind(["self", "src", "offset", "dim1", "dim2"])?;
    let rank = importer.shape_of(&x)?.len();
    let (first, second) = (first.axis(rank, 0)?, second.axis(rank, 1)?);
    let offset = offset.int_or(0)?;
    replaced(importer, &x, &source, |importer, copy| {
        diagonal_view(importer, copy, offset, first, second)
    })
}

/// The last axis as the diagonal of two axes, zeros elsewhere.
fn diag_embed(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, offset, first, second] = call.bind(["self", "offset", "dim1", "dim2"])?;
    let shape = importer.shape_of(&x)?;
    let offset = offset.int_or(0)?;
    let (size, lead) = shape.split_last().ok_or("a diagonal of rank 0")?;
    let side = fixed(*size)?
        .checked_add(offset.checked_abs().ok_or("an offset that overflows")?)
        .ok_or("a size that overflows")?;
    let rank = shape.len() + 1;
    let (first, second) = (first.axis(rank, -2)?, second.axis(rank, -1)?);
    let square = [lead, &[Dim::Fixed(side), Dim::Fixed(side)]].concat();
    let source = importer.value(&x)?;
    let dtype = importer.builder.dtype(source);
    let zero = importer.builder.scalar(Scalar::Int(0), dtype);
    let zeros = importer.builder.broadcast(zero, square)?;
    let zeros = importer.fresh(zeros);
    let result = replaced(importer, &zeros, &x, |importer, copy| {
        diagonal_view(importer, copy, offset, rank - 2, rank - 1)
    })?;
    let mut permutation: Vec<usize> = (0..rank - 2).collect();
    let mut places = [(first, rank - 2), (second, rank - 1)];
    places.sort_unstable();
    for (to, from) in places {
        permutation.insert(to.min(permutation.len()), from);
    }
    let result = importer.value(&result)?;
    let result = importer.builder.transpose(result, permutation)?;
    Ok(importer.fresh(result))
}

/// Matrices along the diagonal of one, zeros elsewhere.
fn block_diag(importer: &mut Importer, call: &Call) -> Lowered {
    let [tensors] = call.bind(["tensors"])?;
    let dtype = call.result_dtype()?;
    let mut blocks = Vec::new();
    let mut columns = 0;
    for item in tensors.list()? {
        let value = importer.value(item)?;
        let value = importer.builder.cast(value, dtype)?;
        let shape = match *importer.builder.shape(value) {
            [] => vec![Dim::Fixed(1), Dim::Fixed(1)],
            [size] => vec![Dim::Fixed(1), size],
            [rows, columns] => vec![rows, columns],
            _ => return Err("a block of more than two axes".into()),
        };
        let width = fixed(shape[1])?;
        blocks.push((importer.builder.reshape(value, shape)?, columns, width));
        columns += width;
    }
    let mut rows = Vec::new();
    for (block, before, width) in blocks {
        let pad = Op::Pad {
            low: vec![0, before],
            high: vec![0, columns - before - width],
            value: Scalar::Int(0),
        };
        rows.push(importer.builder.add(pad, &[block])?);
    }
    let result = importer.builder.concat(&rows, 0)?;
    Ok(importer.fresh(result))
}
