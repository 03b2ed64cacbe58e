// SPDX-License-Identifier: Apache-2.0
//! Strided copies between a checkpoint's tensors and a parameter, element types converted.

use super::FileTensor;
use half::{bf16, f16};
use lowering::ir::DType;
use serde::Deserialize;

/// A strided copy, or zeros where `source` is absent. Offsets and strides count elements.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Piece {
    pub source: Option<String>,
    pub shape: Vec<usize>,
    pub from: Strided,
    pub to: Strided,
}

/// Where the elements of a piece lie in row-major memory.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Strided {
    pub offset: usize,
    pub strides: Vec<usize>,
}

impl Strided {
    /// Index of the last element; `None` where the numbers do not fit together.
    fn last(&self, shape: &[usize]) -> Option<usize> {
        if self.strides.len() != shape.len() {
            return None;
        }
        let steps = shape.iter().zip(&self.strides);
        steps
            .map(|(size, stride)| size.checked_sub(1)?.checked_mul(*stride))
            .try_fold(self.offset, |total, step| total.checked_add(step?))
    }

    pub(super) fn is_row_major(&self, shape: &[usize]) -> bool {
        let mut expected = 1;
        shape.iter().zip(&self.strides).rev().all(|(size, stride)| {
            let fits = *size == 1 || *stride == expected;
            expected *= size;
            fits
        })
    }
}

/// Whether a piece lies inside of its source and of the parameter.
pub(super) fn check(piece: &Piece, source: Option<&FileTensor>, size: usize) -> Result<(), String> {
    if piece.shape.contains(&0) {
        return Err(format!("a piece of sizes {:?} is empty", piece.shape));
    }
    let inside = |place: &Strided, size: usize| place.last(&piece.shape).is_some_and(|l| l < size);
    if !inside(&piece.to, size) {
        return Err(format!("a piece lies outside of its {size} elements"));
    }
    let Some(source) = source else {
        return Ok(());
    };
    let available = source.nbytes / source.dtype.size();
    if inside(&piece.from, available) {
        Ok(())
    } else {
        let name = piece.source.as_deref().unwrap_or_default();
        Err(format!(
            "a piece lies outside of the {available} elements of {name:?}"
        ))
    }
}

/// Runs over the rows of a piece: first elements in the source and in the parameter, and the row's
/// length and strides.
fn rows(piece: &Piece, mut row: impl FnMut(usize, usize, usize, usize, usize)) {
    let Some((length, outer)) = piece.shape.split_last() else {
        return row(piece.from.offset, piece.to.offset, 1, 1, 1);
    };
    let mut index = vec![0; outer.len()];
    let (mut from, mut to) = (piece.from.offset, piece.to.offset);
    let inner = outer.len();
    loop {
        row(
            from,
            to,
            *length,
            piece.from.strides[inner],
            piece.to.strides[inner],
        );
        let mut axis = inner;
        loop {
            let Some(next) = axis.checked_sub(1) else {
                return;
            };
            axis = next;
            index[axis] += 1;
            from += piece.from.strides[axis];
            to += piece.to.strides[axis];
            if index[axis] < outer[axis] {
                break;
            }
            index[axis] = 0;
            from -= piece.from.strides[axis] * outer[axis];
            to -= piece.to.strides[axis] * outer[axis];
        }
    }
}

/// Fills a checked piece.
pub(super) fn zero(piece: &Piece, dtype: DType, target: &mut [u8]) {
    let width = dtype.size();
    // A piece of zeros has no place in a source.
    let piece = Piece {
        from: piece.to.clone(),
        ..piece.clone()
    };
    rows(&piece, |_, to, length, _, stride| {
        for element in 0..length {
            let first = (to + element * stride) * width;
            target[first..first + width].fill(0);
        }
    });
}

