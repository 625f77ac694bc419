//! The training loop, to be read in one sitting.
//!
//! Per epoch: a seeded order of the rows, one [`TrainStep`](mm_balance::TrainStep) per batch, an evaluation of the
//! selection part. The best epoch by that part is reported on the test part, once. Randomness is a function of (seed,
//! epoch, step), so a run that is stopped anywhere and resumed gives the same bits as one that is not.

use crate::build::{Built, begin};
use crate::checkpoint::{self, Best, Checkpoint, Progress};
use crate::config::{Protocol, RunConfig, Select};
use crate::directory::{claim, clear, refuse_foreign};
use crate::error::TrainError;
use crate::evaluate::{Evaluator, Quick, scores};
use crate::optim::{Optim, dtype};
use crate::record::{Lock, Metrics, sweep, write_atomic, write_json};
use crate::result::{DatasetInfo, PredictionFile, RunResult, Seconds, peak_memory_mib};
use crate::telemetry::{epoch_line, part, step_line};
use candle_core::Tensor;
use mm_balance::{EpochCx, EpochReport, LazyBatches, MethodConfig, StepCx};
use mm_core::{Batch, ConfigError, Modalities, ParamStore, StepRng};
use mm_data::{Batches, Loader, Prepared, Recipe};
use mm_encoders::weights::Source;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// How a run is carried out; none of this changes its numbers.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// Go on from the latest checkpoint, if there is one.
    pub resume: bool,
    /// Delete what the directory holds of an earlier run.
    pub fresh: bool,
    /// No progress bar.
    pub quiet: bool,
    /// Set from elsewhere to stop after the current step, with a checkpoint.
    pub interrupted: &'a AtomicBool,
    /// Commit of the sources, for the record.
    pub commit: Option<&'a str>,
}

/// How a call of [`train`] ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The run is complete.
    Done(Box<RunResult>),
    /// It was complete before; nothing was done.
    AlreadyDone(Box<RunResult>),
    /// It was interrupted and can be resumed.
    Interrupted {
        /// Optimiser steps done.
        step: usize,
    },
}

/// Trains a run in `dir`.
pub fn train(config: &RunConfig, dir: &Path, options: Options<'_>) -> Result<Outcome, TrainError> {
    // Everything that can be refused is refused before data are read or a file is touched.
    let summary = config.peek()?;
    let modalities = Modalities::new(summary.modalities.iter().map(|(name, _)| name.clone()))?;
    config.check_model(&modalities)?;
    config.check_inputs(&modalities, &summary.modalities.into_iter().map(|(_, shape)| shape).collect())?;
    crate::build::device(&config.train.device)?;
    refuse_foreign(dir)?;

    if !options.fresh
        && let Some(done) = claim(config, dir, options.resume)?
    {
        return Ok(Outcome::AlreadyDone(Box::new(done)));
    }
    let started = Instant::now();
    let prepared = config.data.prepare(config.seed)?;
    check_selection(config, &prepared)?;
    let data = &prepared.dataset;
    let shapes = data.inputs.map(|_, x| x.shape());
    let (built, pretrained) = begin(config, &data.modalities, &shapes, data.classes)?;
    let rows = set_aside(config, &prepared, &built)?;

    // Nothing stands in the way any more: only now is an earlier run replaced.
    let _lock = Lock::take(dir)?;
    if options.fresh {
        clear(dir)?;
    }
    if let Some(done) = claim(config, dir, options.resume)? {
        return Ok(Outcome::AlreadyDone(Box::new(done)));
    }
    for dir in [dir, &dir.join("model")] {
        sweep(dir);
    }
    if !dir.join("config.toml").exists() {
        write_atomic(&dir.join("config.toml"), config.to_toml()?.as_bytes())?;
    }
    let mut run = Run::new(config, dir, options, &prepared, built, (rows, pretrained))?;
    run.log(&format!("{} on {}: {} parameters", config.method_name(), data.name, run.parameters))?;
    if run.train()? {
        let result = run.finish(started)?;
        return Ok(Outcome::Done(Box::new(result)));
    }
    Ok(Outcome::Interrupted { step: run.at.step })
}

/// Makes sure that there are rows to choose the epoch by.
fn check_selection(config: &RunConfig, prepared: &Prepared) -> Result<(), TrainError> {
    let selects = config.train.protocol == Protocol::ValidationSelect;
    if selects && with_input(prepared, &prepared.splits.val).is_empty() {
        let rule = "there is no validation part to choose the epoch by: set data.split.val or \
                    data.split.val_fraction; choosing by the test part is refused unless train.protocol = \
                    \"ogm-test-select\" asks for it by name";
        return Err(ConfigError::new("data.split", "no validation rows", rule).into());
    }
    Ok(())
}

