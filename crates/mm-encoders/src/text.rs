//! Text to token ids, by the `tokenizer.json` of a checkpoint (feature `text`).
//!
//! ```text
//! text -> normalise, split, look up -> [CLS] t_1 … t_n [SEP]  (cut to max_tokens)  -> filled with the padding token
//! ```
//!
//! Shapes: B texts become ids (B, N), N the longest of them, and their lengths; [`crate::Bert`] takes both.
//!
//! The work is done by the crate `tokenizers`, which is what transformers calls its fast tokenizers: the ids are
//! the same. Files without `tokenizer.json` (only `vocab.txt`) are not read; transformers writes the file with
//! `AutoTokenizer.from_pretrained(…).save_pretrained(folder)`.

use candle_core::{Device, Tensor};
use mm_core::{Checked, ConfigError};
use std::path::Path;
use tokenizers::{PaddingParams, TruncationParams};

/// A tokenizer with a largest number of tokens.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
}

/// Texts as token ids.
#[derive(Debug, Clone)]
pub struct Tokens {
    /// (B, N), u32, filled with the padding token.
    pub ids: Tensor,
    /// Tokens of each text.
    pub lengths: Vec<usize>,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, or the file of that name in a folder. Texts are cut to `max_tokens` (at least 2), the
    /// special tokens counted in.
    pub fn open(path: impl AsRef<Path>, max_tokens: usize) -> Checked<Self> {
        let path = path.as_ref();
        let file = if path.is_dir() { path.join("tokenizer.json") } else { path.to_owned() };
        let refuse = |rule: String| ConfigError::new("tokenizer", file.display(), rule);
        if max_tokens < 2 {
            return Err(ConfigError::new("max_tokens", max_tokens, "must be at least 2"));
        }
        if !file.is_file() {
            let rule = "there is no such file; save it with transformers' `AutoTokenizer.save_pretrained`";
            return Err(refuse(rule.to_owned()));
        }
        let mut inner = tokenizers::Tokenizer::from_file(&file)
            .map_err(|e| refuse(format!("is no tokenizer ({e}); save it again")))?;
        let pad = ["[PAD]", "<pad>"].into_iter().find_map(|t| Some((inner.token_to_id(t)?, t)));
        let (pad_id, pad_token) = pad.unwrap_or((0, "[PAD]"));
        inner.with_padding(Some(PaddingParams {
            pad_id,
            pad_token: pad_token.to_owned(),
            ..PaddingParams::default()
        }));
        let cut = TruncationParams { max_length: max_tokens, ..TruncationParams::default() };
        inner
            .with_truncation(Some(cut))
            .map_err(|e| refuse(format!("cannot cut texts to {max_tokens} tokens ({e})")))?;
        Ok(Self { inner })
    }

    /// The ids of some texts, at least one.
    pub fn encode(&self, texts: &[&str], device: &Device) -> candle_core::Result<Tokens> {
        if texts.is_empty() {
            candle_core::bail!("a tokenizer needs at least one text");
        }
        let made = self.inner.encode_batch(texts.to_vec(), true).map_err(candle_core::Error::wrap)?;
        let places = made.first().map_or(0, |text| text.get_ids().len());
        let ids: Vec<u32> = made.iter().flat_map(|text| text.get_ids().iter().copied()).collect();
        let real = |mask: &[u32]| mask.iter().filter(|&&m| m == 1).count();
        let lengths = made.iter().map(|text| real(text.get_attention_mask())).collect();
        Ok(Tokens { ids: Tensor::from_vec(ids, (texts.len(), places), device)?, lengths })
    }
}
