//! Named, ordered, seeded parameters and buffers.

use crate::StepRng;
use candle_core::{DType, Device, Result, Shape, Tensor, Var, bail};
use std::collections::BTreeMap;

/// How a parameter starts. Draws depend on the store's seed and the parameter's full name, so adding a layer
/// somewhere changes no other layer's start.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// Every entry is this value.
    Const(f64),
    /// Uniform in [-bound, bound). PyTorch's `Linear` uses 1/√fan_in for weight and bias.
    Uniform {
        /// Half the width of the interval.
        bound: f64,
    },
    /// Normal.
    Normal {
        /// Mean.
        mean: f64,
        /// Standard deviation.
        std: f64,
    },
}

impl Init {
    /// PyTorch's default for `Linear` weights and biases: U(±1/√fan_in).
    pub fn linear(fan_in: usize) -> Self {
        Self::Uniform { bound: 1.0 / (fan_in.max(1) as f64).sqrt() }
    }

    /// Glorot: U(±√(6/(fan_in + fan_out))).
    pub fn xavier_uniform(fan_in: usize, fan_out: usize) -> Self {
        Self::Uniform { bound: (6.0 / (fan_in + fan_out).max(1) as f64).sqrt() }
    }

    /// He with ReLU gain: U(±√(6/fan)).
    pub fn kaiming_uniform(fan: usize) -> Self {
        Self::Uniform { bound: (6.0 / fan.max(1) as f64).sqrt() }
    }

    fn draw(self, count: usize, rng: StepRng) -> Vec<f64> {
        let mut draws = rng.draws();
        match self {
            Self::Const(value) => vec![value; count],
            Self::Uniform { bound } => (0..count).map(|_| bound * (2.0 * draws.uniform() - 1.0)).collect(),
            Self::Normal { mean, std } => (0..count).map(|_| mean + std * draws.normal()).collect(),
        }
    }
}

/// The position of a parameter in its store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParamId(usize);

impl ParamId {
    /// Its position.
    pub const fn index(self) -> usize {
        self.0
    }
}

/// A trainable parameter or a buffer.
#[derive(Debug, Clone)]
pub struct Param {
    name: String,
    var: Var,
}

impl Param {
    /// Full dotted name, such as `encoder.audio.0.weight`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The variable.
    pub fn var(&self) -> &Var {
        &self.var
    }
}

/// All parameters of a model in the order of their creation, and its buffers (running statistics) apart from them.
#[derive(Debug)]
pub struct ParamStore {
    rng: StepRng,
    dtype: DType,
    device: Device,
    params: Vec<Param>,
    buffers: Vec<Param>,
}

impl ParamStore {
    /// An empty store whose initial values are drawn from `seed`.
    pub fn new(seed: u64, dtype: DType, device: &Device) -> Self {
        let rng = StepRng::new(seed).stream("init");
        Self { rng, dtype, device: device.clone(), params: Vec::new(), buffers: Vec::new() }
    }