struct Run<'a> {
    config: &'a RunConfig,
    dir: PathBuf,
    options: Options<'a>,
    prepared: &'a Prepared,
    built: Built,
    parameters: usize,
    /// Seconds of training in earlier processes.
    before: f64,
    /// Training rows, without those that a method set aside.
    train_rows: Vec<usize>,
    held_out: Option<Batch>,
    /// Where encoders began.
    pretrained: BTreeMap<String, Source>,
    at: Progress,
    best: Option<BTreeMap<String, Tensor>>,
    resumed: Option<BTreeMap<String, Tensor>>,
    metrics: Metrics,
    clock: Instant,
    last_save: Instant,
    names: Vec<String>,
}

impl<'a> Run<'a> {
    fn new(
        config: &'a RunConfig,
        dir: &Path,
        options: Options<'a>,
        prepared: &'a Prepared,
        mut built: Built,
        ((train_rows, held_out), pretrained): ((Vec<usize>, Option<Batch>), BTreeMap<String, Source>),
    ) -> Result<Self, TrainError> {
        let dataset_hash = prepared.dataset.hash.clone();
        let loaded = if options.resume { checkpoint::load(&dir.join("ckpt"))? } else { None };
        let (at, best, resumed) = match loaded {
            None => (Progress { dataset_hash, ..Progress::default() }, None, None),
            Some(saved) => {
                if saved.progress.dataset_hash != dataset_hash {
                    let reason = format!(
                        "was begun on other data than {} holds now; restore the data, or start the run afresh with \
                         --fresh",
                        prepared.dataset.origin
                    );
                    return Err(TrainError::run(dir, reason));
                }
                built.params.load(&saved.model)?;
                built.step.restore(&saved.progress.balance)?;
                (saved.progress, saved.best, Some(saved.optimizer))
            }
        };
        let metrics = Metrics::open(&dir.join("metrics.jsonl"), at.metrics_bytes)?;
        let parameters = built.params.elements();
        let names = prepared.dataset.modalities.names().to_vec();
        let run = Self {
            config,
            dir: dir.into(),
            options,
            prepared,
            built,
            parameters,
            before: at.seconds,
            train_rows,
            held_out,
            pretrained,
            at,
            best,
            resumed,
            metrics,
            clock: Instant::now(),
            last_save: Instant::now(),
            names,
        };
        write_json(&dir.join("env.json"), &run.environment())?;
        Ok(run)
    }

