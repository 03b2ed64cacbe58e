// SPDX-License-Identifier: Apache-2.0
//! Arrays whose memory may be written while a step in flight holds them.

use super::{Array, Mlx, MlxResult};
use std::ffi::c_int;

unsafe extern "C" {
    fn vllm_metal_shared(
        out: *mut mlx_sys::mlx_array,
        array: mlx_sys::mlx_array,
        stream: mlx_sys::mlx_stream,
    ) -> c_int;
}

impl Mlx {
    /// The array under another name. An operation that is its only user, and that MLX has write into
    /// its operand's memory, does so even where others hold `array`: all their reads must come
    /// first. `shared.cpp` says more.
    pub fn shared(&self, array: &Array) -> MlxResult<Array> {
        // SAFETY: a live array and stream; `out` is filled on success.
        self.make(|out, stream| unsafe { vllm_metal_shared(out, array.as_ptr(), stream) })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{data_pointer, int_array};
    use crate::runtime::testing::{cpu, floats, values};

    /// Writes a row of `cache`, shared or not, while its old values are held.
    fn address_after_a_write(shared: bool) -> (usize, usize, Vec<f64>) {
        let mlx = &cpu();
        let mut cache = floats(&[0.0; 6], &[3, 2]);
        let before = data_pointer(&cache).unwrap() as usize;
        let row = floats(&[7.0, 8.0], &[1, 1, 2]);
        let held = cache.clone();
        for slot in [1, 2] {
            if shared {
                cache = mlx.shared(&cache).unwrap();
            }
            let slots = int_array(&[slot], &[1]).unwrap();
            cache = mlx.scatter_rows(&cache, &slots, &row).unwrap();
            mlx.submit([&cache]).unwrap();
        }
        mlx.wait(&cache).unwrap();
        drop(held);
        let found = values(mlx, &cache);
        (before, data_pointer(&cache).unwrap() as usize, found)
    }

    #[test]
    fn what_is_shared_is_written_in_place() {
        let written = vec![0.0, 0.0, 7.0, 8.0, 7.0, 8.0];
        let (before, after, found) = address_after_a_write(true);
        assert_eq!((before, &found), (after, &written));
        let (before, after, found) = address_after_a_write(false);
        assert_ne!(before, after, "MLX copies what somebody holds");
        assert_eq!(found, written);
    }
}
