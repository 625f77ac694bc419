//! A file that several methods share: CML, UMT and the average of unimodal models.

use crate::fixture::{PRECISIONS, exact};
use candle_core::{Result, Tensor, Var};
use mm_balance::ensemble::{Average, average};
use mm_balance::{cml, umt};
use mm_core::model::to_host;
use mm_testkit::Golden;

#[test]
fn cml_and_ensembles() -> Result<()> {
    let golden = Golden::open("misc");
    let labels = golden.labels("labels");
    for (prefix, dtype) in PRECISIONS {
        let (key, tol) = (|name: &str| format!("{prefix}.{name}"), exact(dtype));
        let input = |name: &str| golden.tensor(&key(name)).to_dtype(dtype);
        let (more, fewer) =
            (Var::from_tensor(&input("cml_bb.out_s")?)?, Var::from_tensor(&input("cml_bb.out_p")?)?);
        let best = |x: &Tensor| x.argmax(1)?.to_vec1::<u32>();
        let keep = cml::kept(&best(&fewer)?, &best(&more)?, &labels);
        golden.compare(&key("cml_rank_formula.keep_mask"), &keep, tol);
        let loss = cml::rank_losses(fewer.as_tensor(), more.as_tensor(), &labels)?.sum_all()?;
        golden.compare(&key("cml_rank_formula.rank_loss"), &loss, tol);
        let gradients = loss.backward()?;
        for (name, x) in [("s", &more), ("p", &fewer)] {
            let gradient = gradients.get(x.as_tensor()).expect("a gradient");
            golden.compare(&key(&format!("cml_rank_formula.grad_{name}")), gradient, tol);
        }

        let students =
            [Var::from_tensor(&input("umt.student0")?)?, Var::from_tensor(&input("umt.student1")?)?];
        let weight = golden.scalar(&key("umt.lambda_"));
        let mut losses = Vec::new();
        for (m, student) in students.iter().enumerate() {
            losses.push(umt::distillation(student.as_tensor(), &input(&format!("umt.teacher{m}"))?, None)?);
        }
        let loss = (mm_core::model::sum(&losses)? * weight)?;
        golden.compare(&key("umt.loss"), &loss, tol);
        let gradients = loss.backward()?;
        for (m, student) in students.iter().enumerate() {
            let gradient = gradients.get(student.as_tensor()).expect("a gradient");
            golden.compare(&key(&format!("umt.grad{m}")), gradient, tol);
        }

        let members = [to_host(&input("ume.logits0")?)?, to_host(&input("ume.logits1")?)?];
        let expected = input("ume.mean_probs")?;
        let (rows, classes) = expected.dims2()?;
        let averaged = |average_: Average| -> Result<Tensor> {
            let mut all = Vec::new();
            for row in 0..rows {
                let row = row * classes..(row + 1) * classes;
                let logits = average(&[&members[0][row.clone()], &members[1][row]], average_);
                all.extend(logits.map_err(candle_core::Error::wrap)?);
            }
            mm_kernels::softmax_last(&Tensor::from_vec(all, (rows, classes), &candle_core::Device::Cpu)?)
        };
        golden.compare(&key("ume.mean_probs"), &averaged(Average::Mean)?, tol);
        // Averages of logits and of their logarithmic softmaxes differ by a constant in each row.
        let mean = mm_kernels::softmax_last(&input("ume.mean_logits")?)?;
        mm_testkit::assert_close(&averaged(Average::LogMean)?.to_dtype(dtype)?, &mean, tol);
    }
    for prefix in ["f64.cml_bb.", "f32.cml_bb."] {
        golden.skip(prefix, "another library's form of the ranking loss");
    }
    golden.skip("relearn.", "another method's");
    golden.finish();
    Ok(())
}
