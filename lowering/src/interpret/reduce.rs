// SPDX-License-Identifier: Apache-2.0
//! Reductions, scans and sorting. Sums run in float64 and are rounded once.

use super::round::{Precision, wrap};
use super::tensor::{Data, Tensor, indices, offset};
use crate::ir::{DType, Reduction, Scan};
use std::cmp::Ordering;

/// The positions of the elements that each element of the result is made of.
fn groups(x: &Tensor, axes: &[usize], shape: &[usize]) -> Result<Vec<Vec<usize>>, String> {
    let kept: Vec<usize> = (0..x.shape.len())
        .filter(|axis| !axes.contains(axis))
        .map(|axis| x.shape[axis])
        .collect();
    let total: usize = shape.iter().product();
    let mut groups = vec![Vec::new(); total];
    for (place, index) in indices(&x.shape).enumerate() {
        let kept_index: Vec<usize> = (0..index.len())
            .filter(|axis| !axes.contains(axis))
            .map(|axis| index[axis])
            .collect();
        let group = offset(&kept_index, &kept)?;
        groups.get_mut(group).ok_or("another shape")?.push(place);
    }
    Ok(groups)
}

pub(super) fn reduce(
    precision: Precision,
    function: Reduction,
    x: &Tensor,
    axes: &[usize],
    shape: Vec<usize>,
) -> Result<Tensor, String> {
    let groups = groups(x, axes, &shape)?;
    let truth = |value: f64| value != 0.0;
    let (dtype, data) = match function {
        Reduction::All | Reduction::Any => {
            let values = x.to_f64();
            let holds = |group: &Vec<usize>| {
                let mut flags = group.iter().map(|i| truth(values[*i]));
                i64::from(match function {
                    Reduction::All => flags.all(|flag| flag),
                    _ => flags.any(|flag| flag),
                })
            };
            (DType::Bool, Data::Int(groups.iter().map(holds).collect()))
        }
        Reduction::Argmax | Reduction::Argmin => {
            let best: Result<Vec<i64>, String> = groups
                .iter()
                .map(|group| {
                    best(x, group, function == Reduction::Argmax).map(|place| place as i64)
                })
                .collect();
            (DType::Int64, Data::Int(best?))
        }
        Reduction::Max | Reduction::Min => {
            let places: Result<Vec<usize>, String> = groups
                .iter()
                .map(|group| Ok(group[best(x, group, function == Reduction::Max)?]))
                .collect();
            let places = places?;
            let data = match &x.data {
                Data::Float(values) => Data::Float(places.iter().map(|i| values[*i]).collect()),
                Data::Int(values) => Data::Int(places.iter().map(|i| values[*i]).collect()),
            };
            (x.dtype, data)
        }
        Reduction::Sum | Reduction::Mean | Reduction::Prod => {
            let data = match &x.data {
                Data::Float(values) => {
                    let fold = |group: &Vec<usize>| {
                        let of = group.iter().map(|i| values[*i]);
                        let value = match function {
                            Reduction::Prod => of.product(),
                            Reduction::Mean => of.sum::<f64>() / group.len() as f64,
                            _ => of.sum(),
                        };
                        precision.round(x.dtype, value)
                    };
                    Data::Float(groups.iter().map(fold).collect())
                }
                Data::Int(_) if function == Reduction::Mean => {
                    return Err(format!("mean of {}", x.dtype));
                }
                Data::Int(values) => {
                    let fold = |group: &Vec<usize>| {
                        let of = group.iter().map(|i| i128::from(values[*i]));
                        let step = |total: i128, value: i128| match function {
                            Reduction::Prod => i128::from(wrap(x.dtype, total * value)),
                            _ => i128::from(wrap(x.dtype, total + value)),
                        };
                        let start = i128::from(function == Reduction::Prod);
                        wrap(x.dtype, of.fold(start, step))
                    };
                    Data::Int(groups.iter().map(fold).collect())
                }
            };
            (x.dtype, data)
        }
    };
    Ok(Tensor { dtype, shape, data })
}

