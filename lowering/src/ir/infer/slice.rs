// SPDX-License-Identifier: Apache-2.0
//! Bounds and lengths of slices.

use crate::ir::Dim;

/// Refuses bounds that are known to lie outside the axis.
pub fn check_bounds(start: Dim, stop: Dim, length: Dim) -> Result<(), String> {
    let negative = |bound: Dim| bound.fixed().is_some_and(|bound| bound < 0);
    let beyond = length.checked_sub(stop).is_some_and(negative);
    match negative(start) || negative(stop) || beyond {
        true => Err(format!("slice {start}:{stop} of {length} elements")),
        false => Ok(()),
    }
}

/// Elements of `start:stop:step`; `None` where there is no such slice.
pub fn slice_length(start: Dim, stop: Dim, step: i64) -> Option<Dim> {
    let span = stop.checked_sub(start)?;
    if span.fixed().is_some_and(|span| span < 0) || step < 1 {
        return None;
    }
    span.checked_add(Dim::Fixed(step - 1))?
        .floor_div(Dim::Fixed(step))
}
