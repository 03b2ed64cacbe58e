// SPDX-License-Identifier: Apache-2.0
//! Instructions of a region that one Metal kernel computes together. They stay in the plan: they are
//! the reference, and what runs without Metal or where the kernel's self-check failed.
//!
//! There is one such kernel: from a merged projection it makes the queries, and the keys and values
//! side by side as the cache holds them, normalised (or not) and rotated.
//!
//! ```text
//! q, k, v = split(qkv);  q, k = rope(norm(q), norm(k));  rows = concat(k, v)
//! ```

use super::{Instruction, KernelChoice, Register};
use crate::ir::{DType, Dim, Float, Op, RopeStyle, TensorType};
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

/// The kernel's name.
const QK_NORM_ROPE: &str = "qk_norm_rope";

/// A kernel that stands for several instructions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fusion {
    pub kernel: KernelChoice,
    /// Positions in the region, rising. The kernel runs in the place of the last.
    pub instructions: Vec<u32>,
    /// The projection, cosines and sines; where queries and keys are normalised, the weights of both.
    pub inputs: Vec<Register>,
    /// Of the norms; 0 where there are none.
    pub eps: Float,
    /// Queries, and the rows of the cache.
    pub outputs: Vec<Register>,
}

impl Fusion {
    /// Whether it computes the instruction at that position.
    pub fn covers(&self, position: usize) -> bool {
        self.instructions.contains(&(position as u32))
    }

    /// Where the kernel runs.
    pub fn place(&self) -> Option<usize> {
        self.instructions.last().map(|position| *position as usize)
    }

    /// `Err` says what is wrong with one that came from outside, in a region of such instructions.
    pub(super) fn check(&self, instructions: &[Instruction]) -> Result<(), String> {
        let rising = self.instructions.windows(2).all(|pair| pair[0] < pair[1]);
        let inside = |position: &u32| (*position as usize) < instructions.len();
        if !rising || !self.instructions.iter().all(inside) || self.instructions.is_empty() {
            return Err(format!("instructions {:?} of a fusion", self.instructions));
        }
        let written = |register: &Register| {
            let mut covered = self.instructions.iter();
            covered.any(|at| instructions[*at as usize].outputs.contains(register))
        };
        let has_norm = self.kernel.sizes.get("has_norm") == Some(&1);
        let operands = if has_norm { 5 } else { 3 };
        let fits = self.kernel.name == QK_NORM_ROPE
            && self.kernel.launch(&[("num_tokens", 1)]).is_ok()
            && self.inputs.len() == operands
            && self.outputs.len() == 2
            && self.outputs.iter().all(written);
        match fits {
            true => Ok(()),
            false => Err(format!(
                "kernel {:?} does not compute instructions {:?}",
                self.kernel.name, self.instructions
            )),
        }
    }
}

/// Instructions with the types of all registers.
pub struct Flat<'a> {
    pub instructions: &'a [Instruction],
    /// Registers that the region gives.
    pub outputs: &'a [Register],
    pub types: &'a FxHashMap<Register, TensorType>,
}

/// A part of the projection: where it is cut out.
struct Part {
    source: Register,
    start: i64,
    stop: i64,
    heads: i64,
    size: i64,
}

/// The norm of a part.
#[derive(Clone, Copy)]
struct Norm {
    eps: Float,
    weight: Register,
}

