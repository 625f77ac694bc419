//! Every loss kernel and coefficient beside a plain cross-entropy of the same batch.
//!
//! `cargo bench -p mm-balance --bench losses -- alignment` runs one group. A group is a kernel, a row is
//! `<kernel or cross-entropy> <forward or forward+backward>/<dtype device shape>`; throughput is rows of the batch. Scores
//! and coefficients have no backward pass; "cross-entropy" is that of one fused prediction.

use candle_core::{DType, Device, Result, Tensor, Var};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mm_balance::mcr::{self, Pairs};
use mm_balance::pmr::{self, Prototypes};
use mm_balance::proxyanchor::{self, ProxyAnchorConfig};
use mm_balance::softtriple::{self, SoftTripleConfig};
use mm_balance::{
    agm, amco, cggm, cml, lfm, mla, mlb, mmcosine, mmpareto, multimodal_loss, ogm, opm, proxynca, reconboost,
    score, sum_ce, unimodal,
};
use mm_core::{Batch, Modal, Modality, StepRng};
use mm_kernels::cross_entropy;
use std::hint::black_box;
use std::time::Duration;

/// Batch, modalities, classes.
const SHAPES: [(usize, usize, usize); 3] = [(64, 2, 6), (256, 3, 31), (1024, 2, 309)];
/// Width of features.
const DIM: usize = 128;
/// Proxies for each class, the default.
const PROXIES: usize = 20;

/// One batch of a shape, with everything that any kernel takes as leaves of a graph.
struct Case {
    label: String,
    classes: usize,
    fused: Var,
    logits: Modal<Var>,
    features: Modal<Var>,
    proxies: Var,
    /// (C, D): one vector per class.
    weights: Var,
    /// (D, 10 C).
    centers: Var,
    prototypes: Prototypes,
    gradient: Tensor,
    batch: Batch,
}

impl Case {
    fn new((rows, modalities, classes): (usize, usize, usize)) -> Result<Self> {
        let mut draws = StepRng::new(1).stream("bench").draws();
        let labels = (0..rows).map(|_| draws.below(classes) as u32).collect();
        let mut normal = |shape: &[usize]| -> Result<Var> {
            let values: Vec<f32> = (0..shape.iter().product()).map(|_| draws.normal() as f32).collect();
            Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu)?)
        };
        let logits = Modal::try_from_fn(modalities, |_| normal(&[rows, classes]))?;
        let width = modalities * classes;
        let weights = normal(&[classes, DIM])?;
        let prototypes = Prototypes::from_values(mm_core::model::to_host(&weights)?, DIM)?;
        Ok(Self {
            weights,
            prototypes,
            centers: normal(&[DIM, 10 * classes])?,
            label: format!("f32 cpu B{rows}xM{modalities}xC{classes}"),
            classes,
            fused: normal(&[rows, classes])?,
            features: Modal::try_from_fn(modalities, |_| normal(&[rows, DIM]))?,
            proxies: normal(&[width, classes * PROXIES])?,
            gradient: normal(&[DIM, DIM])?.detach(),
            batch: Batch::new(logits.map(|_, z| z.detach()), labels)?,
            logits,
        })
    }

    fn heads(&self) -> Modal<Tensor> {
        self.logits.map(|_, z| z.as_tensor().clone())
    }

    /// The mean of a loss of two tensors over neighbouring modalities.
    fn pairs(of: &Modal<Var>, loss: impl Fn(&Tensor, &Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let losses: Vec<Tensor> =
            of.values().windows(2).map(|pair| loss(&pair[0], &pair[1])).collect::<Result<_>>()?;
        mm_core::model::sum(&losses)
    }

    /// The sum of a loss over the features of every modality.
    fn each(&self, loss: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let losses: Vec<Tensor> = self.features.values().iter().map(|h| loss(h)).collect::<Result<_>>()?;
        mm_core::model::sum(&losses)
    }

    fn scores(&self) -> Result<Vec<f64>> {
        Ok(score::true_class(&self.heads(), &self.batch)?.into_values())
    }
}

