//! What a pack is to hold, and what no pack can hold.
//!
//! Names become names of tensors, which are unique in a file and carry meaning: `y` are labels, `length_<modality>` lengths,
//! `…_index` lists of rows, `x_…` and `present_…` belong to modalities. A plan whose names would collide is refused.

use super::Element;
use crate::DataError;
use crate::dataset::hex;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// The most bytes that a row of one modality may have, where rows are of one size.
pub(crate) const MAX_ROW: usize = 1 << 31;

/// What a pack is to hold.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What the data set is called.
    pub name: String,
    /// How the rows are made; a pack that was begun with another preset is not gone on with.
    pub preset: serde_json::Value,
    /// The modalities.
    pub modalities: Vec<PlannedModality>,
    /// Names of the classes.
    pub classes: Vec<String>,
    /// The id of each row, unique.
    pub ids: Vec<String>,
    /// The class of each row.
    pub labels: Vec<u32>,
    /// Other integer columns.
    pub columns: BTreeMap<String, Vec<i64>>,
    /// Named lists of rows, whose names end in `_index`.
    pub indices: BTreeMap<String, Vec<usize>>,
    /// Rows in a shard; at least 1.
    pub rows_per_shard: usize,
}

/// One modality that is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedModality {
    /// Its name.
    pub name: String,
    /// Sizes of a row; where `ragged`, the first is ignored.
    pub dims: Vec<usize>,
    /// Whether rows differ in their first size.
    pub ragged: bool,
    /// Whether rows are frames, (frames, height, width, channels) of bytes.
    pub frames: bool,
    /// Type of the values.
    pub element: Element,
}

/// Refuses what cannot be written or read again.
pub(super) fn check(place: &str, plan: &Plan) -> Result<(), DataError> {
    let fault = |rule: String, remedy: &str| Err(DataError::invalid(place, rule, remedy));
    let rows = plan.ids.len();
    if rows == 0 {
        return fault("there are no rows to prepare".into(), "look at the folder of the raw files");
    }
    if plan.labels.len() != rows || plan.columns.values().any(|c| c.len() != rows) {
        return fault(
            format!("labels or columns have another length than the {rows} ids"),
            "give one per row",
        );
    }
    let mut ids = BTreeSet::new();
    if let Some(id) = plan.ids.iter().find(|id| !ids.insert(id.as_str())) {
        return fault(format!("the id `{id}` appears twice"), "give every row an id of its own");
    }
    if plan.modalities.is_empty() {
        return fault("there are no modalities".into(), "name at least one");
    }
    check_names(place, plan)?;
    for m in &plan.modalities {
        let fixed = m.dims.get(usize::from(m.ragged)..).unwrap_or_default();
        if m.dims.is_empty() || fixed.contains(&0) {
            return fault(format!("modality `{}` has rows of {:?}", m.name, m.dims), "no size may be 0");
        }
        let bytes = fixed.iter().try_fold(m.element.size(), |n, &d| n.checked_mul(d));
        if bytes.is_none_or(|n| n > MAX_ROW) {
            let rule = format!(
                "modality `{}` has rows of {:?}, more than the allowed {MAX_ROW} bytes",
                m.name, m.dims
            );
            return fault(rule, "choose smaller sizes or fewer frames");
        }
        if m.frames && (m.dims.len() != 4 || m.ragged || m.element != Element::U8) {
            let rule = format!("modality `{}` has frames of {:?}", m.name, m.dims);
            return fault(
                rule,
                "frames are (frames, height, width, channels) of bytes, as many in every row",
            );
        }
    }
    Ok(())
}

/// Refuses names that stand twice or have a meaning of their own.
fn check_names(place: &str, plan: &Plan) -> Result<(), DataError> {
    let fault = |rule: String, remedy: &str| Err(DataError::invalid(place, rule, remedy));
    let mut modalities = BTreeSet::new();
    for m in &plan.modalities {
        if m.name.is_empty() || !modalities.insert(m.name.as_str()) {
            let rule = format!("the modality `{}` is named twice, or has no name", m.name.escape_debug());
            return fault(rule, "give every modality a name of its own");
        }
    }
    let reserved = |name: &str| {
        let prefix = ["x_", "present_", "length_"].iter().any(|prefix| name.starts_with(prefix));
        name.is_empty() || name == "y" || name == "__metadata__" || prefix
    };
    let remedy = "rename it: `y`, `x_…`, `present_…` and `length_…` have a meaning of their own";
    for name in plan.columns.keys() {
        if name.ends_with("_index") {
            let rule = format!("the column `{}` is called like a list of rows", name.escape_debug());
            return fault(rule, "rename it: what ends in `_index` is a list of rows");
        }
        if reserved(name) {
            return fault(format!("the column `{}` has a reserved name", name.escape_debug()), remedy);
        }
    }
    for (name, rows) in &plan.indices {
        if !name.ends_with("_index") {
            let rule = format!("the list of rows `{}` does not end in `_index`", name.escape_debug());
            return fault(rule, "rename it");
        }
        if reserved(name) {
            return fault(format!("the list of rows `{}` has a reserved name", name.escape_debug()), remedy);
        }
        if let Some(row) = rows.iter().find(|&&row| row >= plan.ids.len()) {
            let rule = format!(
                "the list `{}` names row {row}, the last is {}",
                name.escape_debug(),
                plan.ids.len() - 1
            );
            return fault(rule, "rows count from 0");
        }
    }
    Ok(())
}

/// What a pack of this plan is told by: preset, rows, labels, everything but the values.
pub(super) fn fingerprint(plan: &Plan) -> String {
    let mut hasher = Sha256::new();
    let mut put = |text: &str| {
        hasher.update((text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    put(&plan.name);
    put(&plan.preset.to_string());
    put(&format!("{:?}", plan.modalities));
    put(&format!("{:?}", plan.classes));
    put(&format!("{:?}{:?}", plan.columns, plan.indices));
    put(&format!("{:?}{}", plan.labels, plan.rows_per_shard));
    plan.ids.iter().for_each(|id| put(id));
    hex(&hasher.finalize())
}

pub(super) fn stamped(plan: &Plan, fingerprint: &str) -> serde_json::Value {
    serde_json::json!({ "settings": plan.preset, "plan": fingerprint })
}
