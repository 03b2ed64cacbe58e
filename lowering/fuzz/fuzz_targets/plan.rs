// SPDX-License-Identifier: Apache-2.0
//! Any bytes as a plan: read or refused, and what is read is written as it was read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lowering::plan::Plan;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(plan) = Plan::from_bytes(bytes) {
        let bytes = plan.to_bytes().expect("a plan");
        assert!(Plan::from_bytes(&bytes).expect("a plan that reads back") == plan);
    }
});
