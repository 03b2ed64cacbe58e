// SPDX-License-Identifier: Apache-2.0
//! Sizes that may depend on symbols such as the token count.

use super::polynomial::{Atom, Polynomial, Sum};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Index of a symbol in its graph's table (`GraphPlan::symbols`).
pub type SymbolId = u32;

/// A size: a number, `mul * symbol + add`, or any other polynomial. Each size has one form, so that
/// equal sizes are equal, hash alike and serialise to the same bytes.
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
    /// Several symbols, products of them, or whole quotients, known when a step runs.
    Polynomial(Polynomial),
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

    /// The number, if it does not depend on a symbol.
    pub fn fixed(self) -> Option<i64> {
        match self {
            Dim::Fixed(value) => Some(value),
            Dim::Affine { .. } | Dim::Polynomial(_) => None,
        }
    }

    /// Value under `symbols[id] = size`; `None` for an unbound symbol, a division by zero or on
    /// overflow.
    pub fn eval(self, symbols: &[i64]) -> Option<i64> {
        match self {
            Dim::Fixed(value) => Some(value),
            Dim::Affine { symbol, mul, add } => symbols
                .get(symbol as usize)?
                .checked_mul(mul)?
                .checked_add(add),
            Dim::Polynomial(polynomial) => polynomial.sum().eval(symbols),
        }
    }

    /// Sum; `None` where it does not fit.
    pub fn checked_add(self, other: Dim) -> Option<Dim> {
        match (self, other) {
            (Dim::Fixed(a), Dim::Fixed(b)) => Some(Dim::Fixed(a.checked_add(b)?)),
            (Dim::Affine { symbol, mul, add }, Dim::Fixed(b))
            | (Dim::Fixed(b), Dim::Affine { symbol, mul, add }) => Some(Dim::Affine {
                symbol,
                mul,
                add: add.checked_add(b)?,
            }),
            _ => Sum::from(self).add(&Sum::from(other))?.dim(),
        }
    }

    /// Product; `None` where it does not fit.
    pub fn checked_mul(self, other: Dim) -> Option<Dim> {
        match (self, other) {
            (Dim::Fixed(a), Dim::Fixed(b)) => Some(Dim::Fixed(a.checked_mul(b)?)),
            (Dim::Affine { symbol, mul, add }, Dim::Fixed(b))
            | (Dim::Fixed(b), Dim::Affine { symbol, mul, add })
                if b != 0 =>
            {
                Some(Dim::Affine {
                    symbol,
                    mul: mul.checked_mul(b)?,
                    add: add.checked_mul(b)?,
                })
            }
            _ => Sum::from(self).mul(&Sum::from(other))?.dim(),
        }
    }

    /// Difference; `None` as in [`Dim::checked_add`].
    pub fn checked_sub(self, other: Dim) -> Option<Dim> {
        self.checked_add(other.checked_mul(Dim::Fixed(-1))?)
    }

    /// Exact quotient; `None` when it is not a whole number for every value of the symbols.
    pub fn checked_div(self, divisor: impl Into<Dim>) -> Option<Dim> {
        match (self, divisor.into()) {
            (Dim::Fixed(a), Dim::Fixed(b)) => (a.checked_rem(b)? == 0).then(|| Dim::Fixed(a / b)),
            (a, b) => Sum::from(a).exact_quotient(&Sum::from(b))?.dim(),
        }
    }

    /// Quotient rounded towards minus infinity; `None` for a division by zero or where it does not
    /// fit.
    pub fn floor_div(self, divisor: Dim) -> Option<Dim> {
        if let Some(exact) = self.checked_div(divisor) {
            return Some(exact);
        }
        let Dim::Fixed(by) = divisor else {
            return Sum::atom(Atom::Quotient(self, divisor)).dim();
        };
        if by < 1 {
            let negated = |dim: Dim| dim.checked_mul(Dim::Fixed(-1));
            return (by < 0).then(|| negated(self)?.floor_div(negated(divisor)?))?;
        }
        // (a * by + r) // by = a + r // by, and r // by in lowest terms.
        let (whole, rest) = Sum::from(self).split(by)?;
        let shared = rest.common_factor(by);
        let (rest, by) = (rest.split(shared)?.0.dim()?, by / shared);
        let quotient = match rest {
            Dim::Fixed(rest) => Dim::Fixed(rest.div_euclid(by)),
            _ if by == 1 => rest,
            _ => Sum::atom(Atom::Quotient(rest, Dim::Fixed(by))).dim()?,
        };
        whole.dim()?.checked_add(quotient)
    }

    /// Remainder with the divisor's sign; `None` as in [`Dim::floor_div`].
    pub fn remainder(self, divisor: Dim) -> Option<Dim> {
        self.checked_sub(self.floor_div(divisor)?.checked_mul(divisor)?)
    }

    /// The larger one; `None` where it does not fit.
    pub fn maximum(self, other: Dim) -> Option<Dim> {
        other.checked_add(self.checked_sub(other)?.positive_part()?)
    }

    /// The smaller one; `None` where it does not fit.
    pub fn minimum(self, other: Dim) -> Option<Dim> {
        self.checked_sub(self.checked_sub(other)?.positive_part()?)
    }

    /// `max(self, 0)`
    fn positive_part(self) -> Option<Dim> {
        let negated = self.checked_mul(Dim::Fixed(-1))?;
        if self.is_non_negative() {
            Some(self)
        } else if negated.is_non_negative() {
            Some(Dim::Fixed(0))
        } else if Sum::from(self).leads_negative() {
            // max(x, 0) = x + max(-x, 0): one of the two is the form.
            self.checked_add(Sum::atom(Atom::Positive(negated)).dim()?)
        } else {
            Sum::atom(Atom::Positive(self)).dim()
        }
    }

    /// It is known to be 0 or more, whatever sizes the symbols have.
    pub fn is_non_negative(self) -> bool {
        match self {
            Dim::Fixed(value) => value >= 0,
            Dim::Affine { mul, add, .. } => mul >= 0 && add >= 0,
            Dim::Polynomial(polynomial) => polynomial.sum().is_non_negative(),
        }
    }

    /// It is known to differ from `other` for some sizes. Of quotients it is never known.
    pub fn differs(self, other: Dim) -> bool {
        self != other
            && self
                .checked_sub(other)
                .is_none_or(|difference| Sum::from(difference).has_symbols_only())
    }

    /// Numbers in it are at most this large.
    pub fn fits(self, limit: i64) -> bool {
        let fits = |value: i64| value.unsigned_abs() <= limit.unsigned_abs();
        match self {
            Dim::Fixed(value) => fits(value),
            Dim::Affine { mul, add, .. } => fits(mul) && fits(add),
            Dim::Polynomial(polynomial) => polynomial.sum().coefficients().all(fits),
        }
    }
}