type Loss = fn(&Case) -> Result<Tensor>;
type Statistic = fn(&Case) -> Result<Vec<f64>>;

fn plain(case: &Case) -> Result<Tensor> {
    cross_entropy(&case.fused, &case.batch.labels, None)
}

const LOSSES: [(&str, Loss); 17] = [
    ("multi-loss", |c| Ok(unimodal::losses_and_scores(&c.heads(), &c.batch)?.0)),
    ("sum-ce", |c| {
        let probabilities = sum_ce::probabilities(&c.heads(), &c.batch)?;
        cross_entropy(&mm_core::model::sum(probabilities.values())?, &c.batch.labels, None)
    }),
    ("info-nce", |c| Case::pairs(&c.features, |a, b| lfm::info_nce(a, b, 0.07))),
    ("alignment", |c| Case::pairs(&c.logits, lfm::alignment)),
    ("jensen-shannon", |c| Case::pairs(&c.logits, lfm::jensen_shannon)),
    ("agm modulation", |c| {
        // The logits as if they were contributions of their own: what a step adds beside its coalitions.
        let phi = c.heads().into_values();
        agm::modulation(&phi, &vec![0.5; phi.len()], &c.fused, &c.batch.labels)
    }),
    ("cggm direction", |c| {
        let cosines = c.features.try_map(|m, h| cggm::cosine(h, &c.fused, &c.logits[m], &c.batch.labels))?;
        mm_core::model::sum(cosines.values())
    }),
    ("multimodal-loss", |c| {
        let embeddings = Tensor::cat(sum_ce::probabilities(&c.heads(), &c.batch)?.values(), 1)?;
        let parts = multimodal_loss::logits(&embeddings, &c.proxies, c.classes, 10.0)?;
        cross_entropy(&parts.logits, &c.batch.labels, None)
    }),
    ("mmcosine", |c| {
        let logits = c.each(|h| mmcosine::logits(h, &c.weights, 10.0))?;
        cross_entropy(&logits, &c.batch.labels, None)
    }),
    ("softtriple", |c| {
        let config = SoftTripleConfig::default();
        c.each(|h| softtriple::loss(h, &c.centers, &c.batch.labels, None, c.classes, &config))
    }),
    ("proxynca", |c| c.each(|h| proxynca::loss(h, &c.weights, &c.batch.labels, None))),
    ("proxyanchor", |c| {
        let config = ProxyAnchorConfig::default();
        c.each(|h| proxyanchor::loss(h, &c.weights, &c.batch.labels, None, &config))
    }),
    ("pmr", |c| c.each(|h| cross_entropy(&c.prototypes.logits(h)?, &c.batch.labels, None))),
    ("mcr competition", |c| {
        let rows: Vec<u32> = (0..c.batch.rows() as u32).collect();
        let mut draws = StepRng::new(3).draws();
        let pairs: Vec<Pairs> = c.logits.values().iter().map(|_| Pairs::draw(&rows, 4, &mut draws)).collect();
        let shares = c.heads();
        let fused = mm_core::model::sum(shares.values())?;
        let permuted = |m: Modality, pairs: &Pairs, live| mcr::permuted_sum(&shares, m, pairs, live);
        Ok(mcr::competition(mcr::Strategy::Greedy, &fused, &pairs, permuted)?.0.expect("many rows"))
    }),
    ("mcr contrast", |c| {
        let embeddings: Vec<Tensor> = c.features.values().iter().map(|h| h.as_tensor().clone()).collect();
        let labels = c.batch.labels.repeat(embeddings.len());
        Ok(mcr::contrast(&Tensor::cat(&embeddings, 0)?, &labels, 0.5)?.expect("several classes"))
    }),
    ("cml", |c| cml::rank_losses(&c.logits.values()[0], &c.fused, &c.batch.labels)?.mean_all()),
    ("reconboost", |c| {
        reconboost::boosting_losses(&c.fused, &c.logits.values()[0], &c.batch.labels, 5.0, 1.0)?.mean_all()
    }),
];