impl Flat<'_> {
    fn writer(&self, register: Register) -> Option<(usize, &Instruction)> {
        let mut all = self.instructions.iter().enumerate();
        all.find(|(_, instruction)| instruction.outputs.contains(&register))
    }

    /// `reshape(slice(source))` to `[t, heads, size]`.
    fn part(&self, register: Register, covered: &mut Vec<usize>) -> Option<Part> {
        let (at, reshape) = self.writer(register)?;
        let (Op::Reshape { .. }, [inner]) = (&reshape.op, reshape.inputs.as_slice()) else {
            return None;
        };
        let (cut_at, cut) = self.writer(*inner)?;
        let Op::Slice {
            axis: 1,
            start: Dim::Fixed(start),
            stop: Dim::Fixed(stop),
            step: 1,
            ..
        } = &cut.op
        else {
            return None;
        };
        let [tokens, heads, size] = reshape.types.first()?.shape.as_slice() else {
            return None;
        };
        let source = *cut.inputs.first()?;
        if self.types.get(&source)?.shape.first() != Some(tokens) {
            return None;
        }
        covered.extend([at, cut_at]);
        Some(Part {
            source,
            start: *start,
            stop: *stop,
            heads: heads.fixed()?,
            size: size.fixed()?,
        })
    }

    /// A part that is normalised by head, or not.
    fn normal(&self, register: Register, covered: &mut Vec<usize>) -> Option<(Part, Option<Norm>)> {
        let (at, norm) = self.writer(register)?;
        match (&norm.op, norm.inputs.as_slice()) {
            (Op::RmsNorm { eps }, [x, weight]) => {
                covered.push(at);
                let norm = Norm {
                    eps: *eps,
                    weight: *weight,
                };
                Some((self.part(*x, covered)?, Some(norm)))
            }
            _ => Some((self.part(register, covered)?, None)),
        }
    }

    /// The fusion that ends in the concatenation at that position.
    fn ending_at(&self, position: usize) -> Option<Fusion> {
        let joined = self.instructions.get(position)?;
        let (Op::Concat { axis: 2 }, [key, value]) = (&joined.op, joined.inputs.as_slice()) else {
            return None;
        };
        let (rope_at, rope) = self.writer(*key)?;
        let Op::Rope { style, rotary_dim } = &rope.op else {
            return None;
        };
        let ([cos, sin, first, second], [_, _]) = (rope.inputs.as_slice(), rope.outputs.as_slice())
        else {
            return None;
        };
        let is_second = rope.outputs.get(1) == Some(key);
        let (to_query, to_key) = if is_second {
            (first, second)
        } else {
            (second, first)
        };
        let query = *rope.outputs.get(usize::from(!is_second))?;
        let mut covered = vec![position, rope_at];
        let (q, q_norm) = self.normal(*to_query, &mut covered)?;
        let (k, k_norm) = self.normal(*to_key, &mut covered)?;
        let v = self.part(*value, &mut covered)?;
        covered.sort_unstable();
        covered.dedup();

        let ends = [q.heads * q.size, k.heads * k.size, v.heads * v.size];
        let places = [(&q, 0), (&k, ends[0]), (&v, ends[0] + ends[1])];
        let in_place = |((part, start), length): (&(&Part, i64), &i64)| {
            part.source == q.source && part.start == *start && part.stop == start + length
        };
        let source = self.types.get(&q.source)?;
        let whole = source.shape.get(1)?.fixed()? == ends.iter().sum::<i64>();
        if !whole
            || !places.iter().zip(&ends).all(in_place)
            || k.heads != v.heads
            || q.size != k.size
        {
            return None;
        }
        let dtype = source.dtype;
        let (norms, eps, weight_dtype) = match (q_norm, k_norm) {
            (None, None) => (vec![], Float::new(0.0), dtype),
            (Some(q), Some(k)) if q.eps == k.eps => {
                let of_query = self.types.get(&q.weight)?.dtype;
                if self.types.get(&k.weight)?.dtype != of_query {
                    return None;
                }
                (vec![q.weight, k.weight], q.eps, of_query)
            }
            _ => return None,
        };
        let table = self.types.get(cos)?;
        let same_types = self.types.get(sin)? == table;
        let all_same = [&rope.types, &joined.types].into_iter().flatten();
        if !same_types || table.rank() != 2 || !all_same.clone().all(|of| of.dtype == dtype) {
            return None;
        }
        let sizes = [
            ("num_heads", q.heads),
            ("num_kv_heads", k.heads),
            ("head_size", q.size),
            ("head_size_v", v.size),
            ("rotary_dim", *rotary_dim),
            ("style", number(*style)?),
            ("angles", table.shape.get(1)?.fixed()?),
            ("has_norm", i64::from(!norms.is_empty())),
        ];
        let dtypes = [("T", dtype), ("W", weight_dtype), ("C", table.dtype)];
        if !narrow_or_same(&dtypes) {
            return None;
        }
        let kernel = KernelChoice::new(QK_NORM_ROPE, &sizes, &dtypes);
        kernel.launch(&[("num_tokens", 1)]).ok()?;
        let mut inputs = vec![q.source, *cos, *sin];
        inputs.extend(norms);
        let fusion = Fusion {
            kernel,
            instructions: covered.iter().map(|at| *at as u32).collect(),
            inputs,
            eps,
            outputs: vec![query, *joined.outputs.first()?],
        };
        self.stands_alone(&fusion).then_some(fusion)
    }

    /// Whether nothing but the results is read elsewhere, and nothing reads them before they are there.
    fn stands_alone(&self, fusion: &Fusion) -> bool {
        let Some(place) = fusion.place() else {
            return false;
        };
        let read = |register: &Register, from: usize| {
            let mut others = self.instructions.iter().enumerate().skip(from);
            others.any(|(at, other)| !fusion.covers(at) && other.inputs.contains(register))
        };
        let covered = fusion.instructions.iter();
        let written = covered.flat_map(|at| &self.instructions[*at as usize].outputs);
        let inner_hidden = written
            .filter(|register| !fusion.outputs.contains(register))
            .all(|register| !read(register, 0) && !self.outputs.contains(register));
        let outputs_late = fusion.outputs.iter().all(|register| {
            let before = &self.instructions[..place];
            let mut others = before.iter().enumerate();
            !others.any(|(at, other)| !fusion.covers(at) && other.inputs.contains(register))
        });
        // An input must not be dropped by another instruction before the kernel reads it.
        let inputs_live = fusion.inputs.iter().all(|register| {
            let mut before = self.instructions[..place].iter().enumerate();
            !before.any(|(at, other)| !fusion.covers(at) && other.release.contains(register))
        });
        inner_hidden && outputs_late && inputs_live
    }
}

