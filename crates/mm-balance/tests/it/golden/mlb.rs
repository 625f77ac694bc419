use crate::fixture::{Fixture, PRECISIONS, exact, number, rounded};
use crate::nets::{TanhEncoder, boxed, observed, one_step, set};
use candle_core::{DType, Device, Result, Tensor};
use mm_balance::mlb::{self, MlbConfig, Variant};
use mm_balance::multi_loss::MultiLossConfig;
use mm_core::{Batch, Composite, Modal, Mode, Multimodal, ParamStore};
use mm_kernels::cross_entropy;
use mm_testkit::toy::{self, Toy};

fn is_input(key: &str) -> bool {
    let last = key.rsplit('.').next().unwrap_or(key);
    let numbered = |head: &str| last.strip_prefix(head).is_some_and(|n| n.parse::<usize>().is_ok());
    key.contains(".param.")
        || key.contains(".reg3.") && last != "k"
        || matches!(last, "labels" | "alpha_beta")
        || numbered("x")
        || key == "table.r"
}

#[test]
fn mlb() -> Result<()> {
    let golden = Fixture::open("mlb", is_input);
    for (prefix, dtype) in PRECISIONS {
        for modalities in [2, 3] {
            classification(&golden, modalities, &format!("{prefix}.m{modalities}"), dtype)?;
        }
        regression(&golden, &format!("{prefix}.reg3"), dtype)?;
    }
    let ratios = golden.values("table.r");
    for key in golden.under("table.k.") {
        let (alpha, beta) = (number(&key, "alpha"), number(&key, "beta"));
        let k: Vec<f64> = ratios.iter().map(|&r| mlb::coefficient(r, alpha, beta)).collect();
        golden.compare(&format!("table.k.{key}"), &k, 1e-9);
    }
    golden.finish();
    Ok(())
}

/// Our name of a parameter of the toy net.
fn ours(theirs: &str) -> String {
    let (layer, rest) = theirs.split_once('.').expect("layer.parameter");
    if let Some(m) = layer.strip_prefix("enc_") {
        return rest.replace("feat", &format!("encoder.m{m}")).replace("vclassifier", &format!("head.m{m}"));
    }
    match (layer.strip_prefix("fc_").and_then(|l| l.strip_suffix("_lin")), rest) {
        (Some(m), "weight") => format!("fusion.m{m}.weight"),
        _ => format!("fusion.{rest}"),
    }
}

fn net(golden: &Fixture, count: usize, prefix: &str, dtype: DType) -> Result<Toy> {
    let shape = |name: String| golden.shape(&format!("{prefix}.param.{name}"));
    let mut store = ParamStore::new(0, dtype, &Device::Cpu);
    let names = toy::modalities(count)?;
    let encoders = Modal::try_from_fn(count, |m| {
        let shape = shape(format!("enc_{}.feat.weight", m.index()));
        boxed(TanhEncoder::new(store.root().at("encoder").at(names.name(m)), (shape[0], shape[1]), true))
    })?;
    let dims = encoders.map(|_, encoder| encoder.dim());
    let classes = shape("fc_0_lin.bias".into())[0];
    let fusion = toy::split(store.root().at("fusion"), &names, &dims, classes)?;
    let model = Composite::new(names, classes, encoders, Some(fusion))?.with_heads(store.root())?;
    let given = golden.under(&format!("{prefix}.param."));
    assert_eq!(given.len(), store.len());
    for name in given {
        set(&store, &ours(&name), &golden.input(&format!("{prefix}.param.{name}"), dtype))?;
    }
    Ok(Toy { model, store })
}

fn classification(golden: &Fixture, count: usize, prefix: &str, dtype: DType) -> Result<()> {
    let (key, tol) = (|name: &str| format!("{prefix}.{name}"), exact(dtype));
    let toy = net(golden, count, prefix, dtype)?;
    let inputs = Modal::from_fn(count, |m| golden.input(&key(&format!("x{}", m.index())), dtype));
    let batch = Batch::new(inputs, golden.labels(&format!("m{count}.labels")))?;

    let forward = toy.model.forward(&batch, Mode::Eval)?;
    let heads = forward.heads.expect("the net has heads");
    golden.compare(&key("logits_combined"), &forward.fused, tol);
    let mut losses = vec![cross_entropy(&forward.fused, &batch.labels, None)?];
    for (m, logits) in heads.iter() {
        golden.compare(&key(&format!("logits_uni{}", m.index())), logits, tol);
        losses.push(cross_entropy(logits, &batch.labels, None)?);
    }
    golden.compare(&key("ce"), &Tensor::stack(&losses, 0)?, tol);

    // The same losses without coefficients are Multi-Loss.
    let (report, plain) = one_step(&toy, &batch, MultiLossConfig::default().build().expect("valid"))?;
    golden.compare(&key("total_loss"), &report.loss, tol);
    for name in golden.under(&key("grad_pre.")) {
        golden.compare(&key(&format!("grad_pre.{name}")), &plain.gradients[&ours(&name)], tol);
    }

    for case in golden.variants(&key(""), "case") {
        let key = |name: &str| key(&format!("case{case}.{name}"));
        let [alpha, beta_max] = golden.values(&key("alpha_beta"))[..] else { panic!("alpha and beta") };
        // With β_max = 2 the two variants are one; the file means the released one by it.
        let variants =
            if beta_max == 2.0 { vec![Variant::Released, Variant::Paper] } else { vec![Variant::Paper] };
        for variant in variants {
            let config = MlbConfig { alpha, beta_max, variant, ..MlbConfig::default() };
            let (report, modulated) = one_step(&toy, &batch, config.build().expect("valid"))?;
            golden.compare(&key("k"), &observed(&report, "coefficient"), rounded(dtype));
            for name in golden.under(&key("grad_post.")) {
                golden.compare(
                    &key(&format!("grad_post.{name}")),
                    &modulated.gradients[&ours(&name)],
                    rounded(dtype),
                );
            }
            let sums: Vec<f64> = observed(&report, "score").iter().map(|s| s * batch.rows() as f64).collect();
            golden.compare(&format!("{prefix}.score_sum"), &sums, tol);
            golden.compare(&format!("{prefix}.ratio"), &observed(&report, "ratio"), tol);
            golden.compare(&format!("{prefix}.total_loss"), &report.loss, tol);
        }
    }
    Ok(())
}

/// The file's regression case has α = 0.8 and β_max = 5.
fn regression(golden: &Fixture, prefix: &str, dtype: DType) -> Result<()> {
    let target = golden.input(&format!("{prefix}.target"), dtype);
    let mut errors = Vec::new();
    while golden.has(&format!("{prefix}.out{}", errors.len())) {
        let out = golden.input(&format!("{prefix}.out{}", errors.len()), dtype).flatten_all()?;
        errors.push(mm_core::model::to_host(&(out - &target)?.sqr()?.mean_all()?)?[0]);
    }
    golden.compare(&format!("{prefix}.k"), &mlb::regression_coefficients(&errors, 0.8, 5.0), rounded(dtype));
    Ok(())
}
