// SPDX-License-Identifier: Apache-2.0
//! Sizes that may depend on a symbol such as the token count.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Index of a symbol in its graph's table (`GraphPlan::symbols`).
pub type SymbolId = u32;

/// A size: a number, or `mul * symbol + add`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Dim {
    /// Known at compile time.
    Fixed(i64),
    /// `mul * symbol + add`, known when a step runs.
    Affine {
        symbol: SymbolId,
        mul: i64,
        add: i64,
    },
}

impl Dim {
    /// The bare symbol.
    pub fn symbol(symbol: SymbolId) -> Dim {
        Dim::Affine {
            symbol,
            mul: 1,
            add: 0,
        }
    }

    fn affine(symbol: SymbolId, mul: i64, add: i64) -> Dim {
        if mul == 0 {
            Dim::Fixed(add)
        } else {
            Dim::Affine { symbol, mul, add }
        }
    }

    /// The number, if it does not depend on a symbol.
    pub fn fixed(self) -> Option<i64> {
        match self {
            Dim::Fixed(value) => Some(value),
            Dim::Affine { .. } => None,
        }
    }

    /// Value under `symbols[id] = size`; `None` for an unbound symbol or on overflow.
    pub fn eval(self, symbols: &[i64]) -> Option<i64> {
        match self {
            Dim::Fixed(value) => Some(value),
            Dim::Affine { symbol, mul, add } => symbols
                .get(symbol as usize)?
                .checked_mul(mul)?
                .checked_add(add),
        }
    }

    /// Sum; `None` for two different symbols, which no affine form holds.
    pub fn checked_add(self, other: Dim) -> Option<Dim> {
        match (self, other) {
            (Dim::Fixed(a), Dim::Fixed(b)) => Some(Dim::Fixed(a.checked_add(b)?)),
            (Dim::Affine { symbol, mul, add }, Dim::Fixed(b))
            | (Dim::Fixed(b), Dim::Affine { symbol, mul, add }) => {
                Some(Dim::affine(symbol, mul, add.checked_add(b)?))
            }
            (
                Dim::Affine {
                    symbol: s,
                    mul: m,
                    add: a,
                },
                Dim::Affine {
                    symbol: t,
                    mul: n,
                    add: b,
                },
            ) => (s == t).then_some(Dim::affine(s, m.checked_add(n)?, a.checked_add(b)?)),
        }
    }

    /// Product; `None` for a product of symbols.
    pub fn checked_mul(self, other: Dim) -> Option<Dim> {
        match (self, other) {
            (Dim::Fixed(a), Dim::Fixed(b)) => Some(Dim::Fixed(a.checked_mul(b)?)),
            (Dim::Affine { symbol, mul, add }, Dim::Fixed(b))
            | (Dim::Fixed(b), Dim::Affine { symbol, mul, add }) => Some(Dim::affine(
                symbol,
                mul.checked_mul(b)?,
                add.checked_mul(b)?,
            )),
            _ => None,
        }
    }

    /// Difference; `None` as in [`Dim::checked_add`].
    pub fn checked_sub(self, other: Dim) -> Option<Dim> {
        self.checked_add(other.checked_mul(Dim::Fixed(-1))?)
    }

    /// Exact quotient; `None` when it is not a whole number for every value of the symbol.
    pub fn checked_div(self, divisor: i64) -> Option<Dim> {
        if divisor == 0 {
            return None;
        }
        match self {
            Dim::Fixed(value) => exact(value, divisor).map(Dim::Fixed),
            Dim::Affine { symbol, mul, add } => Some(Dim::affine(
                symbol,
                exact(mul, divisor)?,
                exact(add, divisor)?,
            )),
        }
    }
}

/// The quotient, if it is a whole number that 64 bits hold.
fn exact(value: i64, divisor: i64) -> Option<i64> {
    (value.checked_rem(divisor)? == 0).then(|| value / divisor)
}

/// Product of all sizes; `None` for a product of symbols.
pub fn product(dims: &[Dim]) -> Option<Dim> {
    dims.iter()
        .try_fold(Dim::Fixed(1), |total, dim| total.checked_mul(*dim))
}

impl From<i64> for Dim {
    fn from(value: i64) -> Dim {
        Dim::Fixed(value)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Dim::Fixed(value) => write!(f, "{value}"),
            Dim::Affine { symbol, mul, add } => {
                if mul != 1 {
                    write!(f, "{mul}*")?;
                }
                write!(f, "s{symbol}")?;
                match add {
                    0 => Ok(()),
                    add if add < 0 => write!(f, "-{}", add.unsigned_abs()),
                    add => write!(f, "+{add}"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn affine_arithmetic_stays_affine_and_refuses_products_of_symbols() {
        let tokens = Dim::symbol(0);
        let doubled = tokens.checked_mul(Dim::Fixed(2)).unwrap();
        assert_eq!(doubled.to_string(), "2*s0");
        assert_eq!(doubled.checked_sub(tokens), Some(tokens));
        assert_eq!(tokens.checked_sub(tokens), Some(Dim::Fixed(0)));
        assert_eq!(tokens.checked_mul(tokens), None);
        assert_eq!(tokens.checked_add(Dim::symbol(1)), None);
        assert_eq!(doubled.checked_div(2), Some(tokens));
        assert_eq!(tokens.checked_div(2), None);
        assert_eq!(doubled.eval(&[7]), Some(14));
        assert_eq!(Dim::symbol(3).eval(&[7]), None);
    }
}