const STATISTICS: [(&str, Statistic); 12] = [
    ("score", Case::scores),
    ("mlb coefficient", |c| Ok(mlb::coefficients(&c.scores()?, 0.8, 5.0))),
    ("amco dependence", |c| amco::dependences(&c.heads(), &c.batch)),
    ("ogm coefficient", |c| Ok(ogm::coefficients(&c.scores()?, 0.8))),
    ("agm coefficient", |c| {
        let losses = agm::log_losses(&c.heads(), &c.batch)?;
        Ok(agm::coefficients(&losses, &vec![1.0; losses.len()], 1.0, 10.0))
    }),
    ("mmpareto direction", |c| {
        let both = mmpareto::combine(&c.gradient, &c.gradient, mmpareto::weights(1.0, -0.5, 2.0), 1.5)?;
        Ok(vec![both.dims()[0] as f64])
    }),
    ("opm probability", |c| Ok(opm::drop_probabilities(&c.scores()?, 0.5, 0.5))),
    ("pmr coefficient", |c| Ok(pmr::coefficients(&c.scores()?).0)),
    ("mla gate", |c| {
        let present = c.logits.map(|_, _| None);
        Ok(vec![mla::decide(&c.heads(), &present, mla::Gate::Row)?.dims()[0] as f64])
    }),
    ("mla projector", |c| {
        let mut p = mm_core::model::to_host(&c.gradient)?;
        let r = vec![0.1; DIM];
        mla::absorb(&mut p, &r, 0.1);
        Ok(p)
    }),
    ("ogm-ge noise", |c| {
        let noise = c.gradient.affine(0.5, 0.0)?;
        Ok(vec![ogm::enhanced(&c.gradient, 0.3, &noise)?.dims()[0] as f64])
    }),
    ("opm drop", |c| {
        let features = c.features.map(|_, h| h.detach());
        let keep = features.map(|m, _| (0..c.batch.rows()).map(|i| m.index() > 0 || i % 2 == 0).collect());
        let edited = opm::drop_features(&features, &keep, &|_, _| true, 0.25)?;
        Ok(vec![edited.features.len() as f64])
    }),
];

fn loss_rows(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, case: &Case, loss: Loss) {
    group.bench_function(BenchmarkId::new(format!("{name} forward"), &case.label), |b| {
        b.iter(|| black_box(loss(case).expect("forward")));
    });
    group.bench_function(BenchmarkId::new(format!("{name} forward+backward"), &case.label), |b| {
        b.iter(|| black_box(loss(case).and_then(|loss| loss.backward()).expect("backward")));
    });
}

fn all(c: &mut Criterion) {
    let cases: Vec<Case> = SHAPES.into_iter().map(|shape| Case::new(shape).expect("a case")).collect();
    assert!(cases.iter().all(|case| case.fused.dtype() == DType::F32));
    let names = LOSSES.iter().map(|(name, _)| *name).chain(STATISTICS.iter().map(|(name, _)| *name));
    for name in names {
        let mut group = c.benchmark_group(name);
        for case in &cases {
            group.throughput(Throughput::Elements(case.batch.rows() as u64));
            loss_rows(&mut group, "cross-entropy", case, plain);
            if let Some((_, loss)) = LOSSES.iter().find(|(n, _)| *n == name) {
                loss_rows(&mut group, name, case, *loss);
            }
            if let Some((_, statistic)) = STATISTICS.iter().find(|(n, _)| *n == name) {
                group.bench_function(BenchmarkId::new(format!("{name} forward"), &case.label), |b| {
                    b.iter(|| black_box(statistic(case).expect("a statistic")));
                });
            }
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600));
    targets = all
}
criterion_main!(benches);
