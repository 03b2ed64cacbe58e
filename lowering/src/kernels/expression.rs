// SPDX-License-Identifier: Apache-2.0
//! Integer expressions of kernel contracts: numbers, names, `+ - * / %` (rounding down), one
//! comparison, parentheses, `min`, `max`, `gcd` and `ceil_div`.

use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use std::fmt;

/// Values by name.
pub type Sizes = BTreeMap<String, i64>;

/// A parsed expression, shown as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expression {
    text: String,
    node: Node,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    Number(i64),
    Name(String),
    Binary(Operator, Box<Node>, Box<Node>),
}

/// What joins two nodes. Comparisons give 1 or 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Add,
    Sub,
    Mul,
    Div,
    Rem,
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    Min,
    Max,
    Gcd,
    CeilDiv,
}

/// Why an expression has no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Undefined {
    #[error("{0:?} has no value")]
    Name(String),
    #[error("a division by zero")]
    Zero,
    #[error("a number beyond 64 bits")]
    Overflow,
}

impl Operator {
    fn apply(self, a: i64, b: i64) -> Result<i64, Undefined> {
        use Operator::*;
        let divides = matches!(self, Div | Rem | CeilDiv);
        if divides && b == 0 {
            return Err(Undefined::Zero);
        }
        let value = match self {
            Add => a.checked_add(b),
            Sub => a.checked_sub(b),
            Mul => a.checked_mul(b),
            Div => floor_div(a, b),
            Rem => floor_div(a, b)
                .and_then(|quotient| quotient.checked_mul(b))
                .and_then(|whole| a.checked_sub(whole)),
            CeilDiv => a
                .checked_neg()
                .and_then(|negative| floor_div(negative, b))
                .and_then(i64::checked_neg),
            Equal => Some((a == b).into()),
            NotEqual => Some((a != b).into()),
            Less => Some((a < b).into()),
            LessEqual => Some((a <= b).into()),
            Greater => Some((a > b).into()),
            GreaterEqual => Some((a >= b).into()),
            Min => Some(a.min(b)),
            Max => Some(a.max(b)),
            Gcd => i64::try_from(gcd(a.unsigned_abs(), b.unsigned_abs())).ok(),
        };
        value.ok_or(Undefined::Overflow)
    }
}