/// The kernel's number of a style.
fn number(style: RopeStyle) -> Option<i64> {
    match style {
        RopeStyle::Neox => Some(0),
        RopeStyle::Gptj => Some(1),
        RopeStyle::RotateHalf => Some(2),
        RopeStyle::RotatePairs => None,
    }
}

/// Weights and tables are of the projection's dtype or float32.
fn narrow_or_same([(_, own), others @ ..]: &[(&str, DType); 3]) -> bool {
    let mut others = others.iter();
    others.all(|(_, other)| other == own || *other == DType::Float32)
}

/// All fusions of a region.
pub fn find(flat: &Flat) -> Vec<Fusion> {
    (0..flat.instructions.len())
        .filter_map(|position| flat.ending_at(position))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lower::{Options, lower};

    /// A region of Qwen3 that ends in a projection, and what its registers hold.
    struct Region {
        instructions: Vec<Instruction>,
        outputs: Vec<Register>,
        types: FxHashMap<Register, TensorType>,
    }

    impl Region {
        fn new() -> Region {
            let document = include_bytes!("../../tests/data/qwen3.bf16.whole.json");
            let plan = lower(document, &Options::default()).unwrap().plan;
            let mut regions = plan.graphs[0].regions.iter();
            let region = regions.find(|region| !region.fusions.is_empty()).unwrap();
            let fusion = &region.fusions[0];
            let mut types = FxHashMap::default();
            for instruction in &region.instructions {
                let both = instruction.outputs.iter().zip(&instruction.types);
                types.extend(both.map(|(register, of)| (*register, of.clone())));
            }
            // What the region is given.
            let size = fusion.kernel.sizes["head_size"];
            let norm = TensorType {
                dtype: DType::Bfloat16,
                shape: vec![size.into()],
            };
            let table = TensorType {
                dtype: DType::Bfloat16,
                shape: vec![Dim::symbol(0), (size / 2).into()],
            };
            for (position, register) in fusion.inputs.iter().enumerate().skip(1) {
                let given = if position < 3 { &table } else { &norm };
                types.entry(*register).or_insert_with(|| given.clone());
            }
            Region {
                instructions: region.instructions.clone(),
                outputs: region.outputs.clone(),
                types,
            }
        }

        fn found(&self) -> Vec<Fusion> {
            find(&Flat {
                instructions: &self.instructions,
                outputs: &self.outputs,
                types: &self.types,
            })
        }

        fn positions(&self, is: fn(&Op) -> bool) -> Vec<usize> {
            let all = self.instructions.iter().enumerate();
            let found = all.filter(|(_, instruction)| is(&instruction.op));
            found.map(|(position, _)| position).collect()
        }
    }

    #[test]
    fn a_projection_is_normalised_rotated_and_laid_out_by_one_kernel() {
        let region = Region::new();
        let [fusion] = &region.found()[..] else {
            panic!("one fusion expected");
        };
        assert_eq!(fusion.kernel.sizes["has_norm"], 1);
        assert_eq!(fusion.kernel.sizes["num_heads"], 4);
        assert_eq!(fusion.inputs.len(), 5);
        assert_eq!(fusion.check(&region.instructions), Ok(()));
        // Three cuts and their shapes, two norms, the rotation and the rows.
        assert_eq!(fusion.instructions.len(), 10);
        let readers = region.positions(|op| matches!(op, Op::Concat { .. }));
        assert_eq!(fusion.place(), Some(readers[0]));
    }

    #[test]
    fn what_the_kernel_would_compute_otherwise_stays_apart() {
        let is_norm = |op: &Op| matches!(op, Op::RmsNorm { .. });
        let is_slice = |op: &Op| matches!(op, Op::Slice { axis: 1, .. });
        let refused = |change: &dyn Fn(&mut Region)| {
            let mut region = Region::new();
            change(&mut region);
            region.found().is_empty()
        };
        assert!(!refused(&|_| ()));
        // Norms of another eps; a norm of the queries alone.
        assert!(refused(&|region| {
            let last = *region.positions(is_norm).last().unwrap();
            region.instructions[last].op = Op::RmsNorm {
                eps: Float::new(0.5),
            };
        }));
        assert!(refused(&|region| {
            let last = *region.positions(is_norm).last().unwrap();
            region.instructions[last].inputs.truncate(1);
        }));
        // Parts that lie otherwise.
        assert!(refused(&|region| {
            let slices = region.positions(is_slice);
            let [.., key, value] = slices[..] else {
                panic!("three parts expected");
            };
            let op = region.instructions[key].op.clone();
            region.instructions[key].op = region.instructions[value].op.clone();
            region.instructions[value].op = op;
        }));
        // Keys that something else reads, too.
        assert!(refused(&|region| {
            let rope = region.positions(|op| matches!(op, Op::Rope { .. }))[0];
            region.outputs.push(region.instructions[rope].outputs[1]);
        }));
        // A style and a table that the kernel has not.
        assert!(refused(&|region| {
            let rope = region.positions(|op| matches!(op, Op::Rope { .. }))[0];
            region.instructions[rope].op = Op::Rope {
                style: RopeStyle::RotatePairs,
                rotary_dim: 16,
            };
        }));
        assert!(refused(&|region| {
            let rope = region.positions(|op| matches!(op, Op::Rope { .. }))[0];
            for register in &region.instructions[rope].inputs[..2] {
                region.types.get_mut(register).unwrap().dtype = DType::Float16;
            }
        }));
    }
}
