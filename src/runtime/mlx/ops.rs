// SPDX-License-Identifier: Apache-2.0
//! Operations that the runtime uses, named as in MLX. Each adds one lazy node.

use super::stream::Vector;
use super::{Array, Mlx, MlxResult, dtype, dtype_code};
use lowering::ir::DType;
use std::ffi::c_int;

macro_rules! unary {
    ($($name:ident => $function:ident,)*) => {
        /// Pointwise functions of one operand.
        impl Mlx {
            $(
                #[doc = concat!("`mx.", stringify!($name), "(x)`")]
                pub fn $name(&self, x: &Array) -> MlxResult<Array> {
                    // SAFETY: a live array and the stream of `self`.
                    self.make(|out, stream| unsafe { mlx_sys::$function(out, x.as_ptr(), stream) })
                }
            )*
        }
    };
}

macro_rules! binary {
    ($($name:ident => $function:ident,)*) => {
        /// Functions of two operands.
        impl Mlx {
            $(
                #[doc = concat!("`mx.", stringify!($name), "(x, y)`")]
                pub fn $name(&self, x: &Array, y: &Array) -> MlxResult<Array> {
                    // SAFETY: live arrays and the stream of `self`.
                    self.make(|out, stream| unsafe {
                        mlx_sys::$function(out, x.as_ptr(), y.as_ptr(), stream)
                    })
                }
            )*
        }
    };
}

macro_rules! reduction {
    ($($name:ident => $function:ident,)*) => {
        /// Reductions over axes.
        impl Mlx {
            $(
                #[doc = concat!("`mx.", stringify!($name), "(x, axes, keepdims)`")]
                pub fn $name(&self, x: &Array, axes: &[i32], keepdims: bool) -> MlxResult<Array> {
                    // SAFETY: a live array, a slice with its length, and the stream of `self`.
                    self.make(|out, stream| unsafe {
                        mlx_sys::$function(
                            out, x.as_ptr(), axes.as_ptr(), axes.len(), keepdims, stream,
                        )
                    })
                }
            )*
        }
    };
}

unary! {
    negative => mlx_negative,
    abs => mlx_abs,
    sign => mlx_sign,
    square => mlx_square,
    sqrt => mlx_sqrt,
    rsqrt => mlx_rsqrt,
    reciprocal => mlx_reciprocal,
    exp => mlx_exp,
    expm1 => mlx_expm1,
    log => mlx_log,
    log1p => mlx_log1p,
    log2 => mlx_log2,
    log10 => mlx_log10,
    sin => mlx_sin,
    cos => mlx_cos,
    tan => mlx_tan,
    sinh => mlx_sinh,
    cosh => mlx_cosh,
    tanh => mlx_tanh,
    arcsin => mlx_arcsin,
    arccos => mlx_arccos,
    arctan => mlx_arctan,
    arcsinh => mlx_arcsinh,
    arccosh => mlx_arccosh,
    arctanh => mlx_arctanh,
    erf => mlx_erf,
    erfinv => mlx_erfinv,
    floor => mlx_floor,
    ceil => mlx_ceil,
    sigmoid => mlx_sigmoid,
    logical_not => mlx_logical_not,
    bitwise_invert => mlx_bitwise_invert,
    isnan => mlx_isnan,
    isinf => mlx_isinf,
}

binary! {
    add => mlx_add,
    subtract => mlx_subtract,
    multiply => mlx_multiply,
    divide => mlx_divide,
    floor_divide => mlx_floor_divide,
    remainder => mlx_remainder,
    power => mlx_power,
    maximum => mlx_maximum,
    minimum => mlx_minimum,
    equal => mlx_equal,
    not_equal => mlx_not_equal,
    less => mlx_less,
    less_equal => mlx_less_equal,
    greater => mlx_greater,
    greater_equal => mlx_greater_equal,
    logical_and => mlx_logical_and,
    logical_or => mlx_logical_or,
    bitwise_and => mlx_bitwise_and,
    bitwise_or => mlx_bitwise_or,
    bitwise_xor => mlx_bitwise_xor,
    left_shift => mlx_left_shift,
    right_shift => mlx_right_shift,
    arctan2 => mlx_arctan2,
    logaddexp => mlx_logaddexp,
    matmul => mlx_matmul,
}