    /// Trains to the end; false if interrupted.
    fn train(&mut self) -> Result<bool, TrainError> {
        let config = self.config;
        let data = &self.prepared.dataset;
        let loader = Loader::new(data, self.train_rows.clone(), config.train.batch_size)?.merge_single(true);
        let per_epoch = loader.batches();
        let total = per_epoch * config.train.epochs;
        let order = StepRng::new(config.seed).stream("order");
        let key = StepRng::new(config.seed).stream("step");
        let augment = StepRng::new(config.seed).stream("augment");
        let bar = self.progress_bar(total);

        // The optimiser borrows the parameters, and the run is changed while it lives: hold the parts side by side.
        let Built { params, model, step, device, .. } = &mut self.built;
        let (params, model, dtype) = (&*params, &*model, dtype(config.train.precision));
        let mut optim = Optim::new(config.optim.clone(), params, config.train.clip_norm)?;
        if let Some(state) = self.resumed.take() {
            optim.restore(&state, &self.at.optimizer_steps)?;
        }
        let select_rows = match config.train.protocol {
            Protocol::ValidationSelect => with_input(self.prepared, &self.prepared.splits.val),
            Protocol::OgmTestSelect => with_input(self.prepared, &self.prepared.splits.test),
        };
        let (before, clock) = (self.before, self.clock);
        let seconds = || before + clock.elapsed().as_secs_f64();

        while !self.at.finished {
            let epoch = self.at.epoch;
            let batches = loader.epoch(Some(order.epoch(epoch)));
            let rate = |step: usize| config.optim.lr * config.schedule.factor(step, epoch, total);
            let pair = match &self.held_out {
                Some(outer) => {
                    let inner = loader.training_batch(&batches[0], augment.epoch(epoch), dtype, device)?;
                    Some((inner, outer))
                }
                None => None,
            };
            let all = LazyBatches::new(batches.len(), |n| loader.batch(&batches[n], dtype, device));
            let epoch_cx = EpochCx {
                model,
                params,
                epoch,
                learning_rate: rate(epoch * per_epoch),
                batches: pair.as_ref().map(|(inner, outer)| (inner, *outer)),
                train: Some(&all),
                rng: key.epoch(epoch),
            };
            if self.at.batches == 0 {
                step.epoch_start(&epoch_cx)?;
            }
            let recipe = Recipe { key: Some(augment.epoch(epoch)), dtype, device };
            let left = &batches[self.at.batches..];
            let steps = |ready: &mut Batches<'_>| -> Result<bool, TrainError> {
                for batch in ready {
                    let batch = batch?;
                    let cx = StepCx::new(model, params, &batch, epoch, self.at.step, key);
                    optim.learning_rate = rate(self.at.step);
                    let report = step.step(&cx, &mut optim)?;
                    if report.rows > 0 && !report.loss.is_finite() {
                        self.metrics.flush()?;
                        let what = format!("the loss is {}", report.loss);
                        return Err(TrainError::Diverged { what, step: self.at.step, epoch });
                    }
                    self.metrics.line(&step_line(&self.at, &report, optim.learning_rate, &self.names))?;
                    if report.rows > 0 {
                        self.at.loss_sum += report.loss * report.rows as f64;
                        self.at.loss_rows += report.rows;
                    }
                    self.at.step += 1;
                    self.at.batches += 1;
                    bar.inc(1);
                    let stop = self.options.interrupted.load(Ordering::Relaxed);
                    let by_steps =
                        config.train.checkpoint_steps.is_some_and(|n| self.at.step.is_multiple_of(n));
                    let by_time = self.last_save.elapsed().as_secs_f64() >= config.train.checkpoint_seconds;
                    if stop || by_steps || by_time {
                        self.at.seconds = seconds();
                        let snapshot =
                            Snapshot { params, step: step.as_ref(), optim: &optim, best: self.best.as_ref() };
                        snapshot.save(&self.dir, &mut self.at, &mut self.metrics)?;
                        self.last_save = Instant::now();
                    }
                    if stop {
                        return Ok(false);
                    }
                }
                Ok(true)
            };
            if !loader.with_batches(left, recipe, config.train.prefetch(), steps)? {
                bar.abandon();
                return Ok(false);
            }

            let prefetch = config.train.prefetch();
            let evaluator = Evaluator { model, step: step.as_ref(), data, dtype, device, prefetch };
            check_finite(params, &self.at)?;
            let quick = evaluator.quick(&select_rows)?;
            if !quick.loss.is_finite() {
                let what = format!("the {} cross-entropy is {}", part(config.train.protocol), quick.loss);
                return Err(TrainError::Diverged { what, step: self.at.step, epoch });
            }
            let train_loss = self.at.loss_sum / self.at.loss_rows.max(1) as f64;
            self.metrics.line(&epoch_line(
                &self.at,
                train_loss,
                &quick,
                config.train.protocol,
                &self.names,
            ))?;
            let seen =
                EpochReport { train_loss, accuracy: Some(quick.accuracy), unimodal: quick.unimodal.clone() };
            // Under the test-selecting protocol the methods themselves still never see the test part.
            let seen = match config.train.protocol {
                Protocol::ValidationSelect => seen,
                Protocol::OgmTestSelect => EpochReport { train_loss, ..EpochReport::default() },
            };
            step.epoch_end(&epoch_cx, &seen)?;
            if better(config.train.select, &quick, self.at.best.as_ref()) {
                self.at.best = Some(Best { epoch, accuracy: quick.accuracy, loss: quick.loss });
                self.at.stale = 0;
                self.best = Some(copy(&params.tensors())?);
            } else {
                self.at.stale += 1;
            }
            bar.set_message(format!(
                "loss {train_loss:.4}, {} {:.4}",
                part(config.train.protocol),
                quick.accuracy
            ));
            let out_of_patience = config.train.patience.is_some_and(|p| self.at.stale >= p);
            self.at.finished = out_of_patience || epoch + 1 == config.train.epochs;
            self.at.epoch += 1;
            self.at.batches = 0;
            (self.at.loss_sum, self.at.loss_rows) = (0.0, 0);
        }
        self.at.seconds = seconds();
        let snapshot = Snapshot { params, step: step.as_ref(), optim: &optim, best: self.best.as_ref() };
        snapshot.save(&self.dir, &mut self.at, &mut self.metrics)?;
        bar.finish_and_clear();
        Ok(true)
    }

    /// Loads the best epoch, evaluates it on the test part and writes the result.
    fn finish(&mut self, started: Instant) -> Result<RunResult, TrainError> {
        let (Some(best), Some(tensors)) = (self.at.best, &self.best) else {
            return Err(TrainError::run(&self.dir, "training ended without a best epoch; start afresh"));
        };
        self.built.params.load(tensors)?;
        let (config, prepared, data) = (self.config, self.prepared, &self.prepared.dataset);
        let splits = &prepared.splits;
        let evaluator = Evaluator {
            model: &self.built.model,
            step: self.built.step.as_ref(),
            data,
            dtype: dtype(config.train.precision),
            device: &self.built.device,
            prefetch: config.train.prefetch(),
        };
        let encoded = evaluator.encode(&splits.test)?;
        let test = evaluator.predictions(&encoded)?;
        let val = match splits.val.as_slice() {
            [] => None,
            rows => Some(evaluator.predictions(&evaluator.encode(rows)?)?),
        };
        let unimodal = evaluator.unimodal(&self.train_rows, &encoded, config.train.probe_rows)?;
        let on_test = config.train.protocol == Protocol::OgmTestSelect;
        let mut warnings = data.warnings(splits);
        if on_test {
            warnings.push(
                "the test part chose the reported epoch: these numbers are too high by construction".into(),
            );
        }
        let fusion = if self.built.needs.fusion { config.model.fusion.name() } else { "none" };
        let result = RunResult {
            format: 1,
            name: config.name.clone(),
            method: config.method_name(),
            fusion: fusion.into(),
            encoder: self.encoder_names(),
            weights: self.pretrained.clone(),
            seed: config.seed,
            protocol: config.train.protocol.name().into(),
            selected_on_test: on_test,
            dataset: DatasetInfo {
                name: data.name.clone(),
                hash: data.hash.clone(),
                classes: data.classes,
                modalities: self.names.clone(),
                train: splits.train.len(),
                val: splits.val.len(),
                test: splits.test.len(),
            },
            selected_epoch: best.epoch,
            epochs: self.at.epoch,
            steps: self.at.step,
            parameters: self.parameters,
            val: val.as_ref().map(|p| scores(p, data.classes)).transpose()?,
            test: scores(&test, data.classes)?,
            unimodal,
            modality_gap: evaluator.modality_gap(&encoded)?,
            shapley: evaluator.shapley(&encoded)?,
            warnings,
            seconds: Seconds { train: self.at.seconds, total: self.before + started.elapsed().as_secs_f64() },
            peak_memory_mib: peak_memory_mib(),
            device: config.train.device.clone(),
            candle: CANDLE.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            commit: self.options.commit.map(str::to_owned),
            threads: threads(),
        };
        crate::predict::export(&self.dir.join("model"), config, prepared, tensors)?;
        let file = PredictionFile {
            ids: test.ids.clone(),
            labels: test.labels.clone(),
            predicted: test.predicted.clone(),
            test,
            val,
        };
        let bytes = serde_json::to_vec(&file).map_err(|e| TrainError::run(&self.dir, e.to_string()))?;
        write_atomic(&self.dir.join("predictions.json"), &bytes)?;
        self.log(&format!("done: test accuracy {:.4} at epoch {}", result.test.accuracy, best.epoch))?;
        write_json(&self.dir.join("result.json"), &result)?;
        Ok(result)
    }

    fn encoder_names(&self) -> String {
        let mut names: Vec<&str> = self.names.iter().map(|n| self.config.model.encoder(n).name()).collect();
        names.dedup();
        names.join("+")
    }

    fn environment(&self) -> Value {
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "candle": CANDLE,
            "commit": self.options.commit,
            "device": self.config.train.device,
            "threads": threads(),
            "os": std::env::consts::OS,
            "arch": std::env::consts::ARCH,
            "dataset": self.prepared.dataset.name,
            "dataset_hash": self.prepared.dataset.hash,
            "weights": self.pretrained,
            "ignored": self.prepared.dataset.ignored,
        })
    }

    fn log(&self, message: &str) -> Result<(), TrainError> {
        use std::io::Write as _;
        let path = self.dir.join("run.log");
        let fail = |e| TrainError::write(&path, e);
        let mut file = fs::File::options().create(true).append(true).open(&path).map_err(fail)?;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        writeln!(file, "{} step {} {message}", now.map_or(0, |d| d.as_secs()), self.at.step).map_err(fail)
    }

    fn progress_bar(&self, total: usize) -> indicatif::ProgressBar {
        let hidden = self.options.quiet || !std::io::IsTerminal::is_terminal(&std::io::stderr());
        let bar =
            if hidden { indicatif::ProgressBar::hidden() } else { indicatif::ProgressBar::new(total as u64) };
        let style = "{prefix} {bar:30} {pos}/{len} steps, {per_sec}, {eta} left  {msg}";
        if let Ok(style) = indicatif::ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        bar.set_prefix(self.config.name.clone());
        bar.set_position(self.at.step as u64);
        bar
    }
}

