use crate::fixture::{Fixture, PRECISIONS, exact};
use candle_core::{DType, Result, Var};
use mm_balance::cggm;
use mm_kernels::linear::linear;

fn is_input(key: &str) -> bool {
    let last = key.rsplit('.').next().unwrap_or(key);
    key.contains(".param.")
        || matches!(last, "x0" | "x1") && !key.contains(".grad.")
        || last.starts_with("logits")
        || matches!(key, "labels" | "improvements")
}

/// A bound of 5, the default.
#[test]
fn cggm() -> Result<()> {
    let golden = Fixture::open("cggm", is_input);
    let labels = golden.labels("labels");
    let cases: Vec<Vec<f64>> =
        golden.values("improvements").chunks(2).map(|deltas| cggm::balance(deltas, 5.0)).collect();
    golden.compare("balance", &cases.concat(), exact(DType::F64));
    for (prefix, dtype) in PRECISIONS {
        let (key, tol) = (|name: &str| format!("{prefix}.{name}"), exact(dtype));
        let leaf = |name: &str| Var::from_tensor(&golden.input(&key(name), dtype));
        let x = [leaf("x0")?, leaf("x1")?];
        let blocks = [leaf("param.block0")?, leaf("param.block1")?];
        let bias = leaf("param.bias")?;
        let fused = (linear(&x[0], &blocks[0], None)? + linear(&x[1], &blocks[1], Some(bias.as_tensor()))?)?;
        golden.compare(&key("fused"), &fused, tol);
        let mut direction = None;
        for (m, h) in x.iter().enumerate() {
            let logits = golden.input(&key(&format!("logits{m}")), dtype);
            let cosine = cggm::cosine(h.as_tensor(), &fused, &logits, &labels)?;
            golden.compare(&key(&format!("cosine{m}")), &cosine, tol);
            let b = cases[0][m];
            let term = cosine.affine(-b / 2.0, b.abs() / 2.0)?;
            direction = Some(match direction {
                Some(sum) => (term + sum)?,
                None => term,
            });
        }
        let direction = direction.expect("two modalities");
        golden.compare(&key("direction"), &direction, tol);
        let gradients = direction.backward()?;
        let leaves =
            [("x0", &x[0]), ("x1", &x[1]), ("block0", &blocks[0]), ("block1", &blocks[1]), ("bias", &bias)];
        for (name, leaf) in leaves {
            let gradient = gradients.get(leaf.as_tensor()).expect("the loss depends on it");
            golden.compare(&key(&format!("grad.{name}")), gradient, tol);
        }
    }
    golden.finish();
    Ok(())
}