reduction! {
    sum => mlx_sum_axes,
    mean => mlx_mean_axes,
    max => mlx_max_axes,
    min => mlx_min_axes,
    prod => mlx_prod_axes,
    all => mlx_all_axes,
    any => mlx_any_axes,
}

/// The dtype of the operand.
const SAME: mlx_sys::mlx_optional_dtype = mlx_sys::mlx_optional_dtype {
    value: 0,
    has_value: false,
};

/// A possibly absent operand.
pub(super) fn optional(array: Option<&Array>) -> mlx_sys::mlx_array {
    array.map_or(
        mlx_sys::mlx_array {
            ctx: std::ptr::null_mut(),
        },
        Array::as_ptr,
    )
}

impl Mlx {
    /// `x` in the dtype; no node when it has it already.
    pub fn cast(&self, x: &Array, to: DType) -> MlxResult<Array> {
        // SAFETY: a live array and the stream of `self`.
        self.make(|out, stream| unsafe {
            mlx_sys::mlx_astype(out, x.as_ptr(), dtype_code(to), stream)
        })
    }

    /// `x`, cast unless it has the dtype.
    pub fn ensure(&self, x: Array, to: DType) -> MlxResult<Array> {
        if dtype(&x) == Some(to) {
            Ok(x)
        } else {
            self.cast(&x, to)
        }
    }

    /// Rounds to the nearest integer, halves to even.
    pub fn round(&self, x: &Array) -> MlxResult<Array> {
        // SAFETY: a live array and the stream of `self`.
        self.make(|out, stream| unsafe { mlx_sys::mlx_round(out, x.as_ptr(), 0, stream) })
    }

    /// `x where condition else y`
    pub fn select(&self, condition: &Array, x: &Array, y: &Array) -> MlxResult<Array> {
        // SAFETY: live arrays and the stream of `self`.
        self.make(|out, stream| unsafe {
            mlx_sys::mlx_where(out, condition.as_ptr(), x.as_ptr(), y.as_ptr(), stream)
        })
    }

    /// `scale * (x @ y) + c`
    pub fn addmm(&self, c: &Array, x: &Array, y: &Array, scale: f32) -> MlxResult<Array> {
        // SAFETY: live arrays and the stream of `self`.
        self.make(|out, stream| unsafe {
            mlx_sys::mlx_addmm(out, c.as_ptr(), x.as_ptr(), y.as_ptr(), scale, 1.0, stream)
        })
    }

    /// `x [.., m, k] @ y[indices] [.., k, n]`, where `indices` broadcasts with the batch of `x`.
    /// `sorted` promises that they rise, so that each matrix is read once.
    pub fn gather_matmul(
        &self,
        x: &Array,
        y: &Array,
        indices: &Array,
        sorted: bool,
    ) -> MlxResult<Array> {
        // SAFETY: live or absent arrays and the stream of `self`.
        self.make(|out, stream| unsafe {
            let (x, y, indices) = (x.as_ptr(), y.as_ptr(), indices.as_ptr());
            mlx_sys::mlx_gather_mm(out, x, y, optional(None), indices, sorted, stream)
        })
    }

    /// Index of the largest element along the axis, uint32.
    pub fn argmax(&self, x: &Array, axis: i32, keepdims: bool) -> MlxResult<Array> {
        // SAFETY: a live array and the stream of `self`.
        self.make(|out, stream| unsafe {
            mlx_sys::mlx_argmax_axis(out, x.as_ptr(), axis, keepdims, stream)
        })
    }

    /// Index of the smallest element along the axis, uint32.
    pub fn argmin(&self, x: &Array, axis: i32, keepdims: bool) -> MlxResult<Array> {
        // SAFETY: a live array and the stream of `self`.
        self.make(|out, stream| unsafe {
            mlx_sys::mlx_argmin_axis(out, x.as_ptr(), axis, keepdims, stream)
        })
    }

    /// Stable ascending order along the axis, uint32.
    pub fn argsort(&self, x: &Array, axis: i32) -> MlxResult<Array> {
        // SAFETY: a live array and the stream of `self`.
        self.make(|out, stream| unsafe { mlx_sys::mlx_argsort_axis(out, x.as_ptr(), axis, stream) })
    }

