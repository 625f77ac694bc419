//! Against the definition, as loops in `f64`.

use super::*;
use crate::StepRng;
use candle_core::Shape;

fn random(len: usize, seed: u64) -> Vec<f32> {
    let mut draws = StepRng::new(seed).draws();
    (0..len).map(|_| draws.normal() as f32).collect()
}

/// Calls `f(x index, weight index, y index)` for every product of the convolution.
fn products(g: &Geometry, mut f: impl FnMut(usize, usize, usize)) {
    for (n, oy, ox) in grid([g.n, g.oh, g.ow]) {
        for (o, ky, kx) in grid([g.co, g.kh, g.kw]) {
            let (Some(row), Some(column)) = (g.row(oy, ky), g.column(ox, kx)) else { continue };
            for i in 0..g.ci_group() {
                let x = ((n * g.h + row) * g.w + column) * g.ci + o / g.co_group() * g.ci_group() + i;
                let w = ((o * g.ci_group() + i) * g.kh + ky) * g.kw + kx;
                f(x, w, ((n * g.oh + oy) * g.ow + ox) * g.co + o);
            }
        }
    }
}

fn grid([a, b, c]: [usize; 3]) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..a * b * c).map(move |i| (i / (b * c), i / c % b, i % c))
}

fn close(what: &str, g: &Geometry, got: &[f32], expected: &[f64]) {
    let scale = expected.iter().fold(1e-30f64, |a, b| a.max(b.abs()));
    for (i, (&got, expected)) in got.iter().zip(expected).enumerate() {
        let off = (f64::from(got) - expected).abs();
        // NaN, which the room was filled with, is not within any distance.
        assert!(off <= 1e-5 * scale, "{what} of {g:?}: element {i} is {got}, expected {expected}");
    }
}

fn check(g: &Geometry) {
    let (x, w) = (random(g.n * g.h * g.w * g.ci, 1), random(g.co * g.ci_group() * g.kh * g.kw, 2));
    let (dy, bias) = (random(g.n * g.oh * g.ow * g.co, 3), random(g.co, 4));
    let (mut y, mut dx, mut dw) = (vec![0.0; dy.len()], vec![0.0; x.len()], vec![0.0; w.len()]);
    products(g, |i, j, k| {
        y[k] += f64::from(x[i]) * f64::from(w[j]);
        dx[i] += f64::from(dy[k]) * f64::from(w[j]);
        dw[j] += f64::from(x[i]) * f64::from(dy[k]);
    });
    for _ in 0..2 {
        let mut got = vec![f32::NAN; y.len()];
        forward(g, &x, &w, None, &mut got).unwrap();
        close("y", g, &got, &y);
        got = vec![f32::NAN; x.len()];
        grad_input(g, &dy, &w, &mut got).unwrap();
        close("dx", g, &got, &dx);
        got = vec![f32::NAN; w.len()];
        grad_weight(g, &x, &dy, &mut got).unwrap();
        close("dw", g, &got, &dw);
    }
    y.iter_mut().enumerate().for_each(|(i, y)| *y += f64::from(bias[i % g.co]));
    let mut got = vec![f32::NAN; y.len()];
    forward(g, &x, &w, Some(&bias), &mut got).unwrap();
    close("y with bias", g, &got, &y);
}

type Case = ([usize; 4], [usize; 4], (usize, usize, usize, usize, usize, usize), usize);

fn geometry((x, w, window, groups): Case) -> Geometry {
    Geometry::new("test", x, &Shape::from(w.to_vec()), window, groups).unwrap()
}

/// The geometries of the tests of `conv::engine`.
const CASES: [Case; 18] = [
    ([2, 5, 6, 3], [4, 3, 3, 3], (1, 1, 1, 1, 1, 1), 1),
    ([2, 7, 8, 5], [33, 5, 3, 3], (2, 2, 1, 1, 1, 1), 1),
    ([1, 9, 40, 17], [70, 17, 3, 3], (1, 1, 1, 1, 1, 1), 1),
    ([3, 13, 11, 1], [20, 1, 7, 7], (2, 2, 3, 3, 1, 1), 1),
    ([2, 12, 13, 3], [64, 3, 7, 7], (2, 2, 3, 3, 1, 1), 1),
    ([2, 6, 7, 20], [40, 20, 1, 1], (1, 1, 0, 0, 1, 1), 1),
    ([2, 6, 7, 20], [40, 20, 1, 1], (2, 2, 0, 0, 1, 1), 1),
    ([2, 6, 9, 12], [24, 4, 3, 3], (1, 2, 2, 1, 2, 1), 3),
    ([2, 8, 9, 6], [12, 1, 3, 3], (2, 1, 1, 1, 1, 2), 6),
    ([2, 1, 37, 40], [40, 1, 1, 31], (1, 1, 0, 15, 1, 1), 40),
    ([1, 1, 300, 17], [17, 1, 1, 4], (2, 2, 0, 3, 2, 2), 17),
    ([1, 3, 2, 4], [5, 4, 5, 5], (1, 1, 2, 2, 1, 1), 1),
    ([2, 1, 50, 1], [16, 1, 1, 10], (5, 5, 0, 0, 1, 1), 1),
    ([2, 1, 23, 24], [48, 24, 1, 3], (2, 2, 0, 0, 1, 1), 1),
    ([2, 1, 19, 32], [32, 2, 1, 16], (1, 1, 0, 8, 1, 1), 16),
    ([1, 10, 10, 4], [6, 4, 2, 2], (3, 3, 0, 0, 1, 1), 1),
    ([1, 4, 4, 2], [3, 2, 1, 1], (3, 3, 2, 2, 1, 1), 1),
    ([0, 4, 4, 2], [3, 2, 3, 3], (1, 1, 1, 1, 1, 1), 1),
];

