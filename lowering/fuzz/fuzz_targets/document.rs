// SPDX-License-Identifier: Apache-2.0
//! Any bytes as an FX document: lowered or refused, and what is lowered reads back as a plan.
//! `lowering/tests/data` is a corpus to start from.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lowering::lower::{Options, lower};
use lowering::plan::Plan;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(lowered) = lower(bytes, &Options::default()) {
        let bytes = lowered.plan.to_bytes().expect("a plan");
        Plan::from_bytes(&bytes).expect("a plan that reads back");
    }
});