/// Position in the group of its first largest or smallest element; a NaN beats all numbers.
fn best(x: &Tensor, group: &[usize], largest: bool) -> Result<usize, String> {
    let better = |a: usize, b: usize| {
        let order = compare(x, a, b);
        match largest {
            true => order == Ordering::Greater,
            false => is_nan(x, a) && !is_nan(x, b) || order == Ordering::Less && !is_nan(x, b),
        }
    };
    let mut best = 0;
    for candidate in 1..group.len() {
        if better(group[candidate], group[best]) {
            best = candidate;
        }
    }
    match group.is_empty() {
        true => Err("the largest of no elements".into()),
        false => Ok(best),
    }
}

fn is_nan(x: &Tensor, place: usize) -> bool {
    matches!(&x.data, Data::Float(values) if values[place].is_nan())
}

/// Order of two elements; a NaN is larger than all numbers.
fn compare(x: &Tensor, a: usize, b: usize) -> Ordering {
    match &x.data {
        Data::Int(values) => values[a].cmp(&values[b]),
        Data::Float(values) => values[a]
            .partial_cmp(&values[b])
            .unwrap_or_else(|| values[a].is_nan().cmp(&values[b].is_nan())),
    }
}

/// The positions along each line of an axis.
fn lines(x: &Tensor, axis: usize) -> Result<Vec<Vec<usize>>, String> {
    let mut shape = x.shape.clone();
    shape.remove(axis);
    groups(x, &[axis], &shape)
}

pub(super) fn softmax(precision: Precision, x: &Tensor, axis: usize) -> Result<Tensor, String> {
    let values = x.as_floats()?;
    let mut result = vec![0.0; values.len()];
    for line in lines(x, axis)? {
        let peak = line
            .iter()
            .map(|i| values[*i])
            .fold(f64::NEG_INFINITY, f64::max);
        let powers: Vec<f64> = line.iter().map(|i| libm::exp(values[*i] - peak)).collect();
        let total: f64 = powers.iter().sum();
        for (place, power) in line.iter().zip(powers) {
            result[*place] = precision.round(x.dtype, power / total);
        }
    }
    Ok(Tensor {
        data: Data::Float(result),
        ..x.clone()
    })
}

pub(super) fn scan(
    precision: Precision,
    function: Scan,
    x: &Tensor,
    axis: usize,
) -> Result<Tensor, String> {
    let mut result = x.clone();
    for line in lines(x, axis)? {
        match &mut result.data {
            Data::Float(values) => {
                let mut total: Option<f64> = None;
                for place in line {
                    let value = values[place];
                    let next = total.map_or(value, |total| match function {
                        Scan::Sum => total + value,
                        Scan::Prod => total * value,
                        _ if total.is_nan() || value.is_nan() => f64::NAN,
                        Scan::Max => total.max(value),
                        Scan::Min => total.min(value),
                    });
                    total = Some(next);
                    values[place] = precision.round(x.dtype, next);
                }
            }
            Data::Int(values) => {
                let mut total: Option<i64> = None;
                for place in line {
                    let value = values[place];
                    let next = total.map_or(value, |total| match function {
                        Scan::Sum => total.wrapping_add(value),
                        Scan::Prod => total.wrapping_mul(value),
                        Scan::Max => total.max(value),
                        Scan::Min => total.min(value),
                    });
                    total = Some(next);
                    values[place] = wrap(x.dtype, next.into());
                }
            }
        }
    }
    Ok(result)
}

/// `x` with updates added along the axis; sums run in float64 and are rounded once.
pub(super) fn add_along_axis(
    precision: Precision,
    x: &Tensor,
    places: &Tensor,
    updates: &Tensor,
    axis: usize,
) -> Result<Tensor, String> {
    let numbers = places.as_ints()?;
    let mut result = x.clone();
    let size = *x.shape.get(axis).ok_or("a missing axis")?;
    for (from, mut index) in indices(&places.shape).enumerate() {
        let update = offset(&index, &updates.shape)?;
        *index.get_mut(axis).ok_or("a missing axis")? =
            super::movement::wrapped(numbers[from], size)?;
        let to = offset(&index, &x.shape)?;
        match (&mut result.data, &updates.data) {
            (Data::Float(to_values), Data::Float(values)) => to_values[to] += values[update],
            (Data::Int(to_values), Data::Int(values)) => {
                to_values[to] = wrap(
                    x.dtype,
                    i128::from(to_values[to]) + i128::from(values[update]),
                );
            }
            _ => return Err("operands of two kinds".into()),
        }
    }
    if let Data::Float(values) = &mut result.data {
        for value in values {
            *value = precision.round(x.dtype, *value);
        }
    }
    Ok(result)
}

