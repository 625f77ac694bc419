//! The lines of `metrics.jsonl`: one per optimiser step, one per epoch.

use crate::checkpoint::Progress;
use crate::config::Protocol;
use crate::evaluate::Quick;
use mm_balance::StepReport;
use mm_core::Modal;
use serde_json::{Map, Value, json};

pub(crate) fn part(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::ValidationSelect => "val",
        Protocol::OgmTestSelect => "test",
    }
}

pub(crate) fn step_line(
    at: &Progress,
    report: &StepReport,
    rate: f64,
    names: &[String],
) -> Map<String, Value> {
    let mut line = Map::new();
    line.insert("kind".into(), "step".into());
    line.insert("epoch".into(), at.epoch.into());
    line.insert("step".into(), at.step.into());
    line.insert("rows".into(), report.rows.into());
    line.insert("lr".into(), rate.into());
    line.insert("loss".into(), json!(report.loss));
    for (name, m, value) in &report.observations {
        let key = match m {
            Some(m) => format!("{name}.{}", names[*m]),
            None => (*name).to_owned(),
        };
        line.insert(key, json!(value));
    }
    line
}

pub(crate) fn epoch_line(
    at: &Progress,
    train_loss: f64,
    quick: &Quick,
    protocol: Protocol,
    names: &[String],
) -> Map<String, Value> {
    let part = part(protocol);
    let mut line = Map::new();
    line.insert("kind".into(), "epoch".into());
    line.insert("epoch".into(), at.epoch.into());
    line.insert("step".into(), at.step.into());
    line.insert("train_loss".into(), json!(train_loss));
    line.insert(format!("{part}_loss"), json!(quick.loss));
    line.insert(format!("{part}_accuracy"), json!(quick.accuracy));
    for (m, accuracy) in quick.unimodal.as_ref().map(Modal::values).unwrap_or_default().iter().enumerate() {
        line.insert(format!("{part}_accuracy.{}", names[m]), json!(accuracy));
    }
    line
}
