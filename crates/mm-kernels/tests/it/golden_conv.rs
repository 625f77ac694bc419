//! Convolutions, pools and what goes with them against PyTorch, in f64 and f32, both layouts.
//!
//! The recipe: tests/golden/generate/conv.py. Settings are read from the file, and every case in it is run.

use crate::assert_close;
use crate::golden::{DTYPES, Golden};
use candle_core::{D, Result, Tensor, Var};
use mm_kernels::{Conv1dConfig, Conv2dConfig, PoolConfig, RelativePositions};

/// Every case of an operation with its settings, at least `least` of them.
fn cases(golden: &Golden, op: &str, least: usize) -> Result<Vec<(String, Vec<usize>)>> {
    let mut cases = Vec::new();
    for (key, config) in &golden.0 {
        if let Some(case) = key.strip_suffix(".config").filter(|case| case.starts_with(&format!("{op}."))) {
            let config = config.to_vec1::<i64>()?.into_iter().map(|value| value as usize).collect();
            cases.push((case.to_string(), config));
        }
    }
    assert!(cases.len() >= least, "{op}: {} cases", cases.len());
    Ok(cases)
}

/// An operation on images with channels last, as one with channels first.
fn turned(x: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    f(&x.permute((0, 2, 3, 1))?)?.permute((0, 3, 1, 2))
}

#[test]
fn conv2d() -> Result<()> {
    let golden = Golden::open("conv")?;
    for (case, config) in cases(&golden, "conv2d", 25)? {
        let [sh, sw, ph, pw, dh, dw, groups] = config[..] else { panic!("{case}: {config:?}") };
        let config = Conv2dConfig {
            stride: (sh, sw),
            padding: (ph, pw),
            dilation: (dh, dw),
            groups,
            ..Conv2dConfig::default()
        };
        let bias = golden.0.contains_key(&format!("{case}.bias"));
        let inputs: &[&str] = if bias { &["input", "weight", "bias"] } else { &["input", "weight"] };
        golden.check(&case, inputs, |x| mm_kernels::conv2d(&x[0], &x[1], x.get(2), &config))?;
        golden.check(&case, inputs, |x| {
            turned(&x[0], |image| mm_kernels::conv2d_nhwc(image, &x[1], x.get(2), &config))
        })?;
    }
    Ok(())
}

#[test]
fn conv1d() -> Result<()> {
    let golden = Golden::open("conv")?;
    for (case, config) in cases(&golden, "conv1d", 8)? {
        let [stride, padding, dilation, groups] = config[..] else { panic!("{case}: {config:?}") };
        let config = Conv1dConfig { stride, padding, dilation, groups, ..Conv1dConfig::default() };
        let bias = golden.0.contains_key(&format!("{case}.bias"));
        let inputs: &[&str] = if bias { &["input", "weight", "bias"] } else { &["input", "weight"] };
        golden.check(&case, inputs, |x| mm_kernels::conv1d(&x[0], &x[1], x.get(2), &config))?;
        golden.check(&case, inputs, |x| {
            mm_kernels::conv1d_nlc(&x[0].transpose(1, 2)?, &x[1], x.get(2), &config)?.transpose(1, 2)
        })?;
    }
    Ok(())
}

#[test]
fn pools() -> Result<()> {
    type Op = fn(&Tensor, &PoolConfig) -> Result<Tensor>;
    let golden = Golden::open("conv")?;
    let ops: [(&str, usize, Op, Op); 2] = [
        ("max_pool2d", 10, mm_kernels::max_pool2d, mm_kernels::max_pool2d_nhwc),
        ("avg_pool2d", 5, mm_kernels::avg_pool2d, mm_kernels::avg_pool2d_nhwc),
    ];
    for (op, least, first, last) in ops {
        for (case, config) in cases(&golden, op, least)? {
            let [kh, kw, sh, sw, ph, pw, dh, dw, include] = config[..] else { panic!("{case}: {config:?}") };
            let config = PoolConfig {
                kernel: (kh, kw),
                stride: (sh, sw),
                padding: (ph, pw),
                dilation: (dh, dw),
                count_include_pad: include == 1,
            };
            golden.check(&case, &["input"], |x| first(&x[0], &config))?;
            golden.check(&case, &["input"], |x| turned(&x[0], |image| last(image, &config)))?;
        }
    }
    Ok(())
}

