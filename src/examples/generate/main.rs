// SPDX-License-Identifier: Apache-2.0
//! Generates text from a plan file, a checkpoint and its tokenizer: no Python, no PyTorch.
//!
//! ```sh
//! python -m vllm_metal.lower MODEL --output model.plan
//! cargo run --release --no-default-features --example generate -- \
//!     --plan model.plan --weights MODEL --prompt 'Return the'
//! ```

mod chat;
mod text;

use _core::generate::{Finish, Generator};
use _core::runtime::memory::Limits;
use _core::runtime::{Device, Runtime};
use clap::{Parser, ValueEnum};
use std::error::Error;
use std::io::{IsTerminal, Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use text::Texts;
use tracing::{Level, info};

/// Greedy text generation from a plan file.
#[derive(Parser)]
#[command(name = "generate")]
struct Options {
    /// Plan file, from `python -m vllm_metal.lower MODEL --output FILE.plan`
    #[arg(long)]
    plan: PathBuf,
    /// Folder with the safetensors files and tokenizer.json
    #[arg(long)]
    weights: PathBuf,
    /// Text to continue, or, with --chat, what the user says
    #[arg(long)]
    prompt: String,
    /// Tokens to generate at most
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Apply the chat template of the checkpoint to the prompt
    #[arg(long)]
    chat: bool,
    /// Where to compute; the GPU where there is one unless said
    #[arg(long)]
    device: Option<Place>,
    /// Generate the text so often, and give the figures of the last time: MLX compiles what a GPU
    /// runs at first use
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Generate so many texts of the prompt at once, to see what a batch takes; the first is given
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    /// Print loading time, tokens per second and peak memory to the standard error
    #[arg(long)]
    stats: bool,
    /// Print one JSON object instead of the text
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Place {
    Cpu,
    Gpu,
}

/// What was done, for people and for JSON.
struct Summary {
    prompt: Vec<i64>,
    tokens: Vec<i64>,
    text: String,
    finish: Finish,
    load: Duration,
    prefill: Duration,
    decode: Duration,
    peak_bytes: usize,
}

fn main() -> ExitCode {
    let options = Options::parse();
    tracing_subscriber::fmt()
        .with_max_level(if options.stats {
            Level::INFO
        } else {
            Level::WARN
        })
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .with_target(false)
        .init();
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    let texts = Texts::open(&options.weights)?;
    let prompt = if options.chat {
        texts.encode(&chat::render(&options.weights, &options.prompt)?, false)?
    } else {
        texts.encode(&options.prompt, true)?
    };
    let runtime = start(options.device)?;
    let begin = Instant::now();
    let mut generator = Generator::load(&runtime, &options.plan, &options.weights)?;
    generator.facts.eos_token_ids.extend(texts.eos_token_ids()?);
    let load = begin.elapsed();
    let report = generator.report();
    info!(
        "{} parameters: {} bytes mapped, {} copied, {} folded",
        report.parameters,
        report.mapped_bytes + report.borrowed_bytes,
        report.copied_bytes,
        report.folded_bytes
    );
    let mut once = |silent| {
        let prompt = prompt.clone();
        generate(
            &mut generator,
            &runtime,
            &texts,
            prompt,
            silent,
            options,
            load,
        )
    };
    for _ in 1..options.runs {
        once(true)?;
    }
    let summary = once(options.json)?;
    if options.json {
        println!("{}", summary.json());
    } else {
        println!();
    }
    if options.stats {
        summary.log();
    }
    Ok(())
}

/// The GPU is tried first, and used where MLX has one.
fn start(device: Option<Place>) -> Result<Runtime, Box<dyn Error>> {
    let limits = Limits::default;
    Ok(match device {
        Some(Place::Cpu) => Runtime::new(Device::Cpu, limits())?,
        Some(Place::Gpu) => Runtime::new(Device::Gpu, limits())?,
        None => {
            Runtime::new(Device::Gpu, limits()).or_else(|_| Runtime::new(Device::Cpu, limits()))?
        }
    })
}

fn generate(
    generator: &mut Generator,
    runtime: &Runtime,
    texts: &Texts,
    prompt: Vec<i64>,
    silent: bool,
    options: &Options,
    load: Duration,
) -> Result<Summary, Box<dyn Error>> {
    let limit = generator.facts.max_model_len;
    if prompt.len() >= limit {
        return Err(format!(
            "the prompt has {} tokens, and the plan was made for {limit} of prompt and text together",
            prompt.len()
        )
        .into());
    }
    let room = (options.max_tokens as usize).min(limit - prompt.len());
    generator.allocate(prompt.len() + room, options.batch as usize)?;
    runtime.reset_peak()?;
    let begin = Instant::now();
    let mut steps = vec![generator.prefill(&prompt)?];
    let mut token = steps[0].token()?;
    let prefill = begin.elapsed();
    let begin = Instant::now();
    let mut tokens = vec![token];
    let mut printed = 0;
    while !generator.ends(token) && tokens.len() < room {
        // One step is begun besides the one that is waited for.
        while steps.len() < room.min(tokens.len() + 2) {
            let position = prompt.len() + steps.len() - 1;
            steps.push(generator.decode(&steps[steps.len() - 1], position)?);
        }
        if !silent {
            printed += print(&texts.decode(&tokens)?, printed)?;
        }
        token = steps[tokens.len()].token()?;
        tokens.push(token);
    }
    let decode = begin.elapsed();
    let finish = if generator.ends(token) {
        Finish::Stop
    } else {
        Finish::Length
    };
    let text = texts.decode(&tokens)?;
    if !silent {
        stdout().write_all(&text.as_bytes()[printed..])?;
    }
    Ok(Summary {
        prompt,
        tokens,
        text,
        finish,
        load,
        prefill,
        decode,
        peak_bytes: runtime.memory()?.peak,
    })
}

/// Prints what is new of a text and complete: the last characters may be a part of one.
fn print(text: &str, printed: usize) -> std::io::Result<usize> {
    let complete = text.trim_end_matches(char::REPLACEMENT_CHARACTER);
    let new = complete.get(printed..).unwrap_or_default();
    let mut out = stdout().lock();
    out.write_all(new.as_bytes())?;
    out.flush()?;
    Ok(new.len())
}

fn per_second(count: usize, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64().max(1e-9)
}

impl Summary {
    fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "prompt_token_ids": self.prompt,
            "token_ids": self.tokens,
            "text": self.text,
            "finish_reason": self.finish.name(),
            "load_seconds": self.load.as_secs_f64(),
            "prefill_tokens_per_second": per_second(self.prompt.len(), self.prefill),
            "decode_tokens_per_second": per_second(self.tokens.len() - 1, self.decode),
            "peak_bytes": self.peak_bytes,
        })
    }

    fn log(&self) {
        info!("loaded in {:.2} s", self.load.as_secs_f64());
        info!(
            "prefill {} tokens, {:.1} a second",
            self.prompt.len(),
            per_second(self.prompt.len(), self.prefill)
        );
        info!(
            "decode {} tokens, {:.1} a second ({})",
            self.tokens.len(),
            per_second(self.tokens.len() - 1, self.decode),
            self.finish.name()
        );
        info!("peak memory {:.1} MB", self.peak_bytes as f64 / 1e6);
    }
}
