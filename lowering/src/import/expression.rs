// SPDX-License-Identifier: Apache-2.0
//! Sizes as text: `2*s0 + 1`, `(s0*s1)//4`, `max(s0, 8)`. Capture writes them.

use super::document::FxSymbol;
use crate::ir::Dim;

/// Deeper nesting is a malformed document.
const MAX_DEPTH: usize = 32;

/// The size of that text, in these symbols.
pub fn parse_expression(text: &str, symbols: &[FxSymbol]) -> Result<Dim, String> {
    let mut parser = Parser {
        rest: text,
        symbols,
        depth: 0,
    };
    let size = parser.sum().filter(|_| parser.rest.trim().is_empty());
    size.ok_or_else(|| format!("{text:?} is no size in whole numbers and known symbols"))
}

struct Parser<'a> {
    rest: &'a str,
    symbols: &'a [FxSymbol],
    depth: usize,
}

impl<'a> Parser<'a> {
    /// Consumes the token, if it comes next.
    fn take(&mut self, token: &str) -> bool {
        match self.rest.trim_start().strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// `product (+ product | - product)*`
    fn sum(&mut self) -> Option<Dim> {
        let mut sum = self.product()?;
        loop {
            if self.take("+") {
                sum = sum.checked_add(self.product()?)?;
            } else if self.take("-") {
                sum = sum.checked_sub(self.product()?)?;
            } else {
                return Some(sum);
            }
        }
    }

    /// `factor (* factor | // factor | % factor)*`
    fn product(&mut self) -> Option<Dim> {
        let mut product = self.factor()?;
        loop {
            if self.take("//") {
                product = product.floor_div(self.factor()?)?;
            } else if self.take("*") {
                product = product.checked_mul(self.factor()?)?;
            } else if self.take("%") {
                product = product.remainder(self.factor()?)?;
            } else {
                return Some(product);
            }
        }
    }

    /// `-factor | number | symbol | (sum) | max(sum, ..) | min(sum, ..)`
    fn factor(&mut self) -> Option<Dim> {
        self.depth += 1;
        let factor = if self.depth > MAX_DEPTH {
            None
        } else if self.take("-") {
            self.factor()?.checked_mul(Dim::Fixed(-1))
        } else if self.take("(") {
            self.sum().filter(|_| self.take(")"))
        } else {
            self.word()
        };
        self.depth -= 1;
        factor
    }

    fn word(&mut self) -> Option<Dim> {
        let text = self.rest.trim_start();
        let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let (word, rest) = text.split_at(end.unwrap_or(text.len()));
        self.rest = rest;
        match word {
            "max" => self.extreme(Dim::maximum),
            "min" => self.extreme(Dim::minimum),
            _ => match self.symbols.iter().position(|symbol| symbol.name == word) {
                Some(position) => Some(Dim::symbol(u32::try_from(position).ok()?)),
                None => word.parse().ok().map(Dim::Fixed),
            },
        }
    }

    fn extreme(&mut self, of: fn(Dim, Dim) -> Option<Dim>) -> Option<Dim> {
        if !self.take("(") {
            return None;
        }
        let mut extreme = self.sum()?;
        while self.take(",") {
            extreme = of(extreme, self.sum()?)?;
        }
        self.take(")").then_some(extreme)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn symbols() -> [FxSymbol; 2] {
        ["s0", "batch"].map(|name| FxSymbol {
            name: name.into(),
            role: "size".into(),
        })
    }

    #[test]
    fn expressions_are_read_as_python_reads_them() {
        let value = |text: &str| {
            let size = parse_expression(text, &symbols()).unwrap();
            size.eval(&[7, 3]).unwrap()
        };
        assert_eq!(value("2*s0 + 1"), 15);
        assert_eq!(value("-s0 + batch*(s0 - 2)"), 8);
        assert_eq!(value("((s0 + 1)//2) % batch"), 1);
        assert_eq!(value("(-s0)//2"), -4);
        assert_eq!(value("max(s0, batch*3, 1) - min(s0, 2)"), 7);
        assert_eq!(
            parse_expression("s0*batch + s0", &symbols()),
            parse_expression("(batch + 1)*s0", &symbols())
        );
    }

    #[test]
    fn anything_else_is_refused() {
        let deep = format!("{}1{}", "(".repeat(1000), ")".repeat(1000));
        for text in [
            "",
            "s1",
            "s0 +",
            "s0 // 0",
            "1.5",
            "(s0",
            "s0)",
            "max s0",
            "s0**2",
            "9999999999999999999",
            &deep,
        ] {
            let error = parse_expression(text, &symbols()).unwrap_err();
            assert!(error.contains("is no size"), "{text}: {error}");
        }
    }
}
