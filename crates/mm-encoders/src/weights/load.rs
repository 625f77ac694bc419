//! From the tensors of a checkpoint to the parameters of a store, all or nothing.

use super::error::{Result, WeightsError, shown};
use super::{Weights, file};
use candle_core::{Tensor, Var};
use mm_core::ParamStore;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// How many names of a kind a message lists.
const LISTED: usize = 10;
/// Among how many names the nearest one is looked for.
const CANDIDATES: usize = 5000;

/// What happens where checkpoint and model differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Matching {
    /// Every parameter and buffer gets its tensor, and every tensor that is not left out by name has a place.
    #[default]
    Strict,
    /// What fits is loaded; the report says what was not.
    Partial,
}

/// What was loaded and what was not. Parameters stand there by their full names, sorted; buffers count as parameters.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// Parameters that have the checkpoint's values now.
    pub loaded: Vec<String>,
    /// Parameters under the prefix that the checkpoint has nothing for; they are as before.
    pub fresh: Vec<String>,
    /// Tensors whose new name no parameter has.
    pub left_over: Vec<String>,
    /// Tensors that the renaming left out.
    pub ignored: Vec<String>,
    /// Parameters whose tensor has another shape or no floats; they are as before.
    pub misshapen: Vec<Misshapen>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.loaded.len() + self.fresh.len() + self.misshapen.len();
        write!(f, "{} of {all} tensors loaded", self.loaded.len())?;
        list(f, "; ", self.fresh.len(), "as they were", self.fresh.iter().map(|n| format!("`{n}`")))?;
        let left = self.left_over.iter().map(|n| format!("`{}`", shown(n)));
        list(f, "; ", self.left_over.len(), "left over", left)?;
        list(f, "; ", self.misshapen.len(), "of another shape or type", self.misshapen.iter())
    }
}

/// A parameter whose tensor in the checkpoint does not fit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Misshapen {
    /// The parameter.
    pub name: String,
    /// The tensor's name in the checkpoint.
    pub tensor: String,
    /// The tensor's type in the checkpoint.
    pub dtype: String,
    /// The tensor's shape.
    pub found: Vec<usize>,
    /// The parameter's shape.
    pub needed: Vec<usize>,
}

impl fmt::Display for Misshapen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tensor = shown(&self.tensor);
        let Self { name, dtype, found, needed, .. } = self;
        write!(f, "`{name}`: the model needs floats of {needed:?}, `{tensor}` has {dtype} {found:?}")
    }
}

/// A name that only one side has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmatched {
    /// The name, for a tensor the checkpoint's.
    pub name: String,
    /// The nearest name of the other side.
    pub nearest: Option<String>,
}

impl fmt::Display for Unmatched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", shown(&self.name))?;
        self.nearest.as_ref().map_or(Ok(()), |n| write!(f, " (nearest: `{}`)", shown(n)))
    }
}

/// Everything in which a checkpoint and a model differ.
#[derive(Debug, Clone, PartialEq)]
pub struct Mismatch {
    /// Where the checkpoint is.
    pub checkpoint: String,
    /// The part of the model.
    pub prefix: String,
    /// Parameters without a tensor.
    pub missing: Vec<Unmatched>,
    /// Tensors without a parameter.
    pub extra: Vec<Unmatched>,
    /// Parameters with a tensor that does not fit.
    pub misshapen: Vec<Misshapen>,
    /// Parameters that several tensors were renamed to, with those.
    pub repeated: Vec<(String, Vec<String>)>,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} does not fit the parameters under `{}`", self.checkpoint, self.prefix)?;
        let repeated = self.repeated.iter().map(|(name, tensors)| {
            let first: Vec<String> = tensors.iter().take(3).map(|t| format!("`{}`", shown(t))).collect();
            format!("`{}` from {}", shown(name), first.join(", "))
        });
        list(f, "\n  ", self.repeated.len(), "named by several tensors", repeated)?;
        list(f, "\n  ", self.missing.len(), "missing from the checkpoint", self.missing.iter())?;
        list(f, "\n  ", self.extra.len(), "not part of the model", self.extra.iter())?;
        list(f, "\n  ", self.misshapen.len(), "of another shape or type", self.misshapen.iter())?;
        f.write_str("\n  check the model's settings and the renaming; `Matching::Partial` loads what fits")
    }
}

fn list(
    f: &mut fmt::Formatter<'_>,
    before: &str,
    count: usize,
    what: &str,
    items: impl Iterator<Item = impl fmt::Display>,
) -> fmt::Result {
    if count == 0 {
        return Ok(());
    }
    write!(f, "{before}{count} {what}: ")?;
    for (i, item) in items.take(LISTED).enumerate() {
        write!(f, "{}{item}", if i == 0 { "" } else { ", " })?;
    }
    if count > LISTED { write!(f, " and {} more", count - LISTED) } else { Ok(()) }
}