#[test]
fn adaptive_pools() -> Result<()> {
    let golden = Golden::open("conv")?;
    for (case, config) in cases(&golden, "adaptive_avg_pool2d", 5)? {
        let output = (config[0], config[1]);
        golden.check(&case, &["input"], |x| mm_kernels::adaptive_avg_pool2d(&x[0], output))?;
        golden.check(&case, &["input"], |x| {
            turned(&x[0], |image| mm_kernels::adaptive_avg_pool2d_nhwc(image, output))
        })?;
    }
    Ok(())
}

#[test]
fn group_norm() -> Result<()> {
    let golden = Golden::open("conv")?;
    for (case, config) in cases(&golden, "group_norm", 4)? {
        let (inputs, groups) = (["input", "weight", "bias"], config[0]);
        golden.check(&case, &inputs, |x| {
            mm_kernels::group_norm(&x[0], groups, Some(&x[1]), Some(&x[2]), 1e-5)
        })?;
        golden.check(&case, &inputs, |x| {
            let rank = x[0].rank();
            let to_last: Vec<usize> = (0..1).chain(2..rank).chain(1..2).collect();
            let to_first: Vec<usize> = (0..1).chain(rank - 1..rank).chain(1..rank - 1).collect();
            let turned = x[0].permute(to_last)?;
            mm_kernels::group_norm_nhwc(&turned, groups, Some(&x[1]), Some(&x[2]), 1e-5)?.permute(to_first)
        })?;
    }
    Ok(())
}

#[test]
fn batch_norm_over_images() -> Result<()> {
    let golden = Golden::open("conv")?;
    let inputs = ["input", "weight", "bias"];
    let statistics =
        |when: &str| ["mean", "var"].map(|s| golden.get(&format!("batch_norm.running_{s}_{when}")));
    let (before, after) = (statistics("before"), statistics("after"));
    golden.check("batch_norm.eval", &inputs, |x| {
        let [mean, var] = before.map(|s| s.to_dtype(x[0].dtype()));
        mm_kernels::batch_norm_eval(&x[0], &mean?, &var?, Some(&x[1]), Some(&x[2]), 1e-5)
    })?;
    golden.check("batch_norm.train", &inputs, |x| {
        let dtype = x[0].dtype();
        let tol = DTYPES.into_iter().find(|(d, _)| *d == dtype).expect("a tolerance").1;
        let out = mm_kernels::batch_norm_train(&x[0], Some(&x[1]), Some(&x[2]), 1e-5)?;
        for (i, new) in [&out.mean, &out.var_unbiased].into_iter().enumerate() {
            let running = Var::from_tensor(&before[i].to_dtype(dtype)?)?;
            mm_kernels::update_running(&running, new, 0.1)?;
            assert_close("running statistics", running.as_tensor(), after[i], tol)?;
        }
        Ok(out.y)
    })
}

#[test]
fn glu() -> Result<()> {
    let golden = Golden::open("conv")?;
    golden.check("glu.last", &["input"], |x| mm_kernels::glu(&x[0], D::Minus1))?;
    golden.check("glu.middle", &["input"], |x| mm_kernels::glu(&x[0], 1))
}

#[test]
fn embedding() -> Result<()> {
    let golden = Golden::open("conv")?;
    let ids = golden.get("embedding.ids");
    let narrow = ids.to_dtype(candle_core::DType::U32)?;
    for ids in [ids, &narrow] {
        golden.check("embedding.plain", &["table"], |x| mm_kernels::embedding(ids, &x[0], None))?;
        golden.check("embedding.padded", &["table"], |x| mm_kernels::embedding(ids, &x[0], Some(6)))?;
    }
    Ok(())
}

#[test]
fn attention_with_masks() -> Result<()> {
    let golden = Golden::open("conv")?;
    let keep = golden.get("attention.keep");
    golden.check("attention.keys", &["q", "k", "v"], |x| {
        mm_kernels::attention(&x[0], &x[1], &x[2], Some(keep), 3)
    })?;
    golden.check("attention.added", &["q", "k", "v", "mask"], |x| {
        mm_kernels::attention(&x[0], &x[1], &x[2], Some(&x[3]), 3)
    })
}

#[test]
fn attention_relative() -> Result<()> {
    let golden = Golden::open("conv")?;
    let keep = golden.get("attention_relative.keep");
    for (case, mask) in [("plain", None), ("masked", Some(keep))] {
        let inputs = ["q", "k", "v", "p", "content_bias", "position_bias"];
        golden.check(&format!("attention_relative.{case}"), &inputs, |x| {
            let positions = RelativePositions { table: &x[3], content_bias: &x[4], position_bias: &x[5] };
            mm_kernels::attention_relative(&x[0], &x[1], &x[2], &positions, mask, 3)
        })?;
    }
    Ok(())
}