fn floor_div(a: i64, b: i64) -> Option<i64> {
    let quotient = a.checked_div(b)?;
    let is_below = a % b != 0 && (a < 0) != (b < 0);
    Some(quotient - i64::from(is_below))
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl Node {
    fn value(&self, sizes: &Sizes) -> Result<i64, Undefined> {
        match self {
            Node::Number(number) => Ok(*number),
            Node::Name(name) => sizes
                .get(name)
                .copied()
                .ok_or_else(|| Undefined::Name(name.clone())),
            Node::Binary(operator, a, b) => operator.apply(a.value(sizes)?, b.value(sizes)?),
        }
    }
}

impl Expression {
    /// The value with these sizes.
    ///
    /// # Errors
    /// A name without a value, a division by zero, or a number beyond 64 bits.
    pub fn value(&self, sizes: &Sizes) -> Result<i64, Undefined> {
        self.node.value(sizes)
    }

    /// Reads an expression.
    ///
    /// # Errors
    /// Text that is none, with the place.
    pub fn parse(text: &str) -> Result<Expression, String> {
        let mut parser = Parser { text, at: 0 };
        let node = parser.comparison()?;
        match parser.peek() {
            None => Ok(Expression {
                text: text.to_owned(),
                node,
            }),
            Some(_) => Err(parser.error("an operator")),
        }
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Expression {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Expression, D::Error> {
        let text = String::deserialize(deserializer)?;
        Expression::parse(&text).map_err(serde::de::Error::custom)
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn error(&self, expected: &str) -> String {
        format!(
            "{expected} expected at column {} of {:?}",
            self.at + 1,
            self.text
        )
    }

    fn peek(&mut self) -> Option<char> {
        let rest = self.text[self.at..].trim_start();
        self.at = self.text.len() - rest.len();
        rest.chars().next()
    }

    fn accept(&mut self, token: &str) -> bool {
        self.peek();
        let found = self.text[self.at..].starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn one_of(&mut self, tokens: &[(&str, Operator)]) -> Option<Operator> {
        tokens
            .iter()
            .find(|(token, _)| self.accept(token))
            .map(|(_, operator)| *operator)
    }

    fn comparison(&mut self) -> Result<Node, String> {
        use Operator::*;
        let left = self.sum()?;
        // Longer ones first.
        let operators = [
            ("==", Equal),
            ("!=", NotEqual),
            ("<=", LessEqual),
            (">=", GreaterEqual),
            ("<", Less),
            (">", Greater),
        ];
        match self.one_of(&operators) {
            Some(operator) => Ok(binary(operator, left, self.sum()?)),
            None => Ok(left),
        }
    }

    fn sum(&mut self) -> Result<Node, String> {
        let mut left = self.product()?;
        while let Some(operator) = self.one_of(&[("+", Operator::Add), ("-", Operator::Sub)]) {
            left = binary(operator, left, self.product()?);
        }
        Ok(left)
    }

    fn product(&mut self) -> Result<Node, String> {
        use Operator::*;
        let mut left = self.atom()?;
        while let Some(operator) = self.one_of(&[("*", Mul), ("/", Div), ("%", Rem)]) {
            left = binary(operator, left, self.atom()?);
        }
        Ok(left)
    }

    fn atom(&mut self) -> Result<Node, String> {
        let first = self.peek().ok_or_else(|| self.error("a value"))?;
        if self.accept("(") {
            let inner = self.comparison()?;
            return if self.accept(")") {
                Ok(inner)
            } else {
                Err(self.error("\")\""))
            };
        }
        let rest = &self.text[self.at..];
        let length = rest
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(rest.len());
        if length == 0 {
            return Err(self.error("a value"));
        }
        let (word, start) = (&rest[..length], self.at);
        self.at += length;
        if first.is_ascii_digit() {
            return word.parse().map(Node::Number).map_err(|_| {
                self.at = start;
                self.error("a number")
            });
        }
        if !self.accept("(") {
            return Ok(Node::Name(word.to_owned()));
        }
        let operator = match word {
            "min" => Operator::Min,
            "max" => Operator::Max,
            "gcd" => Operator::Gcd,
            "ceil_div" => Operator::CeilDiv,
            _ => {
                self.at = start;
                return Err(self.error("min, max, gcd or ceil_div"));
            }
        };
        let a = self.comparison()?;
        if !self.accept(",") {
            return Err(self.error("\",\""));
        }
        let b = self.comparison()?;
        if !self.accept(")") {
            return Err(self.error("\")\""));
        }
        Ok(binary(operator, a, b))
    }
}

fn binary(operator: Operator, a: Node, b: Node) -> Node {
    Node::Binary(operator, Box::new(a), Box::new(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Result<i64, Undefined> {
        let sizes = Sizes::from([("n".to_owned(), 80), ("zero".to_owned(), 0)]);
        Expression::parse(text).unwrap().value(&sizes)
    }

    #[test]
    fn operators_bind_as_usual_and_divisions_round_down() {
        assert_eq!(value("2 + 3 * 4 - 1"), Ok(13));
        assert_eq!(value("(2 + 3) * 4"), Ok(20));
        assert_eq!(value("(0 - 7) / 2"), Ok(-4));
        assert_eq!(value("(0 - 7) % 2"), Ok(1));
        assert_eq!(value("ceil_div(n, 32) + gcd(32, gcd(n, 96))"), Ok(3 + 16));
        assert_eq!(value("min(n, 3) + max(n, 3)"), Ok(83));
        assert_eq!(value("n <= 80"), Ok(1));
        assert_eq!(value("n % 32 == 0"), Ok(0));
    }

    #[test]
    fn what_has_no_value_says_why() {
        assert_eq!(value("m + 1"), Err(Undefined::Name("m".into())));
        assert_eq!(value("n / zero"), Err(Undefined::Zero));
        assert_eq!(value("9223372036854775807 + n"), Err(Undefined::Overflow));
        assert_eq!(
            value("(0 - 9223372036854775807 - 1) / (0 - 1)"),
            Err(Undefined::Overflow)
        );
    }

    #[test]
    fn text_that_is_no_expression_is_refused_with_its_place() {
        for (text, column) in [
            ("", 1),
            ("2 +", 4),
            ("2 3", 3),
            ("f(1, 2)", 1),
            ("min(1)", 6),
            ("(1", 3),
        ] {
            let error = Expression::parse(text).unwrap_err();
            assert!(
                error.contains(&format!("column {column} ")),
                "{text:?}: {error}"
            );
        }
    }
}
