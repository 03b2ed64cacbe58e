// SPDX-License-Identifier: Apache-2.0
//! Products of rows with the weights of the experts that they are routed to.

use crate::runtime::error::{Error, Result};
use crate::runtime::mlx::{Array, Mlx, scalar};
use lowering::ir::DType;

/// From so many rows on they are sorted by expert, so that each expert's weights are read once;
/// below, sorting costs more than it saves (mlx-lm's `SwitchGLU` draws the same line).
const SORTED_FROM: i32 = 64;

/// Which rows go to which expert, prepared once for all products of a layer.
pub struct Route {
    /// uint32 `[t, k]`, each below the number of experts: MLX's gather checks no index.
    experts: Array,
    sorted: Option<Sorted>,
}

/// Rows in the order of their experts, all `[t * k]`.
struct Sorted {
    experts: Array,
    /// Sorted place -> row of `[t * k]`.
    order: Array,
    /// Sorted place -> token.
    tokens: Array,
    /// Row -> sorted place.
    inverse: Array,
}

/// Identity of a route's experts within a run, and their number.
pub type RouteKey = (u64, i32);

/// The route in use; layers have their own, so one is remembered.
#[derive(Default)]
pub struct Routes(Option<(RouteKey, Route)>);

impl Routes {
    /// The route of that key, made where it is another than the last.
    pub fn get(&mut self, key: RouteKey, make: impl FnOnce() -> Result<Route>) -> Result<&Route> {
        let kept = self.0.take().filter(|(other, _)| *other == key);
        let route = match kept {
            Some((_, route)) => route,
            None => make()?,
        };
        Ok(&self.0.insert((key, route)).1)
    }
}

/// Prepares the route to `count` experts, `experts [t, k]`.
pub fn route(mlx: &Mlx, experts: &Array, count: i32) -> Result<Route> {
    let &[tokens, chosen] = experts.shape() else {
        return Err(Error::Unsupported("experts of rank 2 expected".into()));
    };
    // A negative number becomes a large one.
    let last = scalar(mlx, f64::from(count - 1), DType::Uint32)?;
    let experts = mlx.minimum(&mlx.ensure(experts.clone(), DType::Uint32)?, &last)?;
    let rows = tokens * chosen;
    if rows < SORTED_FROM {
        return Ok(Route {
            experts,
            sorted: None,
        });
    }
    let flat = mlx.reshape(&experts, &[rows])?;
    let order = mlx.argsort(&flat, 0)?;
    let per_token = scalar(mlx, f64::from(chosen), DType::Uint32)?;
    let sorted = Sorted {
        experts: mlx.take(&flat, &order, 0)?,
        tokens: mlx.floor_divide(&order, &per_token)?,
        inverse: mlx.argsort(&order, 0)?,
        order,
    };
    Ok(Route {
        experts,
        sorted: Some(sorted),
    })
}

/// `x [t, k | 1, m], w [e, n, m] -> [t, k, n]`
pub fn expert_matmul(mlx: &Mlx, x: &Array, weights: &Array, route: &Route) -> Result<Array> {
    let (&[tokens, slots, inner], &[_, columns, _], &[_, chosen]) =
        (x.shape(), weights.shape(), route.experts.shape())
    else {
        return Err(Error::Unsupported("experts take rank 3".into()));
    };
    let weights = mlx.transpose(weights, &[0, 2, 1])?;
    let result = match &route.sorted {
        None => {
            let rows = mlx.reshape(x, &[tokens, slots, 1, inner])?;
            mlx.gather_matmul(&rows, &weights, &route.experts, false)?
        }
        Some(sorted) => {
            let flat = mlx.reshape(x, &[tokens * slots, inner])?;
            let places = if slots == chosen {
                &sorted.order
            } else {
                &sorted.tokens
            };
            let rows = mlx.gather_rows(&flat, places)?;
            let product = mlx.gather_matmul(&rows, &weights, &sorted.experts, true)?;
            mlx.take(&product, &sorted.inverse, 0)?
        }
    };
    Ok(mlx.reshape(&result, &[tokens, chosen, columns])?)
}
