// SPDX-License-Identifier: Apache-2.0
//! The checkpoint's tokenizer, and the ids that end a text.

use serde_json::Value;
use std::collections::BTreeSet;
use std::error::Error;
use std::path::{Path, PathBuf};
use tokenizers::Tokenizer;

/// `tokenizer.json` and what stands beside it.
pub struct Texts {
    folder: PathBuf,
    tokenizer: Tokenizer,
}

/// A JSON file; null where there is none.
pub fn read_json(path: &Path) -> Result<Value, Box<dyn Error>> {
    if !path.exists() {
        return Ok(Value::Null);
    }
    let text = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", path.display()).into())
}

impl Texts {
    /// Reads `tokenizer.json`.
    pub fn open(folder: &Path) -> Result<Texts, Box<dyn Error>> {
        let path = folder.join("tokenizer.json");
        let tokenizer = Tokenizer::from_file(&path)
            .map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
        Ok(Texts {
            folder: folder.to_owned(),
            tokenizer,
        })
    }

    /// Token ids, with the special tokens that begin a text where `special` is true.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<i64>, Box<dyn Error>> {
        let encoding = self
            .tokenizer
            .encode(text, special)
            .map_err(|error| format!("the prompt cannot be tokenized: {error}"))?;
        Ok(encoding.get_ids().iter().copied().map(i64::from).collect())
    }

    /// The text without special tokens.
    pub fn decode(&self, tokens: &[i64]) -> Result<String, Box<dyn Error>> {
        let ids: Vec<u32> = tokens
            .iter()
            .map(|token| u32::try_from(*token))
            .collect::<Result<_, _>>()?;
        let text = self.tokenizer.decode(&ids, true);
        text.map_err(|error| format!("the tokens {ids:?} cannot be decoded: {error}").into())
    }

    /// Ids of `generation_config.json` that end a text.
    pub fn eos_token_ids(&self) -> Result<BTreeSet<i64>, Box<dyn Error>> {
        let path = self.folder.join("generation_config.json");
        let config = read_json(&path)?;
        let stated = match &config["eos_token_id"] {
            Value::Array(ids) => ids.clone(),
            Value::Null => Vec::new(),
            id => vec![id.clone()],
        };
        let ids = stated.iter().map(|id| {
            id.as_i64()
                .ok_or_else(|| format!("{}: eos_token_id is {id}", path.display()).into())
        });
        ids.collect()
    }
}
