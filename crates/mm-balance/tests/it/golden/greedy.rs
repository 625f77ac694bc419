use crate::fixture::{Fixture, PRECISIONS, exact};
use crate::nets::{Capture, Descent, TanhEncoder, boxed, context, observed, set};
use candle_core::{DType, Device, Result, Tensor};
use mm_balance::greedy::GreedyConfig;
use mm_balance::{Joint, Optimizer, TrainStep};
use mm_core::{Batch, Composite, Gradients, Modal, ParamStore};
use mm_fusion::MmtmConfig;
use mm_testkit::toy::{self, Toy};

fn is_input(key: &str) -> bool {
    key == "settings"
        || ["m2.start.", "m3.start.", "m2.x", "m3.x", "m2.labels", "m3.labels"]
            .iter()
            .any(|i| key.starts_with(i))
}

/// Gradient descent that also keeps what it was given.
struct Both<'a>(Descent<'a>, Capture<'a>);

impl Optimizer for Both<'_> {
    fn step(&mut self, gradients: &mut Gradients) -> Result<Option<f64>> {
        self.1.step(gradients)?;
        self.0.step(gradients)
    }
}

/// Fourteen steps of a net with gates, most of them with one gate held.
#[test]
fn greedy() -> Result<()> {
    let golden = Fixture::open("greedy", is_input);
    let settings = golden.values("settings");
    let (tolerance, window, ratio, rate) = (settings[0], settings[1], settings[2], settings[3]);
    for (prefix, dtype) in PRECISIONS {
        // Fourteen steps of f32 against fourteen steps of f32.
        let tol = if dtype == DType::F32 { 1e-4 } else { exact(dtype) };
        for count in [2, 3] {
            let (case, key) = (format!("m{count}"), |name: &str| format!("{prefix}.m{count}.{name}"));
            let x: Vec<Tensor> = (0..count).map(|m| golden.input(&format!("{case}.x{m}"), dtype)).collect();
            let labels = golden.labels(&format!("{case}.labels"));
            let (steps, rows, _) = x[0].dims3()?;
            let start = golden.under(&format!("{case}.start."));
            let value = |name: &str| golden.input(&format!("{case}.start.{name}"), dtype);

            let mut store = ParamStore::new(0, dtype, &Device::Cpu);
            let names = toy::modalities(count)?;
            let encoders = Modal::try_from_fn(count, |m| {
                let shape = value(&format!("encoder.m{}.weight", m.index())).dims2()?;
                boxed(TanhEncoder::new(store.root().at("encoder").at(names.name(m)), shape, true))
            })?;
            let dims = encoders.map(|_, encoder| encoder.dim());
            let classes = value("fusion.out.m0.bias").dim(0)?;
            let fusion = MmtmConfig { ratio }.build(store.root().at("fusion"), &names, &dims, classes)?;
            let toy = Toy { model: Composite::new(names, classes, encoders, Some(Box::new(fusion)))?, store };
            assert_eq!(start.len(), toy.store.len());
            for name in &start {
                set(&toy.store, name, &value(name))?;
            }

            let config = GreedyConfig { tolerance, window: window as usize, start_epoch: 0 };
            let mut step = Joint::new(config.build(count).map_err(candle_core::Error::wrap)?);
            let mut optimizer = Both(Descent { params: &toy.store, rate }, Capture::new(&toy.store));
            let (mut losses, mut speeds, mut held, mut now) = (Vec::new(), Vec::new(), Vec::new(), -1.0);
            for n in 0..steps {
                let inputs = x.iter().map(|x| x.get(n)).collect::<Result<Vec<_>>>()?;
                let batch = Batch::new(Modal::new(inputs), labels[n * rows..(n + 1) * rows].to_vec())?;
                held.push(now);
                let report = step.step(&context(&toy, &batch, n), &mut optimizer)?;
                losses.push(report.loss);
                speeds.extend(observed(&report, "conditional_speed"));
                now =
                    observed(&report, "held_next").iter().position(|h| *h == 1.0).map_or(-1.0, |m| m as f64);
                if n == 0 {
                    for name in &start {
                        golden.compare(&key(&format!("grad.{name}")), &optimizer.1.gradients[name], tol);
                    }
                }
            }
            golden.compare(&key("loss"), &losses, tol);
            golden.compare(&key("speed"), &speeds, tol);
            golden.compare(&key("held"), &held, 0.0);
            let tensors = toy.store.tensors();
            for name in &start {
                golden.compare(&key(&format!("end.{name}")), &tensors[name], tol);
            }
            for m in 0..count {
                golden.compare(&key(&format!("mean.m{m}")), &tensors[&format!("fusion.gate.m{m}.mean")], tol);
            }
        }
    }
    golden.finish();
    Ok(())
}
