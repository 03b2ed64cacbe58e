// SPDX-License-Identifier: Apache-2.0
//! The one table from an operator to its lowering. What stands in it is what the lowering claims.

use super::call::{Call, Item};
use super::graph::Importer;
use super::{
    activation, attention, convolution, create, diagonal, index, join, loss, moments, movement,
    norm, order, pad, pointwise, pool, product, put, recurrence, reduce, resample, scan, scatter,
    select, shape, slice, special, vllm,
};
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// What a call became, or why it cannot be lowered.
pub type Lowered = Result<Item, String>;

/// Lowers a call.
pub type Handler = fn(&mut Importer, &Call) -> Lowered;

/// Targets such as `aten.add.Tensor`, each with its lowering.
pub type Claims = &'static [(&'static str, Handler)];

/// Operators that yield new tensors or views.
const FUNCTIONAL: &[Claims] = &[
    activation::CLAIMS,
    attention::CLAIMS,
    convolution::CLAIMS,
    create::CLAIMS,
    diagonal::CLAIMS,
    index::CLAIMS,
    join::CLAIMS,
    loss::CLAIMS,
    moments::CLAIMS,
    movement::CLAIMS,
    norm::CLAIMS,
    order::CLAIMS,
    pad::CLAIMS,
    pool::CLAIMS,
    pointwise::BINARY_ONLY,
    pointwise::CLAIMS,
    product::CLAIMS,
    put::CLAIMS,
    reduce::CLAIMS,
    reduce::INDICES,
    reduce::PLAIN,
    resample::CLAIMS,
    scan::CLAIMS,
    shape::CLAIMS,
    shape::ONLY_VIEWS,
    slice::CLAIMS,
    slice::ONLY_VIEWS,
    special::BINARY_ONLY,
    special::CLAIMS,
    special::UNARY_ONLY,
    vllm::CLAIMS,
    recurrence::CLAIMS,
    select::CLAIMS,
];

/// Views of which PyTorch also has the copying form: `aten.select_copy.int` is `aten.select.int` with
/// memory of its own.
const WITH_COPY: &[Claims] = &[diagonal::VIEWS, movement::VIEWS, shape::VIEWS, slice::VIEWS];

/// Copies that are named otherwise, or whose view is no operator.
const COPIES: &[Claims] = &[slice::COPIES];

/// Operators of which PyTorch also has the in-place form: `aten.add_.Tensor` is `aten.add.Tensor`
/// stored in its first argument.
const WITH_IN_PLACE: &[Claims] = &[
    activation::WITH_IN_PLACE,
    diagonal::WITH_IN_PLACE,
    moments::WITH_IN_PLACE,
    pointwise::BINARY,
    pointwise::UNARY,
    pointwise::WITH_IN_PLACE,
    product::WITH_IN_PLACE,
    put::WITH_IN_PLACE,
    scan::WITH_IN_PLACE,
    scatter::WITH_IN_PLACE,
    special::BINARY,
    special::UNARY,
    special::WITH_IN_PLACE,
];

/// In-place forms whose overloads are named otherwise than those of their functional forms.
const IN_PLACE: &[Claims] = &[pointwise::IN_PLACE];

/// What becomes of a lowering's result.
#[derive(Clone, Copy)]
enum Finish {
    /// It is the call's.
    Plain,
    /// It is stored in the first argument.
    InPlace,
    /// It is copied.
    Copy,
}

static TABLE: LazyLock<BTreeMap<String, (Handler, Finish)>> = LazyLock::new(|| {
    let groups: [(&[Claims], &str, Finish); 7] = [
        (FUNCTIONAL, "", Finish::Plain),
        (WITH_IN_PLACE, "", Finish::Plain),
        (WITH_IN_PLACE, "_", Finish::InPlace),
        (IN_PLACE, "", Finish::InPlace),
        (WITH_COPY, "", Finish::Plain),
        (WITH_COPY, "_copy", Finish::Copy),
        (COPIES, "", Finish::Copy),
    ];
    let mut table = BTreeMap::new();
    for (families, suffix, finish) in groups {
        for (target, handler) in families.iter().copied().flatten() {
            table.insert(variant(target, suffix), (*handler, finish));
        }
    }
    table
});

/// `aten.add_.Tensor` for `aten.add.Tensor` and `_`.
fn variant(target: &str, suffix: &str) -> String {
    match target.rsplit_once('.') {
        Some((name, overload)) => format!("{name}{suffix}.{overload}"),
        None => format!("{target}{suffix}"),
    }
}

/// Every target that has a lowering, sorted. A claimed operator's unusual arguments may still be
/// refused, with the reason.
pub fn claimed_targets() -> Vec<&'static str> {
    TABLE.keys().map(String::as_str).collect()
}

impl Importer<'_> {
    /// Lowers a call, or says why it cannot.
    pub(super) fn lower(&mut self, call: &Call) -> Result<Item, String> {
        let (handler, finish) = TABLE
            .get(call.target())
            .ok_or("no lowering is registered for it")?;
        let result = handler(self, call)?;
        match finish {
            Finish::Plain => Ok(result),
            Finish::InPlace => {
                let value = self.value(&result)?;
                self.store(call.first()?, value)
            }
            Finish::Copy => self.copied(&result),
        }
    }

    /// Views with memory of their own.
    fn copied(&mut self, item: &Item) -> Result<Item, String> {
        Ok(match item {
            Item::Tuple(items) => {
                let items: Result<Vec<Item>, String> =
                    items.iter().map(|item| self.copied(item)).collect();
                Item::Tuple(items?)
            }
            item => {
                let value = self.value(item)?;
                self.fresh(value)
            }
        })
    }

    /// Writes the value, cast and broadcast, to a tensor argument and yields that.
    pub(super) fn store(&mut self, target: &Item, value: crate::ir::Value) -> Result<Item, String> {
        let old = self.value(target)?;
        let (dtype, shape) = (self.builder.dtype(old), self.builder.shape(old).to_vec());
        let value = self.builder.cast(value, dtype)?;
        let value = self.builder.broadcast(value, shape)?;
        self.write(target, value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_is_claimed_once() {
        let count = |families: &[Claims]| families.iter().map(|claims| claims.len()).sum::<usize>();
        let total = count(FUNCTIONAL)
            + 2 * count(WITH_IN_PLACE)
            + count(IN_PLACE)
            + 2 * count(WITH_COPY)
            + count(COPIES);
        assert_eq!(claimed_targets().len(), total);
    }

    #[test]
    fn an_in_place_form_has_its_own_target() {
        assert_eq!(variant("aten.add.Tensor", "_"), "aten.add_.Tensor");
    }
}
