// SPDX-License-Identifier: Apache-2.0
//! Operators that move elements.

use super::tensor::{Data, Number, Tensor, indices, offset};

type Moved = Result<Tensor, String>;

pub(super) fn reshape(x: &Tensor, shape: Vec<usize>) -> Moved {
    if shape.iter().product::<usize>() != x.len() {
        return Err(format!("{:?} as {shape:?}", x.shape));
    }
    Ok(Tensor { shape, ..x.clone() })
}

pub(super) fn transpose(x: &Tensor, permutation: &[usize]) -> Moved {
    let shape: Option<Vec<usize>> = permutation
        .iter()
        .map(|axis| x.shape.get(*axis).copied())
        .collect();
    let shape = shape.ok_or("a permutation of another rank")?;
    x.rearrange(shape, Number::ZERO, |index| {
        let mut source = vec![0; index.len()];
        for (to, from) in permutation.iter().enumerate() {
            source[*from] = index[to];
        }
        Ok(Some(source))
    })
}

pub(super) fn slice(
    x: &Tensor,
    axis: usize,
    start: usize,
    step: usize,
    shape: Vec<usize>,
) -> Moved {
    x.rearrange(shape, Number::ZERO, |index| {
        let mut source = index.to_vec();
        source[axis] = start + index[axis] * step;
        Ok(Some(source))
    })
}

pub(super) fn concat(parts: &[&Tensor], axis: usize, shape: Vec<usize>) -> Moved {
    let first = parts.first().ok_or("nothing to concatenate")?;
    let mut joined = Tensor::full(first.dtype, shape, Number::ZERO)?;
    let mut start = 0;
    for part in parts {
        for (from, mut index) in indices(&part.shape).enumerate() {
            index[axis] += start;
            let to = offset(&index, &joined.shape)?;
            copy_element(&mut joined.data, to, &part.data, from)?;
        }
        start += part.shape.get(axis).ok_or("a part of another rank")?;
    }
    Ok(joined)
}

fn copy_element(to: &mut Data, place: usize, from: &Data, source: usize) -> Result<(), String> {
    match (to, from) {
        (Data::Float(to), Data::Float(from)) => to[place] = from[source],
        (Data::Int(to), Data::Int(from)) => to[place] = from[source],
        _ => return Err("operands of two kinds".into()),
    }
    Ok(())
}

/// An index counted from the end when negative.
pub(super) fn wrapped(index: i64, size: usize) -> Result<usize, String> {
    let positive = if index < 0 {
        index + size as i64
    } else {
        index
    };
    usize::try_from(positive)
        .ok()
        .filter(|index| *index < size)
        .ok_or_else(|| format!("index {index} into {size} elements"))
}

pub(super) fn take(x: &Tensor, places: &Tensor, axis: usize, shape: Vec<usize>) -> Moved {
    let numbers = places.as_ints()?;
    let rank = places.shape.len();
    x.rearrange(shape, Number::ZERO, |index| {
        let place = numbers[offset(&index[axis..axis + rank], &places.shape)?];
        let mut source = index[..axis].to_vec();
        source.push(wrapped(place, x.shape[axis])?);
        source.extend(&index[axis + rank..]);
        Ok(Some(source))
    })
}

pub(super) fn take_along_axis(x: &Tensor, places: &Tensor, axis: usize) -> Moved {
    let numbers = places.as_ints()?;
    x.rearrange(places.shape.clone(), Number::ZERO, |index| {
        let mut source = index.to_vec();
        source[axis] = wrapped(numbers[offset(index, &places.shape)?], x.shape[axis])?;
        Ok(Some(source))
    })
}

pub(super) fn put_along_axis(x: &Tensor, places: &Tensor, updates: &Tensor, axis: usize) -> Moved {
    let numbers = places.as_ints()?;
    let updates = updates.broadcast(&places.shape)?;
    let mut result = x.clone();
    for (from, mut index) in indices(&places.shape).enumerate() {
        let size = *x.shape.get(axis).ok_or("a missing axis")?;
        *index.get_mut(axis).ok_or("a missing axis")? = wrapped(numbers[from], size)?;
        let to = offset(&index, &x.shape)?;
        copy_element(&mut result.data, to, &updates.data, from)?;
    }
    Ok(result)
}

pub(super) fn pad(x: &Tensor, low: &[i64], value: Number, shape: Vec<usize>) -> Moved {
    x.rearrange(shape, value, |index| {
        let source: Option<Vec<usize>> = index
            .iter()
            .zip(low)
            .zip(&x.shape)
            .map(|((i, low), size)| {
                let place = usize::try_from(*i as i64 - low).ok()?;
                (place < *size).then_some(place)
            })
            .collect();
        Ok(source)
    })
}

/// Keeps elements of the last two axes by `keep(column - row)`.
pub(super) fn triangle(x: &Tensor, keep: impl Fn(i64) -> bool) -> Moved {
    x.rearrange(x.shape.clone(), Number::ZERO, |index| {
        let [.., row, column] = index else {
            return Err("a triangle of rank 1".into());
        };
        Ok(keep(*column as i64 - *row as i64).then(|| index.to_vec()))
    })
}