pub(super) fn load_into(
    weights: &Weights,
    store: &ParamStore,
    prefix: &str,
    rename: &dyn Fn(&str) -> Option<String>,
    how: Matching,
) -> Result<Report> {
    let targets = targets(store, prefix);
    if targets.is_empty() {
        let near = parents(store);
        let near = nearest(prefix, near.iter().map(String::as_str));
        let remedy = near.map_or("build the model first".to_owned(), |n| format!("did you mean `{n}`?"));
        let rule = format!("the model has no parameter under `{prefix}` to load into");
        return Err(WeightsError::invalid(&weights.dir.display().to_string(), rule, remedy));
    }
    let mut report = Report::default();
    let mut sources: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for name in weights.names() {
        match rename(name) {
            Some(own) => sources.entry(join(prefix, &own)).or_default().push(name),
            None => report.ignored.push(name.to_owned()),
        }
    }
    let mut fitting = Vec::new();
    for (name, var) in &targets {
        let Some(tensor) = sources.get(*name).and_then(|t| t.first()) else {
            report.fresh.push((*name).to_owned());
            continue;
        };
        let Some((file, info)) = weights.info(tensor) else { continue };
        if info.shape == var.dims() && file::float(info.dtype).is_some() {
            fitting.push((*name, *tensor, file, info, *var));
        } else {
            report.misshapen.push(Misshapen {
                name: (*name).to_owned(),
                tensor: (*tensor).to_owned(),
                dtype: info.dtype.to_string(),
                found: info.shape.clone(),
                needed: var.dims().to_vec(),
            });
        }
    }
    let own = |name: &str| targets.contains_key(name);
    for (_, tensors) in sources.iter().filter(|(name, _)| !own(name)) {
        report.left_over.extend(tensors.iter().map(|t| (*t).to_owned()));
    }
    report.left_over.sort_unstable();
    let repeated = sources.values().any(|tensors| tensors.len() > 1);
    let differs = !(report.fresh.is_empty() && report.left_over.is_empty() && report.misshapen.is_empty());
    if repeated || fitting.is_empty() || (differs && how == Matching::Strict) {
        return Err(WeightsError::Mismatch(Box::new(mismatch(weights, prefix, &targets, &sources, report))));
    }
    // Everything is read before anything is changed: a file that breaks off leaves the store as it was.
    let mut staged: Vec<(&Var, Tensor)> = Vec::with_capacity(fitting.len());
    for (name, tensor, file, info, var) in fitting {
        let value = file.read(tensor, info)?.to_dtype(var.dtype())?.to_device(var.device())?;
        staged.push((var, value));
        report.loaded.push(name.to_owned());
    }
    for (var, value) in staged {
        var.set(&value)?;
    }
    Ok(report)
}

/// The parameters and buffers under a dotted prefix; whole segments only.
pub(super) fn targets<'a>(store: &'a ParamStore, prefix: &str) -> BTreeMap<&'a str, &'a Var> {
    let all = store.params().iter().chain(store.buffers());
    let under = |name: &str| {
        name.strip_prefix(prefix).is_some_and(|rest| {
            prefix.is_empty() || rest.strip_prefix('.').is_some_and(|rest| !rest.is_empty())
        })
    };
    all.filter(|p| under(p.name())).map(|p| (p.name(), p.var())).collect()
}

fn mismatch(
    weights: &Weights,
    prefix: &str,
    targets: &BTreeMap<&str, &Var>,
    sources: &BTreeMap<String, Vec<&str>>,
    report: Report,
) -> Mismatch {
    let spare: Vec<&str> = report.left_over.iter().chain(&report.ignored).map(String::as_str).collect();
    // The nearest name of a parameter is looked for among the new names, and told by the checkpoint's.
    let renamed: Vec<(&str, &str)> = sources
        .iter()
        .filter(|(name, _)| !targets.contains_key(name.as_str()))
        .filter_map(|(name, t)| Some((name.as_str(), *t.first()?)))
        .collect();
    let missing = report.fresh.iter().enumerate().map(|(i, name)| {
        let nearest = (i < LISTED).then(|| {
            let by_new = nearest(name, renamed.iter().map(|(new, _)| *new))
                .and_then(|n| renamed.iter().find(|(new, _)| *new == n))
                .map(|(_, tensor)| (*tensor).to_owned());
            by_new.or_else(|| nearest(name.strip_prefix(prefix).unwrap_or(name), spare.iter().copied()))
        });
        Unmatched { name: name.clone(), nearest: nearest.flatten() }
    });
    let missing = missing.collect();
    let mut extra = Vec::new();
    for (name, tensors) in sources.iter().filter(|(name, _)| !targets.contains_key(name.as_str())) {
        let near = (extra.len() < LISTED).then(|| {
            let fresh = report.fresh.iter().map(String::as_str);
            nearest(name, fresh).or_else(|| nearest(name, targets.keys().copied()))
        });
        let near = near.flatten();
        let unmatched = |t: &&str| Unmatched { name: (*t).to_owned(), nearest: near.clone() };
        extra.extend(tensors.iter().map(unmatched));
    }
    let repeated = sources.iter().filter(|(_, tensors)| tensors.len() > 1);
    let owned = |tensors: &[&str]| tensors.iter().map(|t| (*t).to_owned()).collect();
    Mismatch {
        checkpoint: weights.dir.display().to_string(),
        prefix: prefix.to_owned(),
        missing,
        extra,
        misshapen: report.misshapen,
        repeated: repeated.map(|(name, tensors)| (name.clone(), owned(tensors))).collect(),
    }
}

/// The dotted prefixes of all parameters.
fn parents(store: &ParamStore) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for p in store.params() {
        let cuts = p.name().match_indices('.').map(|(at, _)| &p.name()[..at]);
        all.extend(cuts.map(str::to_owned));
    }
    all
}

pub(super) fn nearest<'a>(word: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    let names: Vec<&str> = names.take(CANDIDATES).collect();
    mm_core::nearest(word, &names).map(str::to_owned)
}

fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") }
}
