// SPDX-License-Identifier: Apache-2.0
//! Sums of products of symbols: sizes with no shorter form (see [`Dim`]).

use super::dim::{Dim, SymbolId};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::{LazyLock, Mutex, PoisonError};

/// Limits that no model comes near: what is larger is a mistake or a malformed file.
const MAX_TERMS: usize = 64;
const MAX_DEGREE: usize = 16;
const MAX_DEPTH: usize = 16;

/// A factor of a product.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Atom {
    Symbol(SymbolId),
    /// `a // b`, rounded towards minus infinity.
    Quotient(Dim, Dim),
    /// `max(a, 0)`
    Positive(Dim),
}

impl Atom {
    fn eval(&self, symbols: &[i64]) -> Option<i64> {
        match self {
            Atom::Symbol(symbol) => symbols.get(*symbol as usize).copied(),
            Atom::Quotient(a, b) => {
                let (a, b) = (a.eval(symbols)?, b.eval(symbols)?);
                let quotient = a.checked_div(b)?;
                let inexact = a % b != 0 && (a < 0) != (b < 0);
                Some(quotient - i64::from(inexact))
            }
            Atom::Positive(a) => Some(a.eval(symbols)?.max(0)),
        }
    }

    fn is_non_negative(&self) -> bool {
        match self {
            Atom::Symbol(_) | Atom::Positive(_) => true,
            Atom::Quotient(a, b) => a.is_non_negative() && b.is_non_negative(),
        }
    }

    /// Arithmetic would make just this of its operands.
    fn is_formed(&self) -> bool {
        let made = match self {
            Atom::Symbol(_) => return true,
            Atom::Quotient(a, b) => a.floor_div(*b),
            Atom::Positive(a) => a.maximum(Dim::Fixed(0)),
        };
        made.is_some() && made == Sum::atom(self.clone()).dim()
    }

    fn depth(&self) -> usize {
        match self {
            Atom::Symbol(_) => 0,
            Atom::Quotient(a, b) => 1 + depth(*a).max(depth(*b)),
            Atom::Positive(a) => 1 + depth(*a),
        }
    }
}

fn depth(dim: Dim) -> usize {
    match dim {
        Dim::Fixed(_) | Dim::Affine { .. } => 0,
        Dim::Polynomial(polynomial) => {
            let atoms = polynomial.sum().0.keys().flatten();
            atoms.map(Atom::depth).max().unwrap_or(0)
        }
    }
}

/// Factors in ascending order, repeated for powers; none for the number 1.
type Product = Vec<Atom>;

/// Products and what they are multiplied with, never 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sum(BTreeMap<Product, i64>);

/// A [`Sum`] that is neither a number nor affine in one symbol.
///
/// Sizes are copied everywhere, so each sum is kept once for the life of the process: models have
/// few of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Polynomial(&'static Sum);

static KNOWN: LazyLock<Mutex<HashSet<&'static Sum>>> = LazyLock::new(Mutex::default);

impl Polynomial {
    fn new(sum: Sum) -> Polynomial {
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sum) = known.get(&sum) {
            return Polynomial(sum);
        }
        let kept: &'static Sum = Box::leak(Box::new(sum));
        known.insert(kept);
        Polynomial(kept)
    }

    /// The sum.
    pub fn sum(self) -> &'static Sum {
        self.0
    }
}

impl From<Dim> for Sum {
    fn from(dim: Dim) -> Sum {
        let mut sum = Sum::default();
        match dim {
            Dim::Fixed(value) => sum.insert(vec![], value),
            Dim::Affine { symbol, mul, add } => {
                sum.insert(vec![Atom::Symbol(symbol)], mul);
                sum.insert(vec![], add);
            }
            Dim::Polynomial(polynomial) => return polynomial.0.clone(),
        }
        sum
    }
}

impl Sum {
    /// One factor alone.
    pub fn atom(atom: Atom) -> Sum {
        Sum(BTreeMap::from([(vec![atom], 1)]))
    }

    fn insert(&mut self, product: Product, coefficient: i64) {
        if coefficient != 0 {
            self.0.insert(product, coefficient);
        }
    }

    /// As a size, in its only form; `None` where it is too large for one.
    pub fn dim(self) -> Option<Dim> {
        let number = self.0.get(&vec![]).copied().unwrap_or(0);
        let mut others = self.0.iter().filter(|(product, _)| !product.is_empty());
        match (others.next(), others.next()) {
            (None, _) => Some(Dim::Fixed(number)),
            (Some((product, mul)), None) if matches!(product[..], [Atom::Symbol(_)]) => {
                let [Atom::Symbol(symbol)] = product[..] else {
                    return None;
                };
                Some(Dim::Affine {
                    symbol,
                    mul: *mul,
                    add: number,
                })
            }
            _ => {
                let small = self.0.len() <= MAX_TERMS
                    && self.0.keys().all(|product| product.len() <= MAX_DEGREE)
                    && self
                        .0
                        .keys()
                        .flatten()
                        .all(|atom| atom.depth() <= MAX_DEPTH);
                small.then(|| Dim::Polynomial(Polynomial::new(self)))
            }
        }
    }

    /// The sum of both.
    pub fn add(&self, other: &Sum) -> Option<Sum> {
        let mut sum = self.clone();
        for (product, coefficient) in &other.0 {
            let total = sum
                .0
                .remove(product)
                .unwrap_or(0)
                .checked_add(*coefficient)?;
            sum.insert(product.clone(), total);
        }
        Some(sum)
    }

