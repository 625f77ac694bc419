//! Forward and backward of each kernel against the composition of candle operations that one would write otherwise.
//!
//! `cargo bench -p mm-kernels -- linear` runs one group. Rows are `<ours or candle>/<dtype on device, shape>`.

use candle_core::{D, DType, Device, Result, Tensor, Var};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mm_kernels::{AdamStep, SgdStep, StepRng};
use std::hint::black_box;

/// Batch and width: a small head, a fusion layer, a wide fusion layer.
const SHAPES: [(usize, usize); 3] = [(64, 64), (64, 512), (256, 512)];

fn normal(shape: &[usize], seed: u64) -> Result<Tensor> {
    let mut draws = StepRng::new(seed).draws();
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| draws.normal() as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu)
}

type Op<'a> = &'a dyn Fn() -> Result<Tensor>;

/// One row for each way to compute a value; backward goes through the sum of its elements, or from a scalar itself.
fn compare(c: &mut Criterion, group: &str, label: &str, elements: usize, rows: &[(&str, Op<'_>)]) {
    let mut group = c.benchmark_group(group);
    group.throughput(Throughput::Elements(elements as u64));
    for (name, f) in rows {
        group.bench_function(BenchmarkId::new(*name, format!("f32 cpu {label}")), |b| {
            b.iter(|| {
                let y = f().expect("forward");
                let loss = if y.rank() == 0 { y } else { y.sum_all().expect("sum") };
                black_box(loss.backward().expect("backward"))
            });
        });
    }
    group.finish();
}

fn layers(c: &mut Criterion) -> Result<()> {
    for (batch, width) in SHAPES {
        let x = normal(&[batch, width], 1)?;
        let leaf = Var::from_tensor(&x)?;
        let (w, b) =
            (Var::from_tensor(&normal(&[width, width], 2)?)?, Var::from_tensor(&normal(&[width], 3)?)?);
        let label = format!("B{batch} {width}x{width}");
        for (group, x) in [("linear on data", &x), ("linear", leaf.as_tensor())] {
            compare(
                c,
                group,
                &label,
                batch * width * width,
                &[
                    ("ours", &|| mm_kernels::linear(x, &w, Some(&b))),
                    ("candle", &|| x.matmul(&w.t()?)?.broadcast_add(&b)),
                ],
            );
        }
        let (label, n, x) = (format!("B{batch} D{width}"), batch * width, leaf.as_tensor());
        compare(c, "relu", &label, n, &[("ours", &|| mm_kernels::relu(x)), ("candle", &|| x.relu())]);
        compare(c, "gelu", &label, n, &[("ours", &|| mm_kernels::gelu(x)), ("candle", &|| x.gelu_erf())]);
        compare(
            c,
            "layer_norm",
            &label,
            n,
            &[
                ("ours", &|| mm_kernels::layer_norm(x, Some(&b), Some(&b), 1e-5)),
                ("candle", &|| candle_nn::ops::layer_norm_slow(x, &b, &b, 1e-5)),
            ],
        );
        compare(
            c,
            "softmax",
            &label,
            n,
            &[
                ("ours", &|| mm_kernels::softmax_last(x)),
                ("candle", &|| candle_nn::ops::softmax(x, D::Minus1)),
            ],
        );
        compare(
            c,
            "batch_norm",
            &label,
            n,
            &[
                ("ours", &|| Ok(mm_kernels::batch_norm_train(x, Some(&b), Some(&b), 1e-5)?.y)),
                ("candle", &|| {
                    let centred = x.broadcast_sub(&x.mean_keepdim(0)?)?;
                    let deviation = (centred.sqr()?.mean_keepdim(0)? + 1e-5)?.sqrt()?;
                    centred.broadcast_div(&deviation)?.broadcast_mul(&b)?.broadcast_add(&b)
                }),
            ],
        );
    }
    Ok(())
}

fn losses(c: &mut Criterion) -> Result<()> {
    for (batch, classes) in [(64, 6), (64, 31), (256, 31)] {
        let x = Var::from_tensor(&normal(&[batch, classes], 1)?)?;
        let labels: Vec<u32> = (0..batch).map(|i| (i % classes) as u32).collect();
        let targets = Tensor::new(labels.as_slice(), &Device::Cpu)?;
        compare(
            c,
            "cross_entropy",
            &format!("B{batch} C{classes}"),
            batch * classes,
            &[
                ("ours", &|| mm_kernels::cross_entropy(&x, &labels, None)),
                ("candle", &|| candle_nn::loss::cross_entropy(&x, &targets)),
            ],
        );
    }
    Ok(())
}

fn optimisers(c: &mut Criterion) -> Result<()> {
    use candle_nn::Optimizer;
    for width in [64, 512] {
        let shape = [width, width];
        let (p, g) = (Var::from_tensor(&normal(&shape, 1)?)?, (normal(&shape, 2)? * 1e-3)?);
        let zeros = || Var::zeros(&shape, DType::F32, &Device::Cpu);
        let (m, v) = (zeros()?, zeros()?);
        let label = format!("f32 cpu {width}x{width}");
        let mut group = c.benchmark_group("optim");
        group.throughput(Throughput::Elements((width * width) as u64));
        let sgd = SgdStep { lr: 1e-6, momentum: 0.9, weight_decay: 1e-4, ..SgdStep::default() };
        group.bench_function(BenchmarkId::new("sgd momentum, ours", &label), |b| {
            b.iter(|| mm_kernels::sgd_step(&p, &g, Some(&m), &sgd).expect("step"));
        });
        group.bench_function(BenchmarkId::new("sgd momentum, candle", &label), |b| {
            let step = || -> Result<()> {
                let d = (&g + (p.as_detached_tensor() * sgd.weight_decay)?)?;
                m.set(&((m.as_detached_tensor() * sgd.momentum)? + d)?)?;
                p.set(&(p.as_detached_tensor() - (m.as_detached_tensor() * sgd.lr)?)?)
            };
            b.iter(|| step().expect("step"));
        });
        let adam = AdamStep { lr: 1e-6, weight_decay: 1e-4, step: 10, ..AdamStep::default() };
        group.bench_function(BenchmarkId::new("adamw, ours", &label), |b| {
            b.iter(|| mm_kernels::adamw_step(&p, &g, &m, &v, &adam).expect("step"));
        });
        let params =
            candle_nn::ParamsAdamW { lr: 1e-6, weight_decay: 1e-4, ..candle_nn::ParamsAdamW::default() };
        let mut theirs = candle_nn::AdamW::new(vec![p.clone()], params)?;
        let mut grads = p.as_tensor().sum_all()?.backward()?;
        grads.insert(p.as_tensor(), g.clone());
        group.bench_function(BenchmarkId::new("adamw, candle", &label), |b| {
            b.iter(|| theirs.step(&grads).expect("step"));
        });
        group.finish();
    }
    Ok(())
}

fn all(c: &mut Criterion) {
    layers(c).and_then(|()| losses(c)).and_then(|()| optimisers(c)).expect("bench");
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(30).warm_up_time(std::time::Duration::from_millis(300))
        .measurement_time(std::time::Duration::from_secs(1));
    targets = all
}
criterion_main!(benches);