    /// The scope without a prefix.
    pub fn root(&mut self) -> Scope<'_> {
        Scope { store: self, prefix: String::new() }
    }

    /// The element type of new parameters.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The device of new parameters.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Number of parameter tensors.
    pub fn len(&self) -> usize {
        self.params.len()
    }

    /// Whether there is no parameter.
    pub fn is_empty(&self) -> bool {
        self.params.is_empty()
    }

    /// Number of trainable scalars.
    pub fn elements(&self) -> usize {
        self.params.iter().map(|p| p.var.elem_count()).sum()
    }

    /// The trainable parameters, in order.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// The buffers, in order.
    pub fn buffers(&self) -> &[Param] {
        &self.buffers
    }

    /// Ids of all parameters.
    pub fn ids(&self) -> impl Iterator<Item = ParamId> + use<> {
        (0..self.params.len()).map(ParamId)
    }

    /// The parameter with this id.
    pub fn get(&self, id: ParamId) -> &Param {
        &self.params[id.0]
    }

    /// The parameter called `name`.
    pub fn find(&self, name: &str) -> Option<&Param> {
        self.params.iter().find(|p| p.name == name)
    }

    /// Ids of the parameters under a dotted prefix; whole segments only: `encoder.a` does not match `encoder.ab`.
    pub fn group<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = ParamId> + 'a {
        self.params.iter().enumerate().filter(move |(_, p)| under(&p.name, prefix)).map(|(i, _)| ParamId(i))
    }

    /// Every parameter and buffer by name (shallow clones; they follow later updates).
    pub fn tensors(&self) -> BTreeMap<String, Tensor> {
        self.params.iter().chain(&self.buffers).map(|p| (p.name.clone(), p.var.as_tensor().clone())).collect()
    }

    /// Replaces the value of every parameter and buffer by the tensor of the same name.
    ///
    /// Strict: a missing, an extra or a misshapen tensor is an error that names it, and nothing is changed then.
    pub fn load(&self, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
        let own = self.tensors();
        for (name, value) in &own {
            match tensors.get(name) {
                None => bail!("tensor `{name}` is missing{}", hint(name, tensors.keys())),
                Some(t) if t.dims() != value.dims() => {
                    bail!("tensor `{name}` has shape {:?}, the model needs {:?}", t.dims(), value.dims())
                }
                Some(_) => {}
            }
        }
        if let Some(extra) = tensors.keys().find(|k| !own.contains_key(*k)) {
            bail!("tensor `{extra}` is not part of the model{}", hint(extra, own.keys()));
        }
        for p in self.params.iter().chain(&self.buffers) {
            // A copy, because the given tensor may be the variable's own.
            p.var.set(&tensors[&p.name].copy()?.to_device(&self.device)?.to_dtype(p.var.dtype())?)?;
        }
        Ok(())
    }

    /// A deep copy of all values.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let copy = |list: &[Param]| list.iter().map(|p| p.var.as_tensor().copy()).collect::<Result<Vec<_>>>();
        Ok(Snapshot { params: copy(&self.params)?, buffers: copy(&self.buffers)? })
    }

    /// Puts the values of a snapshot of this store back.
    pub fn restore(&self, snapshot: &Snapshot) -> Result<()> {
        if snapshot.params.len() != self.params.len() || snapshot.buffers.len() != self.buffers.len() {
            bail!("the snapshot holds {} parameters, the store {}", snapshot.params.len(), self.params.len());
        }
        let pairs = self.params.iter().zip(&snapshot.params);
        for (p, value) in pairs.chain(self.buffers.iter().zip(&snapshot.buffers)) {
            p.var.set(value)?;
        }
        Ok(())
    }
}

fn hint<'a>(name: &str, names: impl Iterator<Item = &'a String>) -> String {
    let names: Vec<&str> = names.map(String::as_str).collect();
    crate::nearest(name, &names).map(|n| format!("; nearest name: `{n}`")).unwrap_or_default()
}

/// Whether `name` lies under the dotted `prefix`.
fn under(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix)
        .is_some_and(|rest| prefix.is_empty() || rest.is_empty() || rest.starts_with('.'))
}

/// Deep copies of a store's values; they do not follow later updates.
#[derive(Debug, Clone)]
pub struct Snapshot {
    params: Vec<Tensor>,
    buffers: Vec<Tensor>,
}

impl Snapshot {
    /// The copied value of a parameter.
    pub fn get(&self, id: ParamId) -> &Tensor {
        &self.params[id.0]
    }
}

/// A place in the name space of a [`ParamStore`], where layers make their parameters.
#[derive(Debug)]
pub struct Scope<'a> {
    store: &'a mut ParamStore,
    prefix: String,
}

