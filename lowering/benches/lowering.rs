// SPDX-License-Identifier: Apache-2.0
//! FX document to plan, nothing cached: `cargo bench -p lowering`.
//!
//! The documents have the depth of Llama-3-70B (80 layers) and at least that of Gemma-3-27B (62,
//! local and global windows in turn). Sizes of tensors don't matter to the lowering.

#[path = "../tests/common/mod.rs"]
mod common;

use common::{deepened, document};
use criterion::{Criterion, criterion_group, criterion_main};
use lowering::lower::{Options, lower};
use std::hint::black_box;

fn lowering(criterion: &mut Criterion) {
    let models = [
        (
            "llama, 80 layers",
            deepened(&document("llama.whole"), 1, 80),
        ),
        (
            "gemma-3, 62 layers",
            deepened(&document("gemma3.whole"), 2, 62),
        ),
    ];
    for (name, document) in &models {
        criterion.bench_function(name, |bencher| {
            bencher.iter(|| lower(black_box(document), &Options::default()).expect("a plan"));
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = lowering
}
criterion_main!(benches);