/// Product of all sizes; `None` where it does not fit.
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
            Dim::Polynomial(polynomial) => write!(f, "{}", polynomial.sum()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn affine_arithmetic_stays_affine() {
        let tokens = Dim::symbol(0);
        let doubled = tokens.checked_mul(Dim::Fixed(2)).unwrap();
        assert_eq!(doubled.to_string(), "2*s0");
        assert_eq!(doubled.checked_sub(tokens), Some(tokens));
        assert_eq!(tokens.checked_sub(tokens), Some(Dim::Fixed(0)));
        assert_eq!(doubled.checked_div(2), Some(tokens));
        assert_eq!(tokens.checked_div(2), None);
        assert_eq!(doubled.eval(&[7]), Some(14));
        assert_eq!(Dim::symbol(3).eval(&[7]), None);
    }

    #[test]
    fn equal_sizes_have_one_form() {
        let (b, s) = (Dim::symbol(0), Dim::symbol(1));
        let product = b.checked_mul(s).unwrap();
        assert_eq!(product, s.checked_mul(b).unwrap());
        assert_eq!(product.to_string(), "s0*s1");
        assert_eq!(product.checked_div(b), Some(s));
        assert_eq!(product.checked_sub(product), Some(Dim::Fixed(0)));
        let grown = s.checked_add(Dim::Fixed(1)).unwrap();
        let expanded = b.checked_mul(grown).unwrap();
        assert_eq!(expanded.to_string(), "s0+s0*s1");
        assert_eq!(expanded.checked_div(grown), Some(b));
        assert_eq!(expanded.checked_sub(b), Some(product));
        assert_eq!(b.checked_add(s).unwrap().eval(&[2, 3]), Some(5));
    }

    #[test]
    fn quotients_and_extremes_are_sizes_as_well() {
        let s = Dim::symbol(0);
        let padded = s.checked_add(Dim::Fixed(2)).unwrap();
        let pooled = padded.floor_div(Dim::Fixed(2)).unwrap();
        assert_eq!(pooled.to_string(), "1+s0//2");
        assert_eq!(pooled.eval(&[7]), Some(4));
        let four = s.checked_mul(Dim::Fixed(4)).unwrap();
        let odd = four.checked_add(Dim::Fixed(6)).unwrap();
        assert_eq!(
            odd.floor_div(Dim::Fixed(8)).unwrap().to_string(),
            "(s0+1)//2"
        );
        assert_eq!(s.minimum(Dim::Fixed(8)).unwrap().eval(&[5]), Some(5));
        assert_eq!(s.minimum(Dim::Fixed(8)).unwrap().eval(&[50]), Some(8));
        assert_eq!(s.maximum(padded), Some(padded));
        assert_eq!(
            s.maximum(Dim::Fixed(8)),
            Dim::Fixed(8).maximum(s),
            "one form"
        );
        assert_eq!(s.remainder(Dim::Fixed(4)).unwrap().eval(&[7]), Some(3));
        assert_eq!(s.floor_div(Dim::Fixed(0)), None);
        assert_eq!(
            s.floor_div(Dim::symbol(1)).unwrap().eval(&[7, 0]),
            None,
            "nothing is divided by 0"
        );
    }

    #[test]
    fn sizes_are_written_and_read_in_their_form() {
        let (b, s) = (Dim::symbol(0), Dim::symbol(1));
        let size = b
            .checked_mul(s)
            .and_then(|x| x.checked_add(Dim::Fixed(5)))
            .and_then(|x| x.floor_div(Dim::Fixed(3)))
            .and_then(|x| x.maximum(s))
            .unwrap();
        let text = serde_json::to_string(&size).unwrap();
        assert_eq!(serde_json::from_str::<Dim>(&text).unwrap(), size);
        for foreign in [
            r#"[[2,[]]]"#,
            r#"[[1,[{"symbol":0}]]]"#,
            r#"[[0,[{"symbol":0},{"symbol":1}]]]"#,
        ] {
            assert!(serde_json::from_str::<Dim>(foreign).is_err(), "{foreign}");
        }
    }

    /// A size of two symbols, and the same computed with numbers.
    fn size() -> impl Strategy<Value = (Dim, fn(i64, i64) -> i64)> {
        prop_oneof![
            Just((Dim::symbol(0), (|b, _| b) as fn(i64, i64) -> i64)),
            Just((Dim::symbol(1), (|_, s| s) as fn(i64, i64) -> i64)),
            Just((Dim::Fixed(3), (|_, _| 3) as fn(i64, i64) -> i64)),
            Just((Dim::Fixed(-2), (|_, _| -2) as fn(i64, i64) -> i64)),
        ]
    }

    proptest! {
        #[test]
        fn arithmetic_is_that_of_numbers(
            start in size(),
            steps in prop::collection::vec((0usize..7, size()), 0..8),
            b in 0i64..40,
            s in 0i64..40,
        ) {
            let (mut dim, number) = start;
            let mut value = number(b, s);
            for (operator, (operand, number)) in steps {
                let other = number(b, s);
                let (made, computed) = match operator {
                    0 => (dim.checked_add(operand), Some(value + other)),
                    1 => (dim.checked_sub(operand), Some(value - other)),
                    2 => (dim.checked_mul(operand), value.checked_mul(other)),
                    3 => (dim.maximum(operand), Some(value.max(other))),
                    4 => (dim.minimum(operand), Some(value.min(other))),
                    5 => (dim.floor_div(Dim::Fixed(4)), Some(value.div_euclid(4))),
                    _ => (dim.remainder(Dim::Fixed(3)), Some(value.rem_euclid(3))),
                };
                let (Some(made), Some(computed)) = (made, computed) else { break };
                (dim, value) = (made, computed);
                prop_assert_eq!(dim.eval(&[b, s]), Some(value), "{}", dim);
                let text = serde_json::to_string(&dim).unwrap();
                prop_assert_eq!(serde_json::from_str::<Dim>(&text).unwrap(), dim);
                if dim.is_non_negative() {
                    prop_assert!(value >= 0);
                }
            }
        }
    }
}
