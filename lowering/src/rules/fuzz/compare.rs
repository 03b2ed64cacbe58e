// SPDX-License-Identifier: Apache-2.0
//! Two results by a rule's numerics class.

use crate::interpret::{Data, Tensor, round_float, ulp};
use crate::rules::Numerics;

/// Units in the last place by which another order of a reduction may move a result.
const FEW: f64 = 4.0;

/// Units in the last place that a fused operator's own roundings may take: half a unit of its inner
/// result, such as a reciprocal root, is a whole one of the result just above a power of two; the
/// result's own rounding is another half.
const OWN: f64 = 1.5;

/// Bit for bit the same number; all NaNs are one.
fn same(a: f64, b: f64) -> bool {
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}

/// `Err` names the first element of `after` that the class does not allow.
///
/// `condition` says how far each exact element moves when the inputs move by one unit in the last
/// place of float32, in which both sides compute. Neither side can be held to less than that: what
/// remains of a cancellation is noise of either order of operations. It is asked for only where an
/// element would not pass without it.
pub fn compare(
    numerics: Numerics,
    before: &Tensor,
    after: &Tensor,
    exact: &Tensor,
    condition: impl Fn() -> Vec<f64>,
) -> Result<(), String> {
    if before.dtype != after.dtype || before.shape != after.shape {
        return Err(format!(
            "{}{:?} became {}{:?}",
            before.dtype, before.shape, after.dtype, after.shape
        ));
    }
    let dtype = before.dtype;
    match (&before.data, &after.data) {
        (Data::Int(a), Data::Int(b)) if a == b => return Ok(()),
        (Data::Int(a), Data::Int(b)) => return Err(format!("{a:?} became {b:?}")),
        _ => {}
    }
    let (before, after, exact) = (before.to_f64(), after.to_f64(), exact.to_f64());
    for (i, (old, new)) in before.iter().zip(&after).enumerate() {
        let truth = exact.get(i).copied().unwrap_or(f64::NAN);
        let allowed = same(*old, *new)
            || match numerics {
                Numerics::Exact => false,
                Numerics::SameRounding => (old - new).abs() <= FEW * ulp(dtype, *old),
                Numerics::Improves => {
                    let error = |value: f64| match (value - truth).abs() {
                        error if error.is_nan() => f64::INFINITY,
                        error => error,
                    };
                    // The larger of two neighbours of a power of two has the ulp of both.
                    let ulp = ulp(dtype, truth).max(ulp(dtype, *new));
                    let allowed = error(*old) + OWN * ulp;
                    same(*new, round_float(dtype, truth))
                        || new.is_finite()
                            && (error(*new) <= allowed
                                || condition()
                                    .get(i)
                                    .is_some_and(|moved| error(*new) <= allowed + moved))
                }
            };
        if !allowed {
            return Err(format!(
                "element {i}: {old:e} became {new:e}, exactly {truth:e}, which {numerics:?} does not allow"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::DType;

    fn compared(numerics: Numerics, old: f64, new: f64, truth: f64) -> bool {
        let one = |value| Tensor::floats(DType::Float32, vec![1], vec![value]);
        let exact = Tensor::floats(DType::Float64, vec![1], vec![truth]);
        compare(numerics, &one(old), &one(new), &exact, || vec![0.0]).is_ok()
    }

    #[test]
    fn what_a_cancellation_leaves_is_held_to_its_condition() {
        let one = |value| Tensor::floats(DType::Float32, vec![1], vec![value]);
        let exact = Tensor::floats(DType::Float64, vec![1], vec![1e-3]);
        let moved_by = |moved| {
            let condition = || vec![moved];
            compare(
                Numerics::Improves,
                &one(1e-3),
                &one(2e-3),
                &exact,
                condition,
            )
        };
        assert!(moved_by(1e-2).is_ok());
        assert!(moved_by(1e-4).is_err());
    }

    #[test]
    fn each_class_allows_what_it_says() {
        let step = f64::from(f32::EPSILON);
        use Numerics::*;
        assert!(!compared(Exact, 0.0, -0.0, 0.0));
        assert!(compared(Exact, f64::NAN, f64::NAN, 0.0));
        assert!(!compared(Exact, 1.0, 1.0 + step, 1.0));
        assert!(compared(SameRounding, 1.0, 1.0 + 2.0 * step, 1.0));
        assert!(!compared(SameRounding, 1.0, 1.0 + 9.0 * step, 1.0));
        assert!(compared(Improves, 1.0 + 9.0 * step, 1.0, 1.0));
        assert!(!compared(Improves, 1.0, 1.0 + 3.0 * step, 1.0));
        assert!(compared(Improves, f64::INFINITY, 1.0, 1.0));
        assert!(!compared(Improves, 1.0, f64::INFINITY, 1.0));
    }
}