const CANDLE: &str = "0.11.1";

fn threads() -> usize {
    let asked =
        std::env::var("RAYON_NUM_THREADS").ok().and_then(|n| n.parse().ok()).filter(|&n: &usize| n > 0);
    asked.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get))
}

/// The rows that have at least one of the modalities in use: the others have nothing to learn from or to be judged by.
/// They stay in the test part, where a decision is owed for every row.
fn with_input(prepared: &Prepared, rows: &[usize]) -> Vec<usize> {
    let inputs = prepared.dataset.inputs.values();
    rows.iter().copied().filter(|&row| inputs.iter().any(|x| x.is_present(row))).collect()
}

/// Sets aside the training rows that a method's outer objective needs.
fn set_aside(
    config: &RunConfig,
    prepared: &Prepared,
    built: &Built,
) -> Result<(Vec<usize>, Option<Batch>), TrainError> {
    let mut rows = with_input(prepared, &prepared.splits.train);
    let wanted = built.needs.held_out;
    if wanted == 0 {
        return Ok((rows, None));
    }
    if rows.len() < 2 * wanted {
        let rule = format!(
            "the method sets aside {wanted} of {} training rows; lower it to a half at most",
            rows.len()
        );
        let bilevel = config.method.iter().any(|m| matches!(m, MethodConfig::LfmLearned(_)));
        let field = if bilevel { "method.bilevel.held_out" } else { "method.held_out" };
        return Err(ConfigError::new(field, wanted, rule).into());
    }
    StepRng::new(config.seed).stream("held-out").draws().shuffle(&mut rows);
    let held: Vec<usize> = rows.drain(..wanted).collect();
    rows.sort_unstable();
    let loader = Loader::new(&prepared.dataset, held.clone(), wanted)?;
    let batch = loader.batch(&held, dtype(config.train.precision), &built.device)?;
    Ok((rows, Some(batch)))
}

