//! Convolutions and what stands around them, at the shapes of real networks: ResNet-18, Conformer, wav2vec 2.0.
//!
//! `cargo bench -p mm-kernels --bench conv -- layer2` runs the rows of one name, `-- --quick` all of them roughly. Rows are
//! `<group>/<layer: input to output>/<forward or both>`, where `both` is forward and backward. The elements of the
//! throughput are floating point operations, so that `Gelem/s` reads as GFLOP/s: two for each product, three times those
//! of forward in `both`, and twice where the input is data and wants no gradient. Of a block only the convolutions are
//! counted. All is f32 on the CPU.
//!
//! Set `RAYON_NUM_THREADS` - without it candle counts the cores in every product - and let the allocator keep freed blocks
//! (`MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=1000000000`) - without it results are mapped anew each time.

use candle_core::{DType, Device, Result, Tensor, Var};
use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use mm_kernels::{
    BlockConfig, Conv1dConfig, Conv2dConfig, ConvNorm, PoolConfig, RelativePositions, Shortcut, StepRng,
    attention_relative, conv_norm_pool, conv1d_nlc, conv2d_nhwc, linear, residual_block,
};
use rayon::ThreadPoolBuilder;
use std::hint::black_box;
use std::time::Duration;

/// The batch of the networks over images and of the Conformer.
const BATCH: usize = 16;

fn normal(shape: &[usize], seed: u64) -> Result<Tensor> {
    let mut draws = StepRng::new(seed).draws();
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| draws.normal() as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu)
}

/// A function of some tensors, of which the first is its input and the others are parameters.
struct Row<'a> {
    group: &'a str,
    name: String,
    /// Products of numbers in a forward pass.
    products: usize,
    /// Whether the input wants no gradient.
    data: bool,
    shapes: Vec<Vec<usize>>,
    f: &'a (dyn Fn(&[Tensor]) -> Result<Tensor> + Sync),
}

impl Row<'_> {
    /// Measures it, on a pool of `threads` if they are given.
    fn run(&self, c: &mut Criterion, threads: Option<usize>) -> Result<()> {
        let plain: Vec<Tensor> =
            self.shapes.iter().zip(1..).map(|(shape, seed)| normal(shape, seed)).collect::<Result<_>>()?;
        let vars: Vec<Var> = plain.iter().map(Var::from_tensor).collect::<Result<_>>()?;
        let mut leaves: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        if self.data {
            leaves[0] = plain[0].clone();
        }
        let pool =
            threads.map(|n| ThreadPoolBuilder::new().num_threads(n).build().expect("a pool of threads"));
        let mut group = c.benchmark_group(self.group);
        group.sampling_mode(SamplingMode::Flat);
        let mut row = |what: &str, factor: usize, f: &(dyn Fn() + Sync)| {
            group.throughput(Throughput::Elements((2 * factor * self.products) as u64));
            group.bench_function(BenchmarkId::new(&self.name, what), |b| match &pool {
                Some(pool) => b.iter(|| pool.install(f)),
                None => b.iter(f),
            });
        };
        row("forward", 1, &|| {
            black_box((self.f)(&plain).expect("forward"));
        });
        // The gradient of a result starts with ones.
        row("both", if self.data { 2 } else { 3 }, &|| {
            black_box((self.f)(&leaves).and_then(|y| y.backward()).expect("forward and backward"));
        });
        group.finish();
        Ok(())
    }
}

/// A convolution of images, `kernel` wide and padded by half of it.
#[derive(Clone, Copy)]
struct Conv {
    name: &'static str,
    size: (usize, usize),
    channels: (usize, usize),
    kernel: usize,
    stride: usize,
}

impl Conv {
    fn places(&self) -> usize {
        let out = |n: usize| (n + 2 * (self.kernel / 2) - self.kernel) / self.stride + 1;
        out(self.size.0) * out(self.size.1)
    }

    fn products(&self, batch: usize) -> usize {
        batch * self.places() * self.channels.0 * self.channels.1 * self.kernel * self.kernel
    }

    fn shapes(&self, batch: usize) -> Vec<Vec<usize>> {
        let (ci, co) = self.channels;
        vec![vec![batch, self.size.0, self.size.1, ci], vec![co, ci, self.kernel, self.kernel]]
    }

    fn run(&self, c: &mut Criterion, group: &str, batch: usize, name: &str) -> Result<()> {
        self.row(group, batch, name, &|x| self.forward(x)).run(c, None)
    }

    fn row<'a>(
        &self,
        group: &'a str,
        batch: usize,
        name: &str,
        f: &'a (dyn Fn(&[Tensor]) -> Result<Tensor> + Sync),
    ) -> Row<'a> {
        let (name, shapes) = (name.to_string(), self.shapes(batch));
        Row { group, name, products: self.products(batch), data: self.channels.0 <= 3, shapes, f }
    }

    fn forward(&self, x: &[Tensor]) -> Result<Tensor> {
        let padding = self.kernel / 2;
        let config = Conv2dConfig {
            stride: (self.stride, self.stride),
            padding: (padding, padding),
            ..Conv2dConfig::default()
        };
        conv2d_nhwc(&x[0], &x[1], None, &config)
    }
}

