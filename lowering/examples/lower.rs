// SPDX-License-Identifier: Apache-2.0
//! Lowers an FX document given as a file and prints the plan and its report.

use lowering::dump::{Format, Stage};
use lowering::lower::{Options, lower};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: lower FX_DOCUMENT")?;
    let lowered = lower(&std::fs::read(path)?, &Options::default())?;
    println!(
        "{}{}",
        lowered.dump(Stage::Plan, Format::Text)?,
        serde_json::to_string_pretty(&lowered.report)?
    );
    Ok(())
}
