//! SoftTriple, ProxyNCA and ProxyAnchor.

use crate::fixture::{Fixture, PRECISIONS, exact, rounded};
use candle_core::{DType, Result, Tensor, Var};
use mm_balance::proxyanchor::{self, ProxyAnchorConfig};
use mm_balance::proxynca::{self, ProxyNcaConfig};
use mm_balance::softtriple::{self, SoftTripleConfig};
use mm_core::model::to_host;

/// A loss of features and proxies, with the gradients of both.
fn with_gradients(
    x: &Tensor,
    proxies: &Tensor,
    loss: impl Fn(&Tensor, &Tensor) -> Result<Tensor>,
) -> Result<[Tensor; 3]> {
    let (x, proxies) = (Var::from_tensor(x)?, Var::from_tensor(proxies)?);
    let loss = loss(x.as_tensor(), proxies.as_tensor())?;
    let gradients = loss.backward()?;
    let of = |x: &Var| gradients.get(x.as_tensor()).expect("a gradient").clone();
    Ok([loss, of(&x), of(&proxies)])
}

fn compare(golden: &Fixture, prefix: &str, found: &[Tensor; 3], proxies: &str, tol: f64) {
    for (name, found) in ["loss", "grad_x", proxies].into_iter().zip(found) {
        golden.compare(&format!("{prefix}.{name}"), found, tol);
    }
}

#[test]
fn softtriple() -> Result<()> {
    let input = |key: &str| {
        matches!(key.rsplit('.').next().unwrap_or(key), "x" | "fc" | "la_gamma_tau_margin" | "labels")
    };
    let golden = Fixture::open("softtriple", input);
    let labels = golden.labels("labels");
    let classes = 4;
    for (prefix, dtype) in PRECISIONS {
        for case in 0..3 {
            let key = |name: &str| format!("{prefix}.case{case}.{name}");
            let (x, fc) = (golden.input(&key("x"), dtype), golden.input(&key("fc"), dtype));
            let [scale, gamma, tau, margin] = golden.values(&key("la_gamma_tau_margin"))[..] else {
                panic!("four settings")
            };
            let centers = fc.dim(1)? / classes;
            let config =
                SoftTripleConfig { centers, scale, gamma, tau, margin, ..SoftTripleConfig::default() };
            let loss = |x: &Tensor, w: &Tensor| softtriple::loss(x, w, &labels, None, classes, &config);
            let unit = x.broadcast_div(&x.sqr()?.sum_keepdim(1)?.sqrt()?)?;
            golden.compare(&key("x_normalized"), &unit, exact(dtype));
            // The original keeps the regulariser's scale and margins in f32.
            compare(
                &golden,
                &format!("{prefix}.case{case}"),
                &with_gradients(&x, &fc, loss)?,
                "grad_fc",
                rounded(dtype),
            );
            if case == 0 {
                let config = SoftTripleConfig { tau: 0.0, ..config.clone() };
                let loss = |x: &Tensor, w: &Tensor| softtriple::loss(x, w, &labels, None, classes, &config);
                compare(
                    &golden,
                    &format!("{prefix}.pml"),
                    &with_gradients(&x, &fc, loss)?,
                    "grad_fc",
                    exact(dtype),
                );
            }
        }
    }
    golden.finish();
    Ok(())
}

#[test]
fn proxynca() -> Result<()> {
    let input = |key: &str| {
        matches!(key.rsplit('.').next().unwrap_or(key), "x" | "proxies" | "smooth_sx_sp" | "labels")
    };
    let golden = Fixture::open("proxy_nca", input);
    let labels = golden.labels("labels");
    for (prefix, dtype) in PRECISIONS {
        let inputs = |case: usize| {
            let key = |name: &str| format!("{prefix}.case{case}.{name}");
            (golden.input(&key("x"), dtype), golden.input(&key("proxies"), dtype))
        };
        for case in 0..3 {
            let (x, proxies) = inputs(case);
            let settings = golden.values(&format!("{prefix}.case{case}.smooth_sx_sp"));
            let [smoothing, scale_x, scale_proxy] = settings[..] else { panic!("three settings") };
            let config = ProxyNcaConfig { smoothing, scale_x, scale_proxy, ..ProxyNcaConfig::default() };
            let loss = |x: &Tensor, p: &Tensor| proxynca::loss_released(x, p, &labels, None, &config);
            let found = with_gradients(&x, &proxies, loss)?;
            // Smoothed targets are f32 there.
            compare(&golden, &format!("{prefix}.case{case}"), &found, "grad_proxies", rounded(dtype));
        }
        let (x, proxies) = inputs(0);
        let found = with_gradients(&x, &proxies, |x, p| proxynca::loss(x, p, &labels, None))?;
        compare(&golden, &format!("{prefix}.original_own"), &found, "grad_proxies", exact(dtype));
        for scale in [8.0f64, 32.0] {
            let length = scale.sqrt();
            let config = ProxyNcaConfig {
                smoothing: 0.0,
                scale_x: length,
                scale_proxy: length,
                ..ProxyNcaConfig::default()
            };
            let loss = |x: &Tensor, p: &Tensor| proxynca::loss_released(x, p, &labels, None, &config);
            let found = with_gradients(&x, &proxies, loss)?;
            let name = format!("{prefix}.pml_scale{scale}");
            if golden.has(&format!("{name}.loss")) {
                compare(&golden, &name, &found, "grad_proxies", exact(dtype));
            } else {
                // NaN there.
                assert_eq!(dtype, DType::F32);
                let hazard = golden.hazard(&format!("{prefix}.hazard_pml_scale{scale}.grad_x"), dtype);
                assert!(to_host(&hazard)?.iter().any(|g| g.is_nan()));
                for t in &found {
                    assert!(to_host(t)?.iter().all(|g| g.is_finite()));
                }
            }
        }
    }
    golden.finish();
    Ok(())
}

#[test]
fn proxyanchor() -> Result<()> {
    let input = |key: &str| {
        matches!(key.rsplit('.').next().unwrap_or(key), "x" | "proxies" | "margin_alpha" | "labels")
    };
    let golden = Fixture::open("proxy_anchor", input);
    let labels = golden.labels("labels");
    assert!(!labels.contains(&3), "a class is absent");
    for (prefix, dtype) in PRECISIONS {
        for case in 0..2 {
            let key = |name: &str| format!("{prefix}.case{case}.{name}");
            let (x, proxies) = (golden.input(&key("x"), dtype), golden.input(&key("proxies"), dtype));
            let [margin, alpha] = golden.values(&key("margin_alpha"))[..] else { panic!("two settings") };
            let config = ProxyAnchorConfig { margin, alpha, ..ProxyAnchorConfig::default() };
            let loss = |x: &Tensor, p: &Tensor| proxyanchor::loss(x, p, &labels, None, &config);
            let found = with_gradients(&x, &proxies, loss)?;
            compare(&golden, &format!("{prefix}.case{case}"), &found, "grad_proxies", exact(dtype));
            golden.compare(&key("pml.loss"), &found[0], exact(dtype));
        }
    }
    golden.finish();
    Ok(())
}