/// An input of ResNet-18: channels, size, and the sizes at the beginning of each stage.
struct Input {
    name: &'static str,
    channels: usize,
    size: (usize, usize),
    stages: [(usize, usize); 4],
}

const INPUTS: [Input; 2] = [
    Input {
        name: "3x224x224",
        channels: 3,
        size: (224, 224),
        stages: [(56, 56), (56, 56), (28, 28), (14, 14)],
    },
    Input {
        name: "1x257x188",
        channels: 1,
        size: (257, 188),
        stages: [(65, 47), (65, 47), (33, 24), (17, 12)],
    },
];

/// The first convolution, the stride of 2, and the projection of each stage.
fn stage(input: &Input, s: usize) -> [Conv; 3] {
    const NAMES: [[&str; 3]; 4] = [
        ["layer1 3x3", "layer1 3x3", "layer1 3x3"],
        ["layer2 3x3 stride 2", "layer2 3x3", "layer2 1x1 stride 2"],
        ["layer3 3x3 stride 2", "layer3 3x3", "layer3 1x1 stride 2"],
        ["layer4 3x3 stride 2", "layer4 3x3", "layer4 1x1 stride 2"],
    ];
    let (wide, size, stride) = (64 << s, input.stages[s], if s == 0 { 1 } else { 2 });
    let before = if s == 0 { 64 } else { wide / 2 };
    let inside = (size.0.div_ceil(stride), size.1.div_ceil(stride));
    let conv =
        |k: usize, size, channels, kernel, stride| Conv { name: NAMES[s][k], size, channels, kernel, stride };
    [
        conv(0, size, (before, wide), 3, stride),
        conv(1, inside, (wide, wide), 3, 1),
        conv(2, size, (before, wide), 1, stride),
    ]
}

fn stem(input: &Input) -> Conv {
    Conv { name: "stem 7x7 stride 2", size: input.size, channels: (input.channels, 64), kernel: 7, stride: 2 }
}

fn convolutions(c: &mut Criterion) -> Result<()> {
    for input in &INPUTS {
        let group = format!("resnet18 {}", input.name);
        let stem = stem(input);
        stem.run(c, &group, BATCH, stem.name)?;
        for s in 0..4 {
            let convs = stage(input, s);
            // The two convolutions of the first stage are alike, and its shortcut is the identity.
            for conv in &convs[..if s == 0 { 1 } else { 3 }] {
                conv.run(c, &group, BATCH, conv.name)?;
            }
        }
    }
    Ok(())
}

/// The first block of a stage.
struct Block {
    convs: [Conv; 3],
    projected: bool,
    running: Vec<[Tensor; 2]>,
}

impl Block {
    fn new(input: &Input, s: usize) -> Result<Self> {
        let convs = stage(input, s);
        let running = convs.iter().map(|conv| running(conv.channels.1)).collect::<Result<_>>()?;
        Ok(Self { convs, projected: s > 0, running })
    }

    fn used(&self) -> &[Conv] {
        &self.convs[..if self.projected { 3 } else { 2 }]
    }

    fn products(&self, batch: usize) -> usize {
        self.used().iter().map(|conv| conv.products(batch)).sum()
    }

    fn shapes(&self, batch: usize) -> Vec<Vec<usize>> {
        let mut shapes = vec![self.convs[0].shapes(batch).swap_remove(0)];
        for conv in self.used() {
            shapes.extend([conv.shapes(batch).swap_remove(1), vec![conv.channels.1], vec![conv.channels.1]]);
        }
        shapes
    }

    fn forward(&self, x: &[Tensor]) -> Result<Tensor> {
        let layer = |k: usize| layer(&x[1 + 3 * k..], &self.running[k], &self.convs[k]);
        let shortcut = if self.projected { Shortcut::Projection(layer(2)) } else { Shortcut::Identity };
        Ok(residual_block(&x[0], &[layer(0), layer(1)], shortcut, &BlockConfig::default())?.y)
    }
}

fn running(channels: usize) -> Result<[Tensor; 2]> {
    let mean = Tensor::zeros(channels, DType::F32, &Device::Cpu)?;
    Ok([mean.clone(), mean.ones_like()?])
}

fn layer<'a>(p: &'a [Tensor], running: &'a [Tensor; 2], conv: &Conv) -> ConvNorm<'a> {
    ConvNorm {
        weight: &p[0],
        scale: &p[1],
        shift: &p[2],
        running: (&running[0], &running[1]),
        stride: conv.stride,
        padding: conv.kernel / 2,
    }
}