    /// An order along the axis that puts the `count` smallest first, uint32.
    pub fn argpartition(&self, x: &Array, count: i32, axis: i32) -> MlxResult<Array> {
        // SAFETY: a live array and the stream of `self`.
        self.make(|out, stream| unsafe {
            mlx_sys::mlx_argpartition_axis(out, x.as_ptr(), count - 1, axis, stream)
        })
    }

    /// Running sum along the axis, the element itself included.
    pub fn cumsum(&self, x: &Array, axis: i32) -> MlxResult<Array> {
        // SAFETY: a live array and the stream of `self`.
        self.make(|out, stream| unsafe {
            mlx_sys::mlx_cumsum_axis(out, x.as_ptr(), axis, false, true, SAME, stream)
        })
    }

    /// Running product along the axis, the element itself included.
    pub fn cumprod(&self, x: &Array, axis: i32) -> MlxResult<Array> {
        // SAFETY: a live array and the stream of `self`.
        self.make(|out, stream| unsafe {
            mlx_sys::mlx_cumprod_axis(out, x.as_ptr(), axis, false, true, SAME, stream)
        })
    }

    /// Running maximum along the axis, the element itself included.
    pub fn cummax(&self, x: &Array, axis: i32) -> MlxResult<Array> {
        // SAFETY: a live array and the stream of `self`.
        self.make(|out, stream| unsafe {
            mlx_sys::mlx_cummax_axis(out, x.as_ptr(), axis, false, true, stream)
        })
    }

    /// Running minimum along the axis, the element itself included.
    pub fn cummin(&self, x: &Array, axis: i32) -> MlxResult<Array> {
        // SAFETY: a live array and the stream of `self`.
        self.make(|out, stream| unsafe {
            mlx_sys::mlx_cummin_axis(out, x.as_ptr(), axis, false, true, stream)
        })
    }

    /// Softmax along the axis, computed in float32.
    pub fn softmax(&self, x: &Array, axis: i32) -> MlxResult<Array> {
        // SAFETY: a live array and the stream of `self`.
        self.make(|out, stream| unsafe {
            mlx_sys::mlx_softmax_axis(out, x.as_ptr(), axis, true, stream)
        })
    }

    /// `mx.fast.layer_norm`: normalises in float32.
    pub fn layer_norm(
        &self,
        x: &Array,
        weight: Option<&Array>,
        bias: Option<&Array>,
        eps: f64,
    ) -> MlxResult<Array> {
        if let Some(found) = self.stand_in_like("LayerNorm", &[Some(x), weight, bias], x.shape())? {
            return Ok(found);
        }
        // SAFETY: live or absent arrays and the stream of `self`.
        self.make(|out, stream| unsafe {
            let (weight, bias) = (optional(weight), optional(bias));
            mlx_sys::mlx_fast_layer_norm(out, x.as_ptr(), weight, bias, eps as f32, stream)
        })
    }

    /// `mx.fast.scaled_dot_product_attention` of `[b, heads, l, d]` over `[b, kv_heads, s, d]`.
    /// The mask is boolean (true is seen) or added to the scores; `causal` is aligned lower right.
    pub fn attention(
        &self,
        [queries, keys, values]: [&Array; 3],
        scale: f32,
        causal: bool,
        mask: Option<&Array>,
        sinks: Option<&Array>,
    ) -> MlxResult<Array> {
        let operands = [Some(queries), Some(keys), Some(values), mask, sinks];
        if let Some(found) =
            self.stand_in_like("ScaledDotProductAttention", &operands, queries.shape())?
        {
            return Ok(found);
        }
        let mode = if causal {
            c"causal"
        } else if mask.is_some() {
            c"array"
        } else {
            c""
        };
        // SAFETY: live or absent arrays, a static string and the stream of `self`.
        self.make(|out, stream| unsafe {
            mlx_sys::mlx_fast_scaled_dot_product_attention(
                out,
                queries.as_ptr(),
                keys.as_ptr(),
                values.as_ptr(),
                scale,
                mode.as_ptr(),
                optional(mask),
                optional(sinks),
                false,
                stream,
            )
        })
    }

    /// Joins arrays along the axis.
    pub fn concatenate(&self, arrays: &[&Array], axis: i32) -> MlxResult<Array> {
        let vector = Vector::new(arrays.iter().copied());
        // SAFETY: the vector lives during the call.
        self.make(|out, stream| unsafe {
            mlx_sys::mlx_concatenate_axis(out, vector.0, axis as c_int, stream)
        })
    }
}
