// SPDX-License-Identifier: Apache-2.0
//! The one table from an operator to its lowering. What stands in it is what the lowering claims.

use super::call::{Call, Item};
use super::graph::Importer;
use super::{attention, convolution, create, index, pointwise, pool, product, reduce, shape, vllm};
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// Lowers a call, or says why it cannot.
pub type Handler = fn(&mut Importer, &Call) -> Result<Item, String>;

/// Targets such as `aten.add.Tensor`, each with its lowering.
pub type Claims = &'static [(&'static str, Handler)];

/// Operators that yield new tensors or views.
const FUNCTIONAL: &[Claims] = &[
    shape::CLAIMS,
    convolution::CLAIMS,
    pool::CLAIMS,
    pointwise::CLAIMS,
    pointwise::BINARY_ONLY,
    product::CLAIMS,
    attention::CLAIMS,
    reduce::CLAIMS,
    index::CLAIMS,
    create::CLAIMS,
    vllm::CLAIMS,
];

/// Operators of which PyTorch also has the in-place form: `aten.add_.Tensor` is `aten.add.Tensor`
/// stored in its first argument.
const WITH_IN_PLACE: &[Claims] = &[
    pointwise::UNARY,
    pointwise::BINARY,
    pointwise::WITH_IN_PLACE,
    index::WITH_IN_PLACE,
    shape::WITH_IN_PLACE,
];

/// In-place forms whose overloads are named otherwise than those of their functional forms.
const IN_PLACE: &[Claims] = &[pointwise::IN_PLACE];

/// How a claimed operator is lowered.
#[derive(Clone, Copy)]
struct Claim {
    handler: Handler,
    in_place: bool,
}

static TABLE: LazyLock<BTreeMap<String, Claim>> = LazyLock::new(|| {
    let claim = |target: &str, handler: Handler, in_place| {
        let claim = Claim { handler, in_place };
        (target.to_owned(), claim)
    };
    let mut table = BTreeMap::new();
    for (target, handler) in FUNCTIONAL.iter().copied().flatten() {
        table.extend([claim(target, *handler, false)]);
    }
    for (target, handler) in WITH_IN_PLACE.iter().copied().flatten() {
        table.extend([claim(target, *handler, false)]);
        table.extend([claim(&in_place_form(target), *handler, true)]);
    }
    for (target, handler) in IN_PLACE.iter().copied().flatten() {
        table.extend([claim(target, *handler, true)]);
    }
    table
});

/// `aten.add_.Tensor` for `aten.add.Tensor`.
fn in_place_form(target: &str) -> String {
    match target.rsplit_once('.') {
        Some((name, overload)) => format!("{name}_.{overload}"),
        None => format!("{target}_"),
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
        let claim = TABLE
            .get(call.target())
            .ok_or("no lowering is registered for it")?;
        let result = (claim.handler)(self, call)?;
        if claim.in_place {
            let value = self.value(&result)?;
            return self.store(call.first()?, value);
        }
        Ok(result)
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
        let total = count(FUNCTIONAL) + 2 * count(WITH_IN_PLACE) + count(IN_PLACE);
        assert_eq!(claimed_targets().len(), total);
    }

    #[test]
    fn an_in_place_form_has_its_own_target() {
        assert_eq!(in_place_form("aten.add.Tensor"), "aten.add_.Tensor");
    }
}