/// Values and indices of the first `count` elements of each line, in order; equal ones as they stood.
pub(super) fn sort(
    x: &Tensor,
    axis: usize,
    descending: bool,
    count: usize,
) -> Result<Vec<Tensor>, String> {
    let mut shape = x.shape.clone();
    let length = shape[axis];
    shape[axis] = count;
    if count > length {
        return Err(format!("{count} of {length} elements"));
    }
    let mut order = vec![0; shape.iter().product()];
    let lines = lines(x, axis)?;
    let mut outer = shape.clone();
    outer.remove(axis);
    for (line, index) in lines.iter().zip(indices(&outer)) {
        let mut sorted: Vec<usize> = (0..length).collect();
        sorted.sort_by(|a, b| {
            let order = compare(x, line[*a], line[*b]);
            if descending { order.reverse() } else { order }
        });
        for (rank, from) in sorted.into_iter().take(count).enumerate() {
            let mut place = index.clone();
            place.insert(axis, rank);
            order[offset(&place, &shape)?] = from as i64;
        }
    }
    let places = Tensor::ints(DType::Int64, shape, order);
    Ok(vec![
        super::movement::take_along_axis(x, &places, axis)?,
        places,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(values: &[f64], shape: &[usize]) -> Tensor {
        Tensor {
            dtype: DType::Float32,
            shape: shape.to_vec(),
            data: Data::Float(values.to_vec()),
        }
    }

    #[test]
    fn scans_run_along_their_axis_and_keep_a_nan() {
        let x = floats(&[3.0, 1.0, 2.0, 5.0, -1.0, 4.0], &[2, 3]);
        let run = |function, axis| {
            let result = scan(Precision::Rounded, function, &x, axis).unwrap();
            result.as_floats().unwrap().to_vec()
        };
        assert_eq!(run(Scan::Sum, 1), [3.0, 4.0, 6.0, 5.0, 4.0, 8.0]);
        assert_eq!(run(Scan::Prod, 0), [3.0, 1.0, 2.0, 15.0, -1.0, 8.0]);
        assert_eq!(run(Scan::Max, 1), [3.0, 3.0, 3.0, 5.0, 5.0, 5.0]);
        assert_eq!(run(Scan::Min, 1), [3.0, 1.0, 1.0, 5.0, -1.0, -1.0]);
        let broken = floats(&[1.0, f64::NAN, 9.0], &[3]);
        let found = scan(Precision::Rounded, Scan::Max, &broken, 0).unwrap();
        let nan: Vec<bool> = found
            .as_floats()
            .unwrap()
            .iter()
            .map(|v| v.is_nan())
            .collect();
        assert_eq!(nan, [false, true, true]);
        let whole = Tensor::ints(DType::Int8, vec![2], vec![100, 100]);
        let wrapped = scan(Precision::Rounded, Scan::Sum, &whole, 0).unwrap();
        assert_eq!(wrapped.as_ints().unwrap(), [100, -56]);
    }

    #[test]
    fn updates_of_one_place_add_up() {
        let x = floats(&[0.0, 10.0, 20.0], &[3]);
        let places = Tensor::ints(DType::Int64, vec![3], vec![2, 0, -1]);
        let updates = floats(&[1.0, 2.0, 4.0], &[3]);
        let found = add_along_axis(Precision::Rounded, &x, &places, &updates, 0).unwrap();
        assert_eq!(found.as_floats().unwrap(), [2.0, 10.0, 25.0]);
        let beyond = Tensor::ints(DType::Int64, vec![1], vec![3]);
        assert!(add_along_axis(Precision::Rounded, &x, &beyond, &updates, 0).is_err());
    }
}
