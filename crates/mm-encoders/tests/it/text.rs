//! Token ids are those of transformers.

use candle_core::{DType, Device};
use mm_core::{Encoder, Mode, ParamStore};
use mm_encoders::text::Tokenizer;
use mm_encoders::{Bert, BertConfig};

/// A WordPiece tokenizer of nine words, as `BertTokenizerFast(vocab).save_pretrained` writes it.
fn folder() -> tempfile::TempDir {
    let words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "dog", "bark", "##s", "."];
    let vocab: serde_json::Map<String, serde_json::Value> =
        words.iter().enumerate().map(|(id, word)| ((*word).to_owned(), id.into())).collect();
    let special = |id: u32, content: &str| {
        serde_json::json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                            "normalized": false, "special": true })
    };
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "[PAD]"), special(1, "[UNK]"), special(2, "[CLS]"), special(3, "[SEP]")],
        "normalizer": { "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                        "strip_accents": null, "lowercase": true },
        "pre_tokenizer": { "type": "BertPreTokenizer" },
        "post_processor": { "type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2] },
        "decoder": null,
        "model": { "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                   "max_input_chars_per_word": 100, "vocab": vocab },
    });
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
    folder
}

#[test]
fn texts_become_the_ids_of_the_vocabulary() {
    let folder = folder();
    let tokenizer = Tokenizer::open(folder.path(), 6).unwrap();
    let tokens =
        tokenizer.encode(&["The dog barks.", "cat", "the the the the the the"], &Device::Cpu).unwrap();
    // transformers 5.23: BertTokenizerFast of this vocabulary, padding=True, truncation=True, max_length=6.
    let ids = [[2u32, 4, 5, 6, 7, 3], [2, 1, 3, 0, 0, 0], [2, 4, 4, 4, 4, 3]];
    assert_eq!(tokens.ids.to_vec2::<u32>().unwrap(), ids);
    assert_eq!(tokens.lengths, [6, 3, 6]);

    let mut store = ParamStore::new(0, DType::F32, &Device::Cpu);
    let config =
        BertConfig { vocab_size: 9, dim: 8, layers: 1, heads: 2, feed_forward: 8, ..BertConfig::default() };
    let encoder: Bert = config.build(store.root()).unwrap();
    let padded = encoder.forward_padded(&tokens.ids, &tokens.lengths, Mode::Eval).unwrap();
    let alone = tokenizer.encode(&["cat"], &Device::Cpu).unwrap();
    let alone = encoder.forward_padded(&alone.ids, &alone.lengths, Mode::Eval).unwrap();
    let (a, b) =
        (padded.get(1).unwrap().to_vec1::<f32>().unwrap(), alone.get(0).unwrap().to_vec1::<f32>().unwrap());
    assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-6), "{a:?} {b:?}");
}

#[test]
fn files_that_are_no_tokenizers_are_named() {
    let folder = folder();
    let says = |path: &std::path::Path, most: usize| Tokenizer::open(path, most).unwrap_err().to_string();
    assert!(says(&folder.path().join("none.json"), 8).contains("there is no such file"));
    assert!(says(folder.path(), 1).starts_with("max_tokens = 1"));
    std::fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    assert!(says(folder.path(), 8).contains("is no tokenizer"));
    assert!(Tokenizer::open(self::folder().path(), 8).unwrap().encode(&[], &Device::Cpu).is_err());
}
