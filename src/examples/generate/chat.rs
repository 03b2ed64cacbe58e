// SPDX-License-Identifier: Apache-2.0
//! The checkpoint's chat template: Jinja, as Hugging Face's tokenizers write it.

use crate::text::read_json;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, context};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde_json::Value;
use std::error::Error;
use std::path::Path;

/// One message of the user as the prompt that asks for an answer.
pub fn render(folder: &Path, message: &str) -> Result<String, Box<dyn Error>> {
    let config = read_json(&folder.join("tokenizer_config.json"))?;
    let template = template(folder, &config)?;
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()?;
    environment.set_syntax(syntax);
    environment.set_unknown_method_callback(unknown_method_callback);
    environment.add_function("raise_exception", |text: String| {
        Err::<String, _>(minijinja::Error::new(ErrorKind::InvalidOperation, text))
    });
    environment.add_template("chat", &template)?;
    let messages = vec![context! { role => "user", content => message }];
    let rendered = environment.get_template("chat")?.render(context! {
        messages,
        add_generation_prompt => true,
        bos_token => special(&config["bos_token"]),
        eos_token => special(&config["eos_token"]),
        pad_token => special(&config["pad_token"]),
    });
    rendered.map_err(|error| format!("the chat template failed: {error:#}").into())
}

fn template(folder: &Path, config: &Value) -> Result<String, Box<dyn Error>> {
    let path = folder.join("chat_template.jinja");
    if path.exists() {
        return Ok(std::fs::read_to_string(path)?);
    }
    match &config["chat_template"] {
        Value::String(text) => Ok(text.clone()),
        // Several by name: the one for plain chat.
        Value::Array(named) => named
            .iter()
            .find(|entry| entry["name"] == "default")
            .and_then(|entry| entry["template"].as_str())
            .map(str::to_owned)
            .ok_or_else(|| "tokenizer_config.json has no default chat template".into()),
        _ => Err("the checkpoint has no chat template: leave out --chat".into()),
    }
}

/// A special token: a text, or an object that holds it.
fn special(token: &Value) -> String {
    let text = token.as_str().or_else(|| token["content"].as_str());
    text.unwrap_or_default().to_owned()
}
