//! What an update shares, rejects and leaves alone. Its numbers are in `golden`.

use crate::{assert_close, message, normal, values};
use candle_core::{DType, Device, Result, Tensor, Var};
use mm_kernels::{AdamStep, SgdStep, adam_step, adamw_step, sgd_step, update_running};

fn var(shape: &[usize], seed: u64) -> Result<Var> {
    Var::from_tensor(&normal(shape, seed)?)
}

#[test]
fn an_update_is_seen_through_every_handle_and_by_nothing_else() -> Result<()> {
    let p = var(&[3, 2], 1)?;
    let (handle, view, copy) = (p.as_tensor().clone(), p.as_detached_tensor(), p.as_tensor().copy()?);
    let g = normal(&[3, 2], 2)?;
    let before = values(&copy)?;
    sgd_step(&p, &g, None, &SgdStep { lr: 0.5, ..SgdStep::default() })?;
    let expected: Vec<f64> = before.iter().zip(values(&g)?).map(|(p, g)| p - 0.5 * g).collect();
    assert_eq!(values(&handle)?, expected);
    assert_eq!(values(&view)?, expected);
    assert_eq!(values(p.as_tensor())?, expected);
    assert_eq!(values(&copy)?, before);
    Ok(())
}

#[test]
fn a_gradient_need_not_be_contiguous() -> Result<()> {
    let (p, q) = (var(&[3, 2], 1)?, var(&[3, 2], 1)?);
    let turned = normal(&[2, 3], 2)?.t()?;
    let (m, v) =
        (Var::zeros((3, 2), DType::F64, &Device::Cpu)?, Var::zeros((3, 2), DType::F64, &Device::Cpu)?);
    adam_step(&p, &turned, &m, &v, &AdamStep::default())?;
    let (m, v) =
        (Var::zeros((3, 2), DType::F64, &Device::Cpu)?, Var::zeros((3, 2), DType::F64, &Device::Cpu)?);
    adam_step(&q, &turned.contiguous()?, &m, &v, &AdamStep::default())?;
    assert_eq!(values(&p)?, values(&q)?);
    Ok(())
}

#[test]
fn a_gradient_scale_equals_a_scaled_gradient() -> Result<()> {
    let g = normal(&[4], 2)?;
    let cfg = AdamStep { weight_decay: 0.1, ..AdamStep::default() };
    for decoupled in [false, true] {
        let mut results = Vec::new();
        for (g, grad_scale) in [(g.clone(), 0.3), ((&g * 0.3)?, 1.0)] {
            let (p, m, v) = (var(&[4], 1)?, var(&[4], 3)?, Var::from_tensor(&normal(&[4], 4)?.sqr()?)?);
            adam_step(&p, &g, &m, &v, &AdamStep { grad_scale, decoupled, step: 5, ..cfg })?;
            let buffer = var(&[4], 5)?;
            let sgd = SgdStep {
                momentum: 0.9,
                nesterov: true,
                weight_decay: 0.1,
                grad_scale,
                ..SgdStep::default()
            };
            sgd_step(&p, &g, Some(&buffer), &sgd)?;
            results.push(Tensor::cat(&[p.as_tensor(), m.as_tensor(), v.as_tensor(), buffer.as_tensor()], 0)?);
        }
        assert_close("scaled", &results[0], &results[1], 1e-14)?;
    }
    Ok(())
}

#[test]
fn the_first_step_overwrites_the_buffer() -> Result<()> {
    let p = var(&[4], 1)?;
    let g = normal(&[4], 2)?;
    let buffer = Var::from_tensor(&Tensor::full(f64::NAN, 4, &Device::Cpu)?)?;
    let cfg = SgdStep { momentum: 0.9, dampening: 0.5, first: true, ..SgdStep::default() };
    sgd_step(&p, &g, Some(&buffer), &cfg)?;
    assert_eq!(values(&buffer)?, values(&g)?);
    Ok(())
}

#[test]
fn nothing_may_share_storage_with_what_is_written() -> Result<()> {
    let p = var(&[4], 1)?;
    let before = values(&p)?;
    let alias = p.as_detached_tensor();
    assert!(message(sgd_step(&p, &alias, None, &SgdStep::default())).contains("shares storage"));
    let cfg = SgdStep { momentum: 0.9, ..SgdStep::default() };
    assert!(message(sgd_step(&p, &normal(&[4], 2)?, Some(&p), &cfg)).contains("shares storage"));
    let v = var(&[4], 3)?;
    assert!(
        message(adam_step(&p, &normal(&[4], 2)?, &p, &v, &AdamStep::default())).contains("shares storage")
    );
    assert_eq!(values(&p)?, before);
    Ok(())
}

#[test]
fn wrong_settings_and_shapes_are_errors() -> Result<()> {
    let (p, g) = (var(&[4], 1)?, normal(&[4], 2)?);
    let momentum = SgdStep { momentum: 0.9, ..SgdStep::default() };
    assert!(message(sgd_step(&p, &g, None, &momentum)).contains("momentum 0.9 needs a buffer"));
    let nesterov = SgdStep { nesterov: true, ..SgdStep::default() };
    assert!(message(sgd_step(&p, &g, None, &nesterov)).contains("Nesterov"));
    let short = normal(&[3], 2)?;
    assert!(message(sgd_step(&p, &short, None, &SgdStep::default())).contains("grad [3]"));
    let (m, v) = (var(&[4], 1)?, var(&[3], 1)?);
    assert!(message(adam_step(&p, &g, &m, &v, &AdamStep::default())).contains("v [3]"));
    let zeroth = AdamStep { step: 0, ..AdamStep::default() };
    assert!(message(adamw_step(&p, &g, &m, &m, &zeroth)).contains("count from 1"));
    let half = p.to_dtype(DType::F16)?;
    let error = message(sgd_step(&Var::from_tensor(&half)?, &half.copy()?, None, &SgdStep::default()));
    assert!(error.contains("sgd_step") && error.contains("F16"), "{error}");
    let mixed = g.to_dtype(DType::F32)?;
    let error = message(sgd_step(&p, &mixed, None, &SgdStep::default()));
    assert!(error.contains("sgd_step") && error.contains("F32") && error.contains("F64"), "{error}");
    Ok(())
}

#[test]
fn running_statistics_move_by_the_momentum() -> Result<()> {
    let running = Var::new(&[1f32, 2.0], &Device::Cpu)?;
    update_running(&running, &Tensor::new(&[3f32, 6.0], &Device::Cpu)?, 0.25)?;
    assert_eq!(running.to_vec1::<f32>()?, [1.5, 3.0]);
    assert!(message(update_running(&running, &running.copy()?, 1.5)).contains("[0, 1]"));
    assert!(message(update_running(&running, &running.narrow(0, 0, 1)?, 0.5)).contains("shape"));
    Ok(())
}
