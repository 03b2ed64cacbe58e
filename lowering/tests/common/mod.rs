// SPDX-License-Identifier: Apache-2.0
//! Captured models of `tests/data`, and a source of choices.
#![allow(dead_code, reason = "each test program uses a part")]

use std::path::PathBuf;

/// FX documents of small models, as capture wrote them.
pub const MODELS: [&str; 4] = ["llama", "qwen3.bf16", "gemma3", "gptj"];

/// Bytes of a captured model.
pub fn document(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/{name}.json"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Cases of a property: `LOWERING_FUZZ_CASES`, 200 when unset.
pub fn cases() -> u32 {
    let given = std::env::var("LOWERING_FUZZ_CASES").ok();
    given.and_then(|text| text.parse().ok()).unwrap_or(200)
}

/// SplitMix64: choices from a seed.
pub struct Choices(pub u64);

impl Choices {
    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `count`, 0 where there is none.
    pub fn below(&mut self, count: usize) -> usize {
        (self.bits() % count.max(1) as u64) as usize
    }
}