fn better(select: Select, quick: &Quick, best: Option<&Best>) -> bool {
    match (best, select) {
        (None, _) => true,
        (Some(best), Select::Accuracy) => quick.accuracy > best.accuracy,
        (Some(best), Select::Loss) => quick.loss < best.loss,
    }
}

fn check_finite(params: &ParamStore, at: &Progress) -> Result<(), TrainError> {
    for p in params.params().iter().chain(params.buffers()) {
        if !mm_core::gradients::square_sum(p.var())?.is_finite() {
            let what = format!("parameter `{}` is not finite", p.name());
            return Err(TrainError::Diverged { what, step: at.step, epoch: at.epoch });
        }
    }
    Ok(())
}

fn copy(tensors: &BTreeMap<String, Tensor>) -> candle_core::Result<BTreeMap<String, Tensor>> {
    tensors.iter().map(|(name, t)| Ok((name.clone(), t.copy()?))).collect()
}

/// What a checkpoint is made of, borrowed from a run under way.
struct Snapshot<'s> {
    params: &'s ParamStore,
    step: &'s dyn mm_balance::TrainStep,
    optim: &'s Optim<'s>,
    best: Option<&'s BTreeMap<String, Tensor>>,
}

impl Snapshot<'_> {
    fn save(&self, dir: &Path, at: &mut Progress, metrics: &mut Metrics) -> Result<(), TrainError> {
        // A checkpoint that cannot be gone on from must not replace one that can.
        check_finite(self.params, at)?;
        let (optimizer, steps) = self.optim.state();
        at.metrics_bytes = metrics.sync()?;
        at.optimizer_steps = steps;
        at.balance = self.step.state();
        let checkpoint = Checkpoint {
            progress: at.clone(),
            model: self.params.tensors(),
            best: self.best.cloned(),
            optimizer,
        };
        checkpoint::save(&dir.join("ckpt"), &checkpoint)
    }
}
