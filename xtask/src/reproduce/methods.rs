//! Names that the command line and the experiment files may use.

/// All methods in the order of the table: baselines first.
pub(crate) const METHODS: [&str; 36] = [
    UNIMODAL,
    ENSEMBLE,
    JOINT,
    "multi-loss",
    "sum-ce",
    "mlb",
    "ogm",
    "ogm-ge",
    "opm",
    "opm+ogm",
    "lfm-heuristic",
    "lfm-learned",
    "multimodal-loss",
    "agm",
    "amco",
    "arl",
    "cggm",
    "cml",
    "functional-entropy",
    "g-blend",
    "greedy",
    "info-reg",
    "mbsd",
    "mcr",
    "mla",
    "mmcosine",
    "mmpareto",
    "modality-dropout",
    "mslr",
    "pmr",
    "proxyanchor",
    "proxynca",
    "reconboost",
    "relearning",
    "softtriple",
    "valuation",
];

/// Those of the four papers with their baselines: what runs where neither `--method` nor the experiment says otherwise.
pub(crate) const USUAL: [&str; 13] = [
    UNIMODAL,
    ENSEMBLE,
    JOINT,
    "multi-loss",
    "sum-ce",
    "mlb",
    "ogm",
    "ogm-ge",
    "opm",
    "opm+ogm",
    "lfm-heuristic",
    "lfm-learned",
    "multimodal-loss",
];

/// One modality trained alone.
pub(crate) const UNIMODAL: &str = "unimodal";
/// The average of the unimodal models.
pub(crate) const ENSEMBLE: &str = "ensemble";
/// What every method is compared with.
pub(crate) const JOINT: &str = "joint";
/// Methods that balance nothing; they never count as the best method. `sum-ce` is what the paper of `multimodal-loss`
/// compares with.
pub(crate) const BASELINES: [&str; 5] = [UNIMODAL, ENSEMBLE, JOINT, "multi-loss", "sum-ce"];

/// The fusions.
pub(crate) const FUSIONS: [&str; 8] =
    ["late-linear", "concat", "sum", "mid-mlp", "film", "gated", "mmtm", "transformer"];
/// Methods that decide from the unimodal heads or bring a fusion of their own: the configured one changes nothing, so they
/// run once for all fusions.
pub(crate) const WITHOUT_FUSION: [&str; 5] = ["multimodal-loss", "sum-ce", "mla", "mmcosine", "reconboost"];
/// A method that needs a fusion of its own kind, and that fusion: it runs under no other.
pub(crate) const ITS_FUSION: (&str, &str) = ("greedy", "mmtm");
/// The fusion in the configuration of runs that have none; with one modality it is a plain linear head.
pub(crate) const LINEAR_HEAD: &str = "late-linear";