fn blocks(c: &mut Criterion) -> Result<()> {
    for input in &INPUTS {
        let group = format!("resnet18 {} blocks", input.name);
        let (stem, running) = (stem(input), running(64)?);
        let f = |x: &[Tensor]| {
            let layer = layer(&x[1..], &running, &stem);
            Ok(conv_norm_pool(&x[0], &layer, &PoolConfig::square(3, 2, 1), &BlockConfig::default())?.y)
        };
        let mut row = stem.row(&group, BATCH, "conv_norm_pool stem", &f);
        row.shapes.extend([vec![64], vec![64]]);
        row.run(c, None)?;
        for s in 0..4 {
            let block = Block::new(input, s)?;
            let row = Row {
                group: &group,
                name: format!("residual_block layer{}", s + 1),
                products: block.products(BATCH),
                data: false,
                shapes: block.shapes(BATCH),
                f: &|x| block.forward(x),
            };
            row.run(c, None)?;
        }
    }
    Ok(())
}

/// A layer of 512 with 8 heads and a kernel of 31, on sequences of 200.
fn conformer(c: &mut Criterion) -> Result<()> {
    let (group, b, n, d) = ("conformer d512 h8 k31 length 200", BATCH, 200, 512);
    let config = Conv1dConfig { padding: 15, groups: d, ..Conv1dConfig::default() };
    let depthwise = Row {
        group,
        name: "conv1d_nlc depthwise k31".into(),
        products: b * n * d * 31,
        data: false,
        shapes: vec![vec![b, n, d], vec![d, 1, 31]],
        f: &|x| conv1d_nlc(&x[0], &x[1], None, &config),
    };
    let expand = Row {
        group,
        name: "linear 512 to 2048".into(),
        products: b * n * d * 2048,
        data: false,
        shapes: vec![vec![b, n, d], vec![2048, d], vec![2048]],
        f: &|x| linear(&x[0], &x[1], Some(&x[2])),
    };
    let attention = Row {
        group,
        name: "attention_relative".into(),
        // Queries with keys, queries with positions, weights with values.
        products: b * n * d * (n + (2 * n - 1) + n),
        data: false,
        shapes: vec![
            vec![b, n, d],
            vec![b, n, d],
            vec![b, n, d],
            vec![2 * n - 1, d],
            vec![8, d / 8],
            vec![8, d / 8],
        ],
        f: &|x| {
            let positions = RelativePositions { table: &x[3], content_bias: &x[4], position_bias: &x[5] };
            attention_relative(&x[0], &x[1], &x[2], &positions, None, 8)
        },
    };
    [depthwise, expand, attention].iter().try_for_each(|row| row.run(c, None))
}

/// The feature extractor: one second of audio at 16 kHz, 8 rows of it.
fn wav2vec2(c: &mut Criterion) -> Result<()> {
    for (name, length, channels, kernel, stride) in [
        ("1 to 512 k10 s5", 16_000, 1, 10, 5),
        ("512 to 512 k3 s2, the first", 3199, 512, 3, 2),
        ("512 to 512 k3 s2, the last", 399, 512, 3, 2),
        ("512 to 512 k2 s2, the first", 199, 512, 2, 2),
    ] {
        let config = Conv1dConfig { stride, ..Conv1dConfig::default() };
        let row = Row {
            group: "wav2vec2 1 s of 16 kHz",
            name: name.into(),
            products: 8 * ((length - kernel) / stride + 1) * channels * 512 * kernel,
            data: channels == 1,
            shapes: vec![vec![8, length, channels], vec![512, channels, kernel]],
            f: &|x| conv1d_nlc(&x[0], &x[1], None, &config),
        };
        row.run(c, None)?;
    }
    Ok(())
}

/// How the speed grows with the batch and with threads.
fn scaling(c: &mut Criterion) -> Result<()> {
    let [_, conv, _] = stage(&INPUTS[0], 1);
    for batch in [1, 2, 4, 8, 16, 32, 64] {
        conv.run(c, "batch", batch, &format!("layer2 3x3, batch {batch}"))?;
    }
    let block = Block::new(&INPUTS[0], 1)?;
    for threads in [1, 2] {
        let f = |x: &[Tensor]| conv.forward(x);
        conv.row("threads", BATCH, &format!("layer2 3x3, threads {threads}"), &f).run(c, Some(threads))?;
        let row = Row {
            group: "threads",
            name: format!("residual_block layer2, threads {threads}"),
            products: block.products(BATCH),
            data: false,
            shapes: block.shapes(BATCH),
            f: &|x| block.forward(x),
        };
        row.run(c, Some(threads))?;
    }
    Ok(())
}

fn all(c: &mut Criterion) {
    for part in [convolutions, blocks, conformer, wav2vec2, scaling] {
        part(c).expect("bench");
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600)).without_plots();
    targets = all
}
criterion_main!(benches);
