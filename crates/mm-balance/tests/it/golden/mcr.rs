use crate::fixture::{Fixture, PRECISIONS, exact};
use candle_core::{Result, Tensor};
use mm_balance::mcr::{Pairs, Strategy, bottleneck, competition, contrast, permuted_sum};
use mm_core::model::sum;
use mm_core::{Batch, Modal};
use mm_kernels::linear::linear;

fn is_input(key: &str) -> bool {
    matches!(key, "labels" | "temperature")
        || key.contains(".param.")
        || key.starts_with("m2.")
        || key.starts_with("m3.")
}

#[test]
fn mcr() -> Result<()> {
    let golden = Fixture::open("mcr", is_input);
    let labels = golden.labels("labels");
    let temperature = golden.values("temperature")[0];
    for (prefix, dtype) in PRECISIONS {
        let tol = exact(dtype);
        for count in [2, 3] {
            let key = |name: &str| format!("{prefix}.m{count}.{name}");
            let leaves = golden.leaves(&key("param."), dtype);
            let leaf = |name: &str| leaves[name].as_tensor();
            let pairs: Vec<Pairs> = (0..count)
                .map(|m| Pairs {
                    rows: golden.labels(&format!("m{count}.rows{m}")),
                    partners: golden.labels(&format!("m{count}.partners{m}")),
                })
                .collect();
            let h = Modal::from_fn(count, |m| leaf(&format!("h{}", m.index())).clone());
            let bias = (leaf("bias") / count as f64)?;
            let shares = h.try_map(|m, h| linear(h, leaf(&format!("w{}", m.index())), Some(&bias)))?;
            let fused = sum(shares.values())?;
            let batch = Batch::new(h.clone(), labels.clone())?;

            let mut terms = Vec::new();
            for (name, strategy) in [
                ("greedy", Strategy::Greedy),
                ("independent", Strategy::Independent),
                ("collaborative", Strategy::Collaborative),
            ] {
                let (loss, divergences) = competition(strategy, &fused, &pairs, |m, pairs, live| {
                    permuted_sum(&shares, m, pairs, live)
                })?;
                if name == "greedy" {
                    golden.compare(&key("divergences"), &divergences, tol);
                }
                terms.push((name, loss.expect("pairs of every modality")));
            }
            let embeddings = Tensor::cat(h.values(), 0)?;
            let found = contrast(&embeddings, &labels.repeat(count), temperature)?.expect("several classes");
            golden.compare(&key("contrast"), &found, tol);
            terms.push(("contrast", found));
            let found = bottleneck(&h, &fused, [leaf("hidden"), leaf("wide")], &batch)?;
            golden.compare(&key("bottleneck"), &found, tol);
            terms.push(("bottleneck", found));
            for (term, loss) in terms {
                let gradients = loss.backward()?;
                for name in golden.under(&key(&format!("{term}.grad."))) {
                    let expected = key(&format!("{term}.grad.{name}"));
                    let found = match gradients.get(leaf(&name)) {
                        Some(gradient) => gradient.clone(),
                        None => leaf(&name).zeros_like()?,
                    };
                    // Two players of opposite will leave nothing of the bias but rounding.
                    if term == "greedy" && name == "bias" && count == 2 {
                        golden.compare_zero(&expected, &found, tol);
                    } else {
                        golden.compare(&expected, &found, tol);
                    }
                }
            }
        }
    }
    golden.finish();
    Ok(())
}