impl<'a> Scope<'a> {
    /// The scope `segment` inside this one, consuming it.
    #[must_use]
    pub fn at(self, segment: impl std::fmt::Display) -> Scope<'a> {
        let prefix = join(&self.prefix, &segment.to_string());
        Scope { store: self.store, prefix }
    }

    /// The scope `segment` inside this one, borrowing it.
    pub fn child(&mut self, segment: impl std::fmt::Display) -> Scope<'_> {
        let prefix = join(&self.prefix, &segment.to_string());
        Scope { store: self.store, prefix }
    }

    /// The dotted prefix.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The element type of new parameters.
    pub fn dtype(&self) -> DType {
        self.store.dtype
    }

    /// The device of new parameters.
    pub fn device(&self) -> &Device {
        &self.store.device
    }

    /// Makes a trainable parameter and returns its tensor, which follows every update.
    pub fn param(&mut self, name: &str, shape: impl Into<Shape>, init: Init) -> Result<Tensor> {
        let var = self.make(name, shape.into(), init)?;
        let tensor = var.1.as_tensor().clone();
        self.store.params.push(Param { name: var.0, var: var.1 });
        Ok(tensor)
    }

    /// Makes a buffer: saved and loaded with the model, never trained.
    pub fn buffer(&mut self, name: &str, shape: impl Into<Shape>, init: Init) -> Result<Var> {
        let (name, var) = self.make(name, shape.into(), init)?;
        self.store.buffers.push(Param { name, var: var.clone() });
        Ok(var)
    }

    fn make(&self, name: &str, shape: Shape, init: Init) -> Result<(String, Var)> {
        let name = join(&self.prefix, name);
        if self.store.params.iter().chain(&self.store.buffers).any(|p| p.name == name) {
            bail!("parameter `{name}` is made twice");
        }
        let values = init.draw(shape.elem_count(), self.store.rng.stream(&name));
        let tensor = Tensor::from_vec(values, shape, &self.store.device)?.to_dtype(self.store.dtype)?;
        Ok((name, Var::from_tensor(&tensor)?))
    }
}

fn join(prefix: &str, segment: &str) -> String {
    if prefix.is_empty() { segment.to_owned() } else { format!("{prefix}.{segment}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> ParamStore {
        let mut store = ParamStore::new(3, DType::F64, &Device::Cpu);
        for m in ["a", "ab"] {
            let mut scope = store.root().at("encoder").at(m);
            scope.param("weight", (2, 3), Init::linear(3)).unwrap();
            scope.buffer("mean", 2, Init::Const(0.0)).unwrap();
        }
        store
    }

    #[test]
    fn groups_match_whole_segments() {
        let s = store();
        let names = |p: &str| s.group(p).map(|i| s.get(i).name().to_owned()).collect::<Vec<_>>();
        assert_eq!(names("encoder.a"), ["encoder.a.weight"]);
        assert_eq!(names("encoder").len(), 2);
        assert_eq!(names("").len(), 2);
        assert_eq!(names("enc").len(), 0);
    }

    #[test]
    fn values_depend_on_seed_and_name_only() {
        let (a, b) = (store(), store());
        let get = |s: &ParamStore, n: &str| {
            s.find(n).unwrap().var().flatten_all().unwrap().to_vec1::<f64>().unwrap()
        };
        assert_eq!(get(&a, "encoder.a.weight"), get(&b, "encoder.a.weight"));
        assert_ne!(get(&a, "encoder.a.weight"), get(&a, "encoder.ab.weight"));
        let mut alone = ParamStore::new(3, DType::F64, &Device::Cpu);
        alone.root().at("encoder").at("ab").param("weight", (2, 3), Init::linear(3)).unwrap();
        assert_eq!(get(&alone, "encoder.ab.weight"), get(&a, "encoder.ab.weight"));
    }

    #[test]
    fn snapshots_are_copies_and_loads_are_strict() {
        let s = store();
        let before = s.snapshot().unwrap();
        let p = s.find("encoder.a.weight").unwrap();
        let old = p.var().copy().unwrap();
        p.var().set(&p.var().affine(2.0, 0.0).unwrap()).unwrap();
        s.restore(&before).unwrap();
        let diff = (p.var().as_tensor() - old).unwrap().abs().unwrap().sum_all().unwrap();
        assert_eq!(diff.to_scalar::<f64>().unwrap(), 0.0);
        let mut all = s.tensors();
        s.load(&all).unwrap();
        let w = all.remove("encoder.a.weight").unwrap();
        assert!(s.load(&all).unwrap_err().to_string().contains("`encoder.a.weight` is missing"));
        all.insert("encoder.a.weight".into(), w.t().unwrap());
        assert!(s.load(&all).unwrap_err().to_string().contains("the model needs [2, 3]"));
    }
}