    /// The product of both.
    pub fn mul(&self, other: &Sum) -> Option<Sum> {
        let mut sum = Sum::default();
        for (a, x) in &self.0 {
            for (b, y) in &other.0 {
                let mut product = [a.as_slice(), b].concat();
                product.sort_unstable();
                let total = x
                    .checked_mul(*y)?
                    .checked_add(sum.0.remove(&product).unwrap_or(0))?;
                sum.insert(product, total);
            }
        }
        (sum.0.len() <= MAX_TERMS).then_some(sum)
    }

    /// `q` with `q * divisor = self`, if there is one.
    pub fn exact_quotient(&self, divisor: &Sum) -> Option<Sum> {
        let (lead, by) = divisor.0.last_key_value()?;
        let (mut rest, mut quotient) = (self.clone(), Sum::default());
        for _ in 0..MAX_TERMS {
            let Some((product, coefficient)) = rest.0.last_key_value() else {
                return Some(quotient);
            };
            if coefficient.checked_rem(*by)? != 0 {
                return None;
            }
            let term = Sum(BTreeMap::from([(
                without(product, lead)?,
                coefficient / by,
            )]));
            let negative = Sum::from(Dim::Fixed(-1));
            rest = rest.add(&term.mul(divisor)?.mul(&negative)?)?;
            quotient = quotient.add(&term)?;
        }
        None
    }

    /// `a` and `r` with `self = a * by + r`, where `r` has numbers from 0 to `by - 1`.
    pub fn split(&self, by: i64) -> Option<(Sum, Sum)> {
        let (mut whole, mut rest) = (Sum::default(), Sum::default());
        for (product, coefficient) in &self.0 {
            whole.insert(product.clone(), coefficient.checked_div_euclid(by)?);
            rest.insert(product.clone(), coefficient.checked_rem_euclid(by)?);
        }
        Some((whole, rest))
    }

    /// The largest number that divides `by` and every coefficient but that of the number.
    pub fn common_factor(&self, by: i64) -> i64 {
        let symbolic = self.0.iter().filter(|(product, _)| !product.is_empty());
        symbolic.fold(by, |a, (_, b)| gcd(a, *b))
    }

    /// Value under these symbols.
    pub fn eval(&self, symbols: &[i64]) -> Option<i64> {
        self.0
            .iter()
            .try_fold(0i64, |total, (product, coefficient)| {
                let value = product.iter().try_fold(*coefficient, |value, atom| {
                    value.checked_mul(atom.eval(symbols)?)
                });
                total.checked_add(value?)
            })
    }

    /// The coefficient of the last product is negative.
    pub fn leads_negative(&self) -> bool {
        self.0.last_key_value().is_some_and(|(_, value)| *value < 0)
    }

    /// Every term is known to be 0 or more.
    pub fn is_non_negative(&self) -> bool {
        self.0.iter().all(|(product, coefficient)| {
            *coefficient >= 0 && product.iter().all(Atom::is_non_negative)
        })
    }

    /// No quotients and no extremes.
    pub fn has_symbols_only(&self) -> bool {
        let mut atoms = self.0.keys().flatten();
        atoms.all(|atom| matches!(atom, Atom::Symbol(_)))
    }

    /// What the products are multiplied with.
    pub fn coefficients(&self) -> impl Iterator<Item = i64> + '_ {
        self.0.values().copied()
    }
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// A product divided by one of its parts.
fn without(product: &Product, part: &Product) -> Option<Product> {
    let mut rest = product.clone();
    for atom in part {
        let position = rest.iter().position(|other| other == atom)?;
        rest.remove(position);
    }
    Some(rest)
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (product, coefficient)) in self.0.iter().enumerate() {
            if index > 0 && *coefficient >= 0 {
                write!(f, "+")?;
            }
            let factors: Vec<String> = product.iter().map(Atom::to_string).collect();
            match (coefficient, product.is_empty()) {
                (value, true) => write!(f, "{value}")?,
                (1, _) => write!(f, "{}", factors.join("*"))?,
                (-1, _) => write!(f, "-{}", factors.join("*"))?,
                (value, _) => write!(f, "{value}*{}", factors.join("*"))?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Atom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let operand = |dim: &Dim| match dim {
            Dim::Fixed(_) | Dim::Affine { mul: 1, add: 0, .. } => dim.to_string(),
            _ => format!("({dim})"),
        };
        match self {
            Atom::Symbol(symbol) => write!(f, "s{symbol}"),
            Atom::Quotient(a, b) => write!(f, "{}//{}", operand(a), operand(b)),
            Atom::Positive(a) => write!(f, "max({a},0)"),
        }
    }
}

/// As a list of `[coefficient, [factor, ...]]` in ascending order of the products.
impl Serialize for Polynomial {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.0.iter().map(|(product, value)| (value, product)))
    }
}

/// Refuses a form that another size has.
impl<'de> Deserialize<'de> for Polynomial {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Polynomial, D::Error> {
        let terms = Vec::<(i64, Product)>::deserialize(deserializer)?;
        let sum = Sum(terms
            .iter()
            .cloned()
            .map(|(value, product)| (product, value))
            .collect());
        let ordered = sum.0.len() == terms.len()
            && sum.0.iter().zip(&terms).all(|((a, _), (_, b))| a == b)
            && sum
                .0
                .iter()
                .all(|(product, value)| *value != 0 && product.is_sorted());
        let formed = sum.0.keys().flatten().all(Atom::is_formed);
        match sum.dim() {
            Some(Dim::Polynomial(polynomial)) if ordered && formed => Ok(polynomial),
            _ => Err(de::Error::custom("a size that is not in its form")),
        }
    }
}