#[test]
fn equals_the_definition() {
    for case in CASES {
        check(&geometry(case));
    }
}

/// Sizes with whole blocks of channels, each of which the library gives to its fastest implementation.
#[test]
fn equals_the_definition_in_blocks() {
    for case in [
        ([2, 14, 15, 64], [64, 64, 3, 3], (1, 1, 1, 1, 1, 1), 1),
        ([2, 15, 14, 64], [96, 64, 3, 3], (2, 2, 1, 1, 1, 1), 1),
        ([2, 14, 14, 64], [128, 64, 1, 1], (2, 2, 0, 0, 1, 1), 1),
        ([2, 7, 7, 520], [64, 520, 3, 3], (1, 1, 1, 1, 1, 1), 1),
    ] {
        check(&geometry(case));
    }
}

/// Any thread may make, use and share a convolution, in pools of any size, inside and outside of rayon.
#[test]
fn equals_the_definition_from_several_threads() {
    let three = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    let cases = [CASES[1], CASES[7], CASES[9]].map(geometry);
    std::thread::scope(|scope| {
        for i in 0..3 {
            let (cases, three) = (&cases, &three);
            scope.spawn(move || {
                for g in cases.iter().cycle().skip(i).take(6) {
                    check(g);
                    three.install(|| check(g));
                }
            });
        }
    });
}

#[test]
fn two_runs_give_the_same_bits() {
    let g = geometry(([3, 14, 15, 32], [64, 32, 3, 3], (1, 1, 1, 1, 1, 1), 1));
    let (x, dy) = (random(g.n * g.h * g.w * g.ci, 1), random(g.n * g.oh * g.ow * g.co, 3));
    let run = || {
        let mut dw = vec![0.0; g.co * g.ci * g.kh * g.kw];
        grad_weight(&g, &x, &dy, &mut dw).unwrap();
        dw
    };
    assert_eq!(run(), run());
}

#[test]
#[should_panic(expected = "the weight has the size of Geometry")]
fn a_length_that_does_not_fit_reaches_no_library() {
    let g = geometry(CASES[0]);
    let x = vec![0.0; g.n * g.h * g.w * g.ci];
    let _ = forward(&g, &x, &[0.0; 3], None, &mut vec![0.0; g.n * g.oh * g.ow * g.co]);
}

#[test]
fn an_error_names_the_function_and_the_geometry() {
    let g = Geometry { stride: (0, 1), ..geometry(CASES[0]) };
    let (x, w) = (vec![0.0; g.n * g.h * g.w * g.ci], vec![0.0; g.co * g.ci * g.kh * g.kw]);
    let error = forward(&g, &x, &w, None, &mut vec![0.0; g.n * g.oh * g.ow * g.co]).unwrap_err().to_string();
    let start = "onednn: dnnl_dilated_convolution_forward_desc_init failed: invalid arguments (2), ";
    assert!(error.starts_with(start), "{error}");
    assert!(error.contains("for the Forward of Geometry { n: 2, h: 5, w: 6, ci: 3"), "{error}");
}

/// `cargo test --release -p mm-kernels --features onednn -- --ignored --nocapture onednn::tests::speed`
#[test]
#[ignore = "prints times"]
fn speed() {
    for case in [
        ([16, 56, 56, 64], [64, 64, 3, 3], (1, 1, 1, 1, 1, 1), 1),
        ([16, 224, 224, 3], [64, 3, 7, 7], (2, 2, 3, 3, 1, 1), 1),
        ([16, 14, 14, 256], [256, 256, 3, 3], (1, 1, 1, 1, 1, 1), 1),
        ([16, 56, 56, 64], [128, 64, 1, 1], (2, 2, 0, 0, 1, 1), 1),
        ([16, 1, 200, 512], [512, 1, 1, 31], (1, 1, 0, 15, 1, 1), 512),
    ] {
        let g = geometry(case);
        let (x, w) = (random(g.n * g.h * g.w * g.ci, 1), random(g.co * g.ci_group() * g.kh * g.kw, 2));
        let dy = random(g.n * g.oh * g.ow * g.co, 3);
        let (mut y, mut dx, mut dw) = (dy.clone(), x.clone(), w.clone());
        let flop = 2.0 * (dy.len() * g.ci_group() * g.kh * g.kw) as f64;
        let time = |kind: Kind, f: &mut dyn FnMut()| {
            let best = (0..8)
                .map(|_| {
                    let start = std::time::Instant::now();
                    f();
                    start.elapsed().as_secs_f64()
                })
                .fold(f64::MAX, f64::min);
            let (engine, attributes) = (Engine::new().unwrap(), Attributes::new().unwrap());
            let name = choose(&engine, &attributes, &g, kind).ok().unwrap().0.name().ok().unwrap();
            println!("{kind:?}: {:.3} ms, {:.0} GFLOP/s, {name}", best * 1e3, flop / best / 1e9);
        };
        println!("{case:?}, {} threads", rayon::current_num_threads());
        time(Kind::Forward, &mut || forward(&g, &x, &w, None, &mut y).unwrap());
        time(Kind::GradInput, &mut || grad_input(&g, &dy, &w, &mut dx).unwrap());
        time(Kind::GradWeight, &mut || grad_weight(&g, &x, &dy, &mut dw).unwrap());
    }
}
