// SPDX-License-Identifier: Apache-2.0
//! Convolutions, summed in float64 and rounded once.

use super::round::Precision;
use super::tensor::{Data, Tensor, elements, indices, offset};
use crate::ir::Convolution;

/// Channels last: `x [n, .., c], w [m, .., c / groups] -> [n, .., m]`.
pub(super) fn convolution(
    precision: Precision,
    attributes: &Convolution,
    x: &Tensor,
    weight: &Tensor,
    shape: Vec<usize>,
) -> Result<Tensor, String> {
    let (a, b) = (x.as_floats()?, weight.as_floats()?);
    let ([_, sizes @ .., _], [outputs, window @ .., channels]) =
        (x.shape.as_slice(), weight.shape.as_slice())
    else {
        return Err("a convolution of vectors".into());
    };
    let per_group = outputs / attributes.groups.max(1) as usize;
    let mut result = Vec::with_capacity(elements(&shape)?);
    for index in indices(&shape) {
        let [image, place @ .., output] = index.as_slice() else {
            return Err("a convolution of vectors".into());
        };
        let first = output / per_group.max(1) * channels;
        let mut total = 0.0;
        for inside in indices(window) {
            let Some(from) = source(attributes, place, &inside, sizes) else {
                continue;
            };
            let applied: Vec<usize> = match attributes.flip {
                true => inside.iter().zip(window).map(|(i, n)| n - 1 - i).collect(),
                false => inside,
            };
            for channel in 0..*channels {
                let left = offset(
                    &[&[*image], from.as_slice(), &[first + channel]].concat(),
                    &x.shape,
                )?;
                let right = offset(
                    &[&[*output], applied.as_slice(), &[channel]].concat(),
                    &weight.shape,
                )?;
                total += a[left] * b[right];
            }
        }
        result.push(precision.round(x.dtype, total));
    }
    Ok(Tensor {
        dtype: x.dtype,
        shape,
        data: Data::Float(result),
    })
}

/// The input's element below an element of a window; none where there is a zero.
fn source(
    attributes: &Convolution,
    place: &[usize],
    inside: &[usize],
    sizes: &[usize],
) -> Option<Vec<usize>> {
    (0..sizes.len())
        .map(|axis| {
            let at = place[axis] as i64 * attributes.stride[axis]
                + inside[axis] as i64 * attributes.dilation[axis]
                - attributes.low[axis];
            let step = attributes.expansion[axis];
            let from = usize::try_from(at / step).ok()?;
            (at >= 0 && at % step == 0 && from < sizes[axis]).then_some(from)
        })
        .collect()
}
