//! Every method by name, for people: what `mm methods` prints. What a configuration makes of a name stands in
//! [`crate::config`].

/// What `mm methods` prints of a method.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// Name, as in `method.kind`.
    pub name: &'static str,
    /// What it does.
    pub summary: &'static str,
    /// Settings with defaults.
    pub settings: &'static str,
    /// Where it acts.
    pub acts_on: &'static str,
    /// Paper.
    pub paper: &'static str,
    /// What its numbers are pinned to.
    pub pinned_to: &'static str,
}

/// All methods, baselines first.
pub fn catalogue() -> &'static [Entry] {
    const MLB: &str = "Kontras et al. 2024, arXiv 2405.07930";
    const BML: &str = "Wei et al. 2024, arXiv 2410.11582";
    const LFM: &str = "Dynamically Learning Modality Gap, NeurIPS 2024";
    const MML: &str = "Deep Metric Loss for Multimodal Learning, arXiv 2308.10486";
    &[
        Entry {
            name: "joint",
            summary: "cross-entropy of the fused logits, nothing else",
            settings: "",
            acts_on: "nothing",
            paper: "",
            pinned_to: "own derivation",
        },
        Entry {
            name: "unimodal",
            summary: "one modality trained alone",
            settings: "modality (required)",
            acts_on: "the model",
            paper: "",
            pinned_to: "own derivation",
        },
        Entry {
            name: "ensemble",
            summary: "average of unimodal models trained apart (`mm ensemble`)",
            settings: "",
            acts_on: "predictions",
            paper: MLB,
            pinned_to: "own derivation",
        },
        Entry {
            name: "multi-loss",
            summary: "adds the cross-entropy of every modality's own head",
            settings: "weight = 1",
            acts_on: "loss",
            paper: MLB,
            pinned_to: "released code, paper",
        },
        Entry {
            name: "mlb",
            summary: "multi-loss, with a gradient coefficient per encoder that speeds up laggards and slows leaders",
            settings: "alpha = 0.8, beta_max = 5, weight = 1, variant = paper|released, \
                       apply = gradient|learning-rate, start_epoch = 0, end_epoch",
            acts_on: "loss, gradients of encoders, heads and linear fusion blocks",
            paper: MLB,
            pinned_to: "released code, paper eq. 2-7",
        },
        Entry {
            name: "ogm",
            summary: "damps the gradient of the leading modality's encoder",
            settings: "alpha = 0.8, variant = paper|released|released-m3, parameters = all|conv|weights, \
                       start_epoch = 0, end_epoch",
            acts_on: "gradients of encoders",
            paper: "Peng et al. CVPR 2022; Wei et al. 2024, arXiv 2410.11582",
            pinned_to: "released code",
        },
        Entry {
            name: "ogm-ge",
            summary: "ogm plus noise of the gradient's own deviation",
            settings: "as ogm",
            acts_on: "gradients of encoders",
            paper: "Peng et al. CVPR 2022",
            pinned_to: "released code",
        },
        Entry {
            name: "agm",
            summary: "splits the logits into contributions of the modalities and scales the gradient through each",
            settings: "alpha = 1, cap = 10 (M = 2) or 7, mask = inputs|features, start_epoch = 0, end_epoch",
            acts_on: "gradients at the logits",
            paper: "Li et al. ICCV 2023, arXiv 2308.07686",
            pinned_to: "released code",
        },
        Entry {
            name: "cggm",
            summary: "classifiers on the side modulate the gradients of encoders in size and direction",
            settings: "rho = 1.3, lambda = 0.2, bound = 5, start_epoch = 0, end_epoch",
            acts_on: "loss, gradients of encoders",
            paper: "Guo et al. NeurIPS 2024, arXiv 2411.01409",
            pinned_to: "own derivation",
        },
        Entry {
            name: "mslr",
            summary: "a learning rate for each modality, which follows its validation accuracy",
            settings: "factors = 1 each, keep = 5, strategy = dynamic|fixed, parameters = branch|encoder, \
                       apply = learning-rate|gradient",
            acts_on: "learning rates of encoders, heads and linear fusion blocks",
            paper: "Yao and Mihalcea, Findings of ACL 2022",
            pinned_to: "two published ports",
        },
        Entry {
            name: "mmpareto",
            summary: "combines the multimodal and the unimodal gradient of each encoder without conflict",
            settings: "boost = 1.5",
            acts_on: "loss, gradients of encoders",
            paper: "Wei and Hu, ICML 2024, arXiv 2405.17730",
            pinned_to: "released code",
        },
        Entry {
            name: "g-blend",
            summary: "weighs the unimodal losses and the fused one by how well each generalises to held-out rows",
            settings: "super_epoch = 10, estimate_epochs = super_epoch, held_out = 50, schedule = online|offline, \
                       estimator = paper|multi-bench, floor = 0.1, least = 0.05, rate",
            acts_on: "loss; the weights once per super-epoch",
            paper: "Wang et al. CVPR 2020, arXiv 1905.12681",
            pinned_to: "paper's formula; own derivation",
        },
        Entry {
            name: "info-reg",
            summary: "holds the encoder of a leading modality back while its information still grows",
            settings: "strength = 0.95, threshold = 0.04, window = 10, variant = paper|released",
            acts_on: "loss, gradients of encoders",
            paper: "Huang et al. CVPR 2025, arXiv 2503.18595",
            pinned_to: "own derivation (formulas of the released code)",
        },
        Entry {
            name: "relearning",
            summary: "draws every encoder back to its start by the gap of its purity on seen and unseen rows",
            settings: "strength = 3, every = 20, times = 3, held_out = 50",
            acts_on: "parameters of encoders, between epochs",
            paper: "Wei et al. ECCV 2024, arXiv 2407.09705",
            pinned_to: "released code's formula; own clustering",
        },
        Entry {
            name: "opm",
            summary: "drops features of the leading modality",
            settings: "q_base = 0.5, lambda = 0.5, p_exe = 0.7, start_epoch = 0, end_epoch",
            acts_on: "features",
            paper: BML,
            pinned_to: "released code",
        },
        Entry {
            name: "lfm-heuristic",
            summary: "contrastive matching that hands over to supervision on a schedule",
            settings: "matching = info-nce|alignment|js, temperature = 0.07, loss_scale = 1, \
                       schedule.kind = paper|exponential|polynomial|fixed",
            acts_on: "loss",
            paper: LFM,
            pinned_to: "released code; paper's schedule by a public summary",
        },
        Entry {
            name: "lfm-learned",
            summary: "the same with a weight learned by one-step bi-level optimisation on held-out training rows",
            settings: "matching, temperature, loss_scale, bilevel.{variant = unrolled|released-hvp, initial = 0.5|0.05, \
                       rate = 1|1e-4, inner_rate, held_out = 16}",
            acts_on: "loss",
            paper: LFM,
            pinned_to: "own derivation (exact gradient); released code (released-hvp)",
        },
        Entry {
            name: "multimodal-loss",
            summary: "proxies subgroup the instances by what each modality contributes; replaces the fusion",
            settings: "proxies = 20, temperature = 0.1",
            acts_on: "loss, decision rule",
            paper: MML,
            pinned_to: "released code",
        },
        Entry {
            name: "sum-ce",
            summary: "cross-entropy of the sum of unimodal probabilities; replaces the fusion",
            settings: "",
            acts_on: "loss, decision rule",
            paper: MML,
            pinned_to: "released notebooks",
        },
        Entry {
            name: "amco",
            summary: "masks channels of the modality that the prediction depends on, beside unimodal losses",
            settings: "threshold = 0.5, ramp = 0.3, weight = 1, variant = steady|benchmark",
            acts_on: "features, loss",
            paper: "Zhou et al. ICASSP 2023",
            pinned_to: "port (benchmark); own reading of the port",
        },
        Entry {
            name: "arl",
            summary: "unimodal losses, and gradient factors that let the certain modality lead",
            settings: "temperature = 8, weight = 1, start_epoch = 6, end_epoch",
            acts_on: "loss, gradients of encoders",
            paper: "Wei et al. ICCV 2025, arXiv 2507.10203",
            pinned_to: "released code (its rules, own script)",
        },
        Entry {
            name: "cml",
            summary: "confidence must not rise when a modality is taken away",
            settings: "weight = 0.1",
            acts_on: "loss",
            paper: "Ma et al. ICML 2023",
            pinned_to: "released code (ranking loss)",
        },
        Entry {
            name: "functional-entropy",
            summary: "the prediction must depend on every modality's input",
            settings: "weight = 1e-10, replicas = 10, estimate = entropy|variance, form = inverse|margin|minimum, \
                       start_epoch = 0, end_epoch",
            acts_on: "gradients of everything",
            paper: "Gat et al. NeurIPS 2020",
            pinned_to: "released code",
        },
        Entry {
            name: "greedy",
            summary: "holds the gate of a branch that learns mostly from the others; needs the fusion mmtm",
            settings: "tolerance = 0.01, window = 5, start_epoch = 1",
            acts_on: "gates of the fusion",
            paper: "Wu et al. ICML 2022, arXiv 2202.05306",
            pinned_to: "released code (its rules, own script)",
        },
        Entry {
            name: "mbsd",
            summary: "self-distillation from the modality that knows a row best to the others",
            settings: "weight = 1, unimodal = 1",
            acts_on: "loss",
            paper: "Liu et al. WSDM 2023",
            pinned_to: "own reading of the paper",
        },
        Entry {
            name: "mcr",
            summary: "rewards each modality for what the prediction loses when its features are permuted",
            settings: "strategy = greedy|independent|collaborative, weight = 0.1, samples = 32, contrast = 1, \
                       temperature = 0.5, bottleneck = 0, unimodal = 0.01",
            acts_on: "loss",
            paper: "Kontras et al. NeurIPS 2025, arXiv 2411.07335",
            pinned_to: "released code (its rules, own script)",
        },
        Entry {
            name: "mla",
            summary: "modalities take turns on one shared head; decides by certainty; replaces the fusion",
            settings: "gate = row|batch|even, projector = true, alpha = 0.1",
            acts_on: "the whole step, decision rule",
            paper: "Zhang et al. CVPR 2024, arXiv 2311.10707",
            pinned_to: "paper; released code (gate = batch)",
        },
        Entry {
            name: "mmcosine",
            summary: "a sum of cosines between features and class weights; replaces the fusion",
            settings: "scale = 10",
            acts_on: "the fusion",
            paper: "Xu et al. ICASSP 2023",
            pinned_to: "released code",
        },
        Entry {
            name: "modality-dropout",
            summary: "drops each modality of a row with one constant probability, never all of them",
            settings: "rate = 0.3, start_epoch = 0, end_epoch",
            acts_on: "features",
            paper: "Neverova et al. TPAMI 2016",
            pinned_to: "own derivation",
        },
        Entry {
            name: "pmr",
            summary: "adds a loss over class prototypes to the modality that lags",
            settings: "alpha = 1, variant = paper|released, entropy_weight = 0.01, entropy_epochs = 10, momentum = 0.2, \
                       share = 0.1, start_epoch = 0, end_epoch",
            acts_on: "loss",
            paper: "Fan et al. CVPR 2023",
            pinned_to: "released code (released); own reading of the paper",
        },
        Entry {
            name: "proxyanchor",
            summary: "adds a loss over proxies that are compared with the whole batch, per modality",
            settings: "weight = 1, alpha = 32, margin = 0.1, rate = 100",
            acts_on: "loss",
            paper: "Kim et al. CVPR 2020",
            pinned_to: "released code",
        },
        Entry {
            name: "proxynca",
            summary: "adds a loss over one proxy per class, per modality",
            settings: "weight = 1, variant = paper|released, smoothing = 0.1, scale_x = 3, scale_proxy = 3, rate = 1",
            acts_on: "loss",
            paper: "Movshovitz-Attias et al. ICCV 2017",
            pinned_to: "paper; public code (released)",
        },
        Entry {
            name: "reconboost",
            summary: "modalities are trained in turns against what the others cannot explain; replaces the fusion",
            settings: "boost = 5, damp = 1, variant = paper|released, alpha = 0.5, boost_epochs = 4, joint_epochs = 4",
            acts_on: "the whole step, decision rule",
            paper: "Hua et al. ICML 2024",
            pinned_to: "released code (released); own reading of the paper",
        },
        Entry {
            name: "softtriple",
            summary: "adds a loss over several centres per class, per modality",
            settings: "weight = 1, centers = 10, scale = 20, gamma = 0.1, tau = 0.2, margin = 0.01, rate = 100",
            acts_on: "loss",
            paper: "Qian et al. ICCV 2019",
            pinned_to: "released code",
        },
        Entry {
            name: "umt",
            summary: "draws features to those of encoders trained alone, from finished unimodal runs",
            settings: "weight = 10, teachers.<modality> (required)",
            acts_on: "loss",
            paper: "Du et al. ICML 2023, arXiv 2305.01233",
            pinned_to: "own derivation",
        },
        Entry {
            name: "valuation",
            summary: "shows rows again with the modality alone that contributes little, by Shapley values",
            settings: "level = sample|modality, alpha = 1, start_epoch = 5, end_epoch",
            acts_on: "features, added rows",
            paper: "Wei et al. CVPR 2024, arXiv 2309.06255",
            pinned_to: "released code (its rules, by hand)",
        },
    ]
}
