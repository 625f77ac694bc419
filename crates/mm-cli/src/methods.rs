//! `mm methods`.

use crate::output;
use serde_json::json;
use std::fmt::Write as _;
use std::process::ExitCode;

/// What each encoder is for.
const ENCODERS: [(&str, &str); 7] = [
    ("mlp", "vectors: linear layers with norm, activation and dropout"),
    ("resnet", "spectrograms, images and frames: depth 18, 34 or 50"),
    ("efficientnet", "images and frames: B0 to B4, frozen by default"),
    ("conformer", "sequences such as log-mel spectrograms, of different lengths too"),
    ("wav2vec2", "waveforms at 16 kHz, of different lengths too"),
    ("sequence", "sequences of features: bidirectional LSTM or transformer"),
    ("bert", "token ids: BERT and DistilBERT"),
];

/// Arguments of `mm methods`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let methods = mm_balance::catalogue();
    let fusions = mm_fusion::catalogue();
    if args.json {
        let methods: Vec<_> = methods
            .iter()
            .map(|e| {
                json!({"name": e.name, "summary": e.summary, "settings": e.settings, "acts_on": e.acts_on,
                       "paper": e.paper, "pinned_to": e.pinned_to})
            })
            .collect();
        let fusions: Vec<_> = fusions
            .iter()
            .map(|f| {
                json!({"name": f.name, "summary": f.summary, "unimodal": f.unimodal, "parameters": f.parameters})
            })
            .collect();
        let all = json!({"methods": methods, "fusions": fusions});
        output::print(&format!("{}\n", serde_json::to_string_pretty(&all)?))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = String::from("Methods (method.kind; join several with +, as in opm+ogm)\n\n");
    for e in methods {
        writeln!(text, "  {:<16} {}", e.name, e.summary)?;
        let more = [
            ("settings", e.settings),
            ("acts on", e.acts_on),
            ("paper", e.paper),
            ("pinned to", e.pinned_to),
        ];
        for (label, value) in more.iter().filter(|(_, value)| !value.is_empty()) {
            writeln!(text, "  {:<16} {label}: {value}", "")?;
        }
    }
    text.push_str("\nFusions (model.fusion.kind)\n\n");
    for f in fusions {
        writeln!(text, "  {:<16} {}", f.name, f.summary)?;
        writeln!(text, "  {:<16} unimodal predictions: {}", "", f.unimodal)?;
    }
    text.push_str("\nEncoders (model.encoder.kind, or model.encoders.MODALITY.kind for one modality)\n\n");
    for (name, summary) in ENCODERS {
        writeln!(text, "  {name:<16} {summary}")?;
    }
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}