/// Copies a checked piece, rounding to nearest, ties to even, where the element types differ.
pub(super) fn copy(
    piece: &Piece,
    source: &FileTensor,
    dtype: DType,
    target: &mut [u8],
) -> Result<(), String> {
    let bytes = source.bytes();
    if source.dtype == dtype {
        let width = dtype.size();
        rows(piece, |from, to, length, from_stride, to_stride| {
            if (from_stride, to_stride) == (1, 1) {
                let (from, to, length) = (from * width, to * width, length * width);
                target[to..to + length].copy_from_slice(&bytes[from..from + length]);
                return;
            }
            for element in 0..length {
                let from = (from + element * from_stride) * width;
                let to = (to + element * to_stride) * width;
                target[to..to + width].copy_from_slice(&bytes[from..from + width]);
            }
        });
        return Ok(());
    }
    match source.dtype {
        DType::Float16 => read_as::<f16>(piece, bytes, dtype, target),
        DType::Bfloat16 => read_as::<bf16>(piece, bytes, dtype, target),
        DType::Float32 => read_as::<f32>(piece, bytes, dtype, target),
        DType::Float64 => read_as::<f64>(piece, bytes, dtype, target),
        other => Err(format!("a piece of {other} cannot become {dtype}")),
    }
}

fn read_as<S: Float>(
    piece: &Piece,
    from: &[u8],
    dtype: DType,
    to: &mut [u8],
) -> Result<(), String> {
    match dtype {
        DType::Float16 => convert::<S, f16>(piece, from, to),
        DType::Bfloat16 => convert::<S, bf16>(piece, from, to),
        DType::Float32 => convert::<S, f32>(piece, from, to),
        DType::Float64 => convert::<S, f64>(piece, from, to),
        other => return Err(format!("a piece of floats cannot become {other}")),
    }
    Ok(())
}

fn convert<S: Float, T: Float>(piece: &Piece, source: &[u8], target: &mut [u8]) {
    rows(piece, |from, to, length, from_stride, to_stride| {
        for element in 0..length {
            let from = (from + element * from_stride) * S::WIDTH;
            let to = (to + element * to_stride) * T::WIDTH;
            T::write(S::read(&source[from..]), &mut target[to..]);
        }
    });
}

/// An element type that converts to and from float64; every narrower one does so exactly.
trait Float {
    const WIDTH: usize;
    fn read(bytes: &[u8]) -> f64;
    fn write(value: f64, bytes: &mut [u8]);
}

macro_rules! float {
    ($type:ty, $width:literal, $to:expr, $from:expr) => {
        impl Float for $type {
            const WIDTH: usize = $width;
            fn read(bytes: &[u8]) -> f64 {
                let mut word = [0; $width];
                word.copy_from_slice(&bytes[..$width]);
                $to(<$type>::from_le_bytes(word))
            }
            fn write(value: f64, bytes: &mut [u8]) {
                bytes[..$width].copy_from_slice(&$from(value).to_le_bytes());
            }
        }
    };
}

// Through float32, as PyTorch casts. `half`'s own from_f64 drops 32 bits of the mantissa before it
// rounds, and so takes what lies just above a tie for a tie.
float!(f16, 2, f16::to_f64, |value| f16::from_f32(value as f32));
float!(bf16, 2, bf16::to_f64, |value| bf16::from_f32(value as f32));
float!(f32, 4, f64::from, |value| value as f32);
float!(
    f64,
    8,
    std::convert::identity,
    std::convert::identity::<f64>
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_rounded_to_nearest_even() {
        let bytes: Vec<u8> = [1.0f32, 1.003_906_3, 1.003_906_4, 1.011_718_8, -0.0]
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let piece = Piece {
            source: None,
            shape: vec![5],
            from: Strided {
                offset: 0,
                strides: vec![1],
            },
            to: Strided {
                offset: 0,
                strides: vec![1],
            },
        };
        let mut target = vec![0; 10];
        convert::<f32, bf16>(&piece, &bytes, &mut target);
        let words: Vec<u16> = target
            .as_chunks::<2>()
            .0
            .iter()
            .map(|w| u16::from_le_bytes(*w))
            .collect();
        assert_eq!(words, [0x3f80, 0x3f80, 0x3f81, 0x3f82, 0x8000]);
    }
}
