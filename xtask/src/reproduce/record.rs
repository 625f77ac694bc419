//! What a run leaves behind: `result.json` and `predictions.json`.

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// The version of `result.json` that is understood.
const FORMAT: u32 = 1;

/// The part of `result.json` that tables are made of. Any number may be missing.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Record {
    format: u32,
    /// The encoder's kind.
    #[serde(default)]
    pub(crate) encoder: Option<String>,
    /// How the model was selected.
    #[serde(default)]
    pub(crate) protocol: Option<String>,
    /// What it was trained and tested on.
    pub(crate) dataset: DatasetRecord,
    /// Metrics on the validation part.
    #[serde(default, deserialize_with = "numbers")]
    pub(crate) val: BTreeMap<String, f64>,
    /// Metrics on the test part.
    #[serde(deserialize_with = "numbers")]
    pub(crate) test: BTreeMap<String, f64>,
    /// Accuracies per modality: `head`, `split`, `probe`, `masked`.
    #[serde(default)]
    pub(crate) unimodal: BTreeMap<String, BTreeMap<String, Option<f64>>>,
    /// Distance of the modalities' centroids per pair.
    #[serde(default, deserialize_with = "numbers")]
    pub(crate) modality_gap: BTreeMap<String, f64>,
    /// Contribution per modality.
    #[serde(default, deserialize_with = "numbers")]
    pub(crate) shapley: BTreeMap<String, f64>,
    /// Time: `train`, `total`.
    #[serde(default, deserialize_with = "numbers")]
    pub(crate) seconds: BTreeMap<String, f64>,
    /// Epochs that were trained.
    #[serde(default)]
    pub(crate) epochs: Option<u64>,
    /// Whether the test part selected the model.
    #[serde(default)]
    pub(crate) selected_on_test: bool,
    /// What to know before trusting the numbers.
    #[serde(default)]
    pub(crate) warnings: Vec<String>,
    /// Where it ran.
    #[serde(default)]
    pub(crate) device: Option<String>,
    /// Version of candle.
    #[serde(default)]
    pub(crate) candle: Option<String>,
    /// Commit of the program.
    #[serde(default)]
    pub(crate) commit: Option<String>,
}

/// The data set of a run.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct DatasetRecord {
    /// Its name.
    #[serde(default)]
    pub(crate) name: Option<String>,
    /// Its hash.
    #[serde(default)]
    pub(crate) hash: Option<String>,
    /// Rows to train on.
    #[serde(default)]
    pub(crate) train: Option<u64>,
    /// Rows to select by.
    #[serde(default)]
    pub(crate) val: Option<u64>,
    /// Rows to test on.
    #[serde(default)]
    pub(crate) test: Option<u64>,
}

/// The predictions on the test part.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Predictions {
    /// Name of each row.
    pub(crate) ids: Vec<Value>,
    /// Its class.
    pub(crate) labels: Vec<u32>,
    /// The class that the model says.
    pub(crate) predicted: Vec<u32>,
}

impl Record {
    /// Reads `<folder>/result.json`.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let record: Self = read(&folder.join("result.json"))?;
        if record.format != FORMAT {
            bail!("result.json has format {}, this tool reads {FORMAT}", record.format);
        }
        if record.test_metric("accuracy").is_none() {
            bail!("result.json has no test accuracy");
        }
        Ok(record)
    }

    /// A metric on the test part.
    pub(crate) fn test_metric(&self, name: &str) -> Option<f64> {
        self.test.get(name).copied()
    }
}

impl Predictions {
    /// Reads `<folder>/predictions.json`.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let read: Self = read(&folder.join("predictions.json"))?;
        if read.labels.len() != read.ids.len() || read.predicted.len() != read.ids.len() {
            bail!("predictions.json has lists of different lengths");
        }
        Ok(read)
    }
}

/// The numbers of a map by name; `null`, as map or as value, and what is no number are left out.
fn numbers<'de, D: Deserializer<'de>>(input: D) -> std::result::Result<BTreeMap<String, f64>, D::Error> {
    let map: Option<BTreeMap<String, Value>> = Option::deserialize(input)?;
    Ok(map
        .unwrap_or_default()
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.as_f64()?)))
        .collect())
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A record with this test accuracy and probe accuracies of modalities `a` and `b`.
    pub(crate) fn record(accuracy: f64, probe_a: f64, probe_b: f64) -> Record {
        let text = format!(
            r#"{{"format":1,"name":"x","method":"m","encoder":"mlp","seed":0,"protocol":"validation-select",
            "dataset":{{"name":"small","hash":"abc","classes":2,"train":20,"val":10,"test":10}},
            "val":{{"accuracy":{accuracy}}},
            "test":{{"accuracy":{accuracy},"macro_f1":{accuracy},"ece":0.05,"mcc":null,"confusion":[[1]]}},
            "unimodal":{{"a":{{"head":null,"probe":{probe_a}}},"b":{{"probe":{probe_b}}}}},
            "seconds":{{"train":2.0,"total":2.5}},"device":"cpu","candle":"0.11.1","commit":"c0ffee"}}"#
        );
        serde_json::from_str(&text).expect("valid record")
    }

    #[test]
    fn reads_what_it_needs_and_names_what_is_wrong() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let says = |text: &str| {
            std::fs::write(folder.path().join("result.json"), text).expect("writable");
            match Record::read(folder.path()) {
                Ok(record) => format!("{:?}", record.test_metric("accuracy")),
                Err(error) => format!("{error:#}"),
            }
        };
        assert_eq!(
            says(r#"{"format":1,"dataset":{},"val":null,"test":{"accuracy":0.5},"shapley":null,"new":1}"#),
            "Some(0.5)"
        );
        assert!(says(r#"{"format":1,"dataset":{},"test":{"accuracy":null}}"#).contains("no test accuracy"));
        assert!(says(r#"{"format":2,"dataset":{},"test":{"accuracy":0.5}}"#).contains("format 2"));
        assert!(says(r#"{"format":1,"#).contains("is damaged"));
    }

    #[test]
    fn predictions_have_one_entry_per_row() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("predictions.json");
        std::fs::write(&path, r#"{"ids":["x",3],"labels":[0,1],"predicted":[1]}"#).expect("writable");
        let error = Predictions::read(folder.path()).expect_err("one prediction is missing").to_string();
        assert!(error.contains("different lengths"), "{error}");
        assert!(Predictions::read(&folder.path().join("none")).is_err());
    }
}
