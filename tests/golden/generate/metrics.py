"""Makes tests/golden/metrics.json, the numbers that crates/mm-metrics is compared with.

Every number comes from a reference implementation; nothing here is computed by the library under test.

Made with Python 3.11 and
    mpmath==1.3.0 numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1 torch==2.15.0 torchmetrics==1.9.0

Run from anywhere:  python tests/golden/generate/metrics.py
"""

import itertools
import json
import math
import warnings
from pathlib import Path

import mpmath
import numpy as np
import scipy
import sklearn
import torch
import torchmetrics
from scipy import stats
from sklearn import metrics
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torchmetrics.functional.classification import multiclass_calibration_error
from torchmetrics.functional.classification.calibration_error import _ce_compute

OUT = Path(__file__).resolve().parent.parent / "metrics.json"


def one_vs_rest(metric, labels, scores, needs_negatives):
    """A binary metric per class; None for a class without the samples it needs."""
    values = []
    for j in range(scores.shape[1]):
        positive = labels == j
        defined = positive.any() and (not needs_negatives or not positive.all())
        values.append(float(metric(positive, scores[:, j])) if defined else None)
    counted = [v for v in values if v is not None]
    return {"per_class": values, "mean": float(np.mean(counted)), "counted": len(counted)}


def calibration(labels, probabilities, bins):
    """The public function of torchmetrics, which works in single precision, and its kernel in double precision."""
    p, y = torch.tensor(probabilities), torch.tensor(labels)
    public = multiclass_calibration_error(p, y, num_classes=p.shape[1], n_bins=bins, norm="l1")
    confidences, predictions = p.max(dim=1)
    double = _ce_compute(confidences, predictions.eq(y), bins, norm="l1")
    return {"public": public.item(), "double": double.item()}


def classification(name, labels, logits, ranking):
    """All metrics of one set of labels. `ranking` are the scores of the ranking metrics, perhaps with ties."""
    n, c = logits.shape
    probabilities = scipy.special.softmax(logits, axis=1)
    predicted = probabilities.argmax(axis=1)
    present = np.union1d(labels, predicted)
    case = {
        "name": name,
        "classes": c,
        "labels": labels.tolist(),
        "logits": logits.ravel().tolist(),
        "probabilities": probabilities.ravel().tolist(),
        "predicted": predicted.tolist(),
        "ranking": ranking.ravel().tolist(),
        "ranking_argmax": ranking.argmax(axis=1).tolist(),
        "accuracy": metrics.accuracy_score(labels, predicted),
        "confusion": metrics.confusion_matrix(labels, predicted, labels=range(c)).ravel().tolist(),
        "macro_f1": metrics.f1_score(labels, predicted, average="macro", zero_division=0),
        "micro_f1": metrics.f1_score(labels, predicted, average="micro", zero_division=0),
        "macro_precision": metrics.precision_score(labels, predicted, average="macro", zero_division=0),
        "macro_recall": metrics.recall_score(labels, predicted, average="macro", zero_division=0),
        "appearing": present.tolist(),
        "class_f1": metrics.f1_score(labels, predicted, labels=present, average=None, zero_division=0).tolist(),
        "mcc": metrics.matthews_corrcoef(labels, predicted),
        "kappa": metrics.cohen_kappa_score(labels, predicted),
        "auroc": one_vs_rest(metrics.roc_auc_score, labels, ranking, True),
        "average_precision": one_vs_rest(metrics.average_precision_score, labels, ranking, False),
        "brier": metrics.brier_score_loss(labels, probabilities, labels=range(c), scale_by_half=False),
    }
    ties = any(len(np.unique(row)) < c for row in probabilities)
    if c > 2 and not ties:  # scikit-learn ranks equal scores highest index first, we lowest first
        case["top_k"] = {
            str(k): metrics.top_k_accuracy_score(labels, probabilities, k=k, labels=range(c)) for k in (1, 2, c - 1)
        }
    if c == 2:
        assert math.isclose(case["brier"], 2 * metrics.brier_score_loss(labels, probabilities[:, 1]))
    if len(np.unique(labels)) == c and c > 2:
        row_sums = ranking / ranking.sum(axis=1, keepdims=True)
        if np.allclose(row_sums, ranking):
            whole = metrics.roc_auc_score(labels, ranking, multi_class="ovr", average="macro")
            assert math.isclose(case["auroc"]["mean"], whole)
    case["ece"] = {str(bins): calibration(labels, probabilities, bins) for bins in (1, 10, 15)}
    return case


def classification_cases(rng):
    # Two classes, moderately separable.
    labels = rng.integers(0, 2, 200)
    logits = rng.normal(size=(200, 2)) + 1.2 * np.eye(2)[labels]
    yield classification("two_classes", labels, logits, scipy.special.softmax(logits, axis=1))

    # Six classes, of which class 4 is never predicted; over-confident.
    labels = rng.integers(0, 6, 300)
    logits = 2.0 * (rng.normal(size=(300, 6)) + 1.5 * np.eye(6)[labels])
    logits[:, 4] = logits.min(axis=1) - 1.0
    case = classification("never_predicted", labels, logits, scipy.special.softmax(logits, axis=1))
    assert 4 not in case["predicted"] and set(case["labels"]) == set(range(6))
    yield case

    # Ten classes, of which three are absent from the labels (one of them from the predictions too), ties in the ranking.
    labels = rng.choice([0, 1, 2, 4, 5, 7, 8], 50)
    logits = rng.normal(size=(50, 10)) + 1.5 * np.eye(10)[labels]
    logits[:, 9] = -5.0
    case = classification("absent_and_ties", labels, logits, np.round(logits))
    assert 9 not in case["predicted"] and 3 in case["predicted"]
    yield case

    # Saturated probabilities: confidences of exactly one, and on the edges of ten bins.
    labels = np.array([0, 1, 2, 0, 1, 2])
    logits = np.array([[800.0, 0, 0], [800.0, 0, 0], [0, 0, 800.0], [0, 0, -800.0], [0.3, 0.1, 0.0], [0, 0, 2.0]])
    yield classification("saturated", labels, logits, logits)


def degenerate_cases():
    """Labels and predictions whose metrics are quotients of zeros or ends of a range."""
    for labels, predicted in [
        ([0, 1, 2], [1, 1, 1]),
        ([1, 1, 1], [0, 1, 2]),
        ([0, 1, 0, 1], [1, 0, 1, 0]),
        ([0, 1, 2], [0, 1, 2]),
    ]:
        yield {
            "labels": labels,
            "predicted": predicted,
            "macro_f1": metrics.f1_score(labels, predicted, average="macro", zero_division=0),
            "mcc": metrics.matthews_corrcoef(labels, predicted),
            "kappa": metrics.cohen_kappa_score(labels, predicted),
        }


def probe_case(name, rng, n, d, classes, inverse_strength, present=None):
    present = range(classes) if present is None else present
    labels = rng.choice(list(present), n)
    centres = rng.normal(size=(classes, d))
    scale = 10.0 ** rng.uniform(-2, 2, size=d)
    features = (centres[labels] * 0.7 + rng.normal(size=(n, d))) * scale + rng.normal(size=d)
    features[:, 1] = 0.1  # a constant feature
    features = np.round(features, 6)
    scaler = StandardScaler().fit(features)
    x = scaler.transform(features)
    fit = lambda solver: LogisticRegression(C=inverse_strength, tol=1e-10, max_iter=100_000, solver=solver).fit(x, labels)
    model, check = fit("newton-cholesky"), fit("lbfgs")
    assert np.allclose(model.coef_, check.coef_, rtol=1e-4, atol=1e-5), np.abs(model.coef_ - check.coef_).max()
    test = np.round(features[: n // 4] + 0.3 * scale * rng.normal(size=(n // 4, d)), 6)
    test_labels = labels[: n // 4]
    return {
        "name": name,
        "d": d,
        "classes": classes,
        "inverse_strength": inverse_strength,
        "features": features.ravel().tolist(),
        "labels": labels.tolist(),
        "test_features": test.ravel().tolist(),
        "test_labels": test_labels.tolist(),
        "means": scaler.mean_.tolist(),
        "scales": scaler.scale_.tolist(),
        "fitted_classes": model.classes_.tolist(),
        # One row and one number per class; for two classes scikit-learn fits one difference vector.
        "coefficients": model.coef_.tolist(),
        "intercepts": model.intercept_.tolist(),
        "decision": model.decision_function(scaler.transform(test)).ravel().tolist(),
        "test_accuracy": model.score(scaler.transform(test), test_labels),
        "train_accuracy": model.score(x, labels),
    }


def paired_case(rng, n, confidence, shift):
    a = rng.normal(70, 3, n)
    b = a - shift + rng.normal(0, 1, n)
    interval = stats.ttest_rel(a, b).confidence_interval(confidence)
    return {
        "a": a.tolist(),
        "b": b.tolist(),
        "confidence": confidence,
        "mean": float(np.mean(a - b)),
        "std": float(np.std(a - b, ddof=1)),
        "low": float(interval.low),
        "high": float(interval.high),
        "population_std_of_a": float(np.std(a)),
        "sample_std_of_a": float(np.std(a, ddof=1)),
        "mean_of_a": float(np.mean(a)),
    }


def quantile(p, nu):
    """In 40 digits, because SciPy has only about 9 near the median; SciPy must agree to 1e-8."""
    p, nu = mpmath.mpf(p), mpmath.mpf(nu)
    start = float(stats.t.ppf(float(p), float(nu)))

    def excess(t):
        tail = mpmath.betainc(nu / 2, 0.5, 0, nu / (nu + t * t), regularized=True) / 2
        return (tail if t < 0 else 1 - tail) - p

    t = float(mpmath.findroot(excess, start * mpmath.mpf("1.000001")))
    assert math.isclose(t, start, rel_tol=1e-8), (p, nu, t, start)
    return t


def quantiles():
    probabilities = [1e-8, 0.001, 0.025, 0.2, 0.45, 0.4999, 0.5001, 0.6, 0.75, 0.9, 0.95, 0.975, 0.995, 0.9999]
    for nu in [1, 2, 3, 4, 5, 9, 29, 60, 61, 100, 1000, 2.5, 1e5]:
        for p in probabilities:
            yield [p, nu, quantile(p, nu)]


def shapley_case(rng, players):
    """The definition over orderings: the mean marginal contribution over all M! orders of joining."""
    values = rng.uniform(size=2**players)
    totals = np.zeros(players)
    orders = list(itertools.permutations(range(players)))
    for order in orders:
        coalition = 0
        for player in order:
            totals[player] += values[coalition | 1 << player] - values[coalition]
            coalition |= 1 << player
    return {"values": values.tolist(), "shapley": (totals / len(orders)).tolist()}


def gap_case(rng):
    a = rng.normal(size=(40, 7)) + 1.0
    b = rng.normal(size=(30, 7)) * 5.0 - 0.5
    a[3] = 0.0
    normalised = [m[np.linalg.norm(m, axis=1) > 0] for m in (a, b)]
    centroids = [(m / np.linalg.norm(m, axis=1, keepdims=True)).mean(axis=0) for m in normalised]
    return {
        "dim": 7,
        "a": a.ravel().tolist(),
        "b": b.ravel().tolist(),
        "distance": float(np.linalg.norm(centroids[0] - centroids[1])),
        "skipped": [1, 0],
    }


def agreement_case(rng):
    """scikit-learn's confusion matrix of the pattern against multimodal right (column 0) and wrong (column 1)."""
    n, modalities = 120, 3
    unimodal = rng.uniform(size=(modalities, n)) < 0.6
    multimodal = rng.uniform(size=n) < 0.3 + 0.2 * unimodal.sum(axis=0)
    case = {"unimodal": unimodal.tolist(), "multimodal": multimodal.tolist()}
    for name, m in (("two", 2), ("three", 3)):
        pattern = (unimodal[:m] * (2 ** np.arange(m))[:, None]).sum(axis=0)
        table = [
            [int(((pattern == s) & multimodal).sum()), int(((pattern == s) & ~multimodal).sum())]
            for s in range(2**m)
        ]
        case[name] = table
    return case


def main():
    mpmath.mp.dps = 40
    warnings.filterwarnings("ignore", category=FutureWarning)
    rng = np.random.default_rng(20240817)
    golden = {
        "versions": {
            module.__name__: module.__version__ for module in (mpmath, np, scipy, sklearn, torch, torchmetrics)
        },
        "classification": list(classification_cases(rng)),
        "degenerate": list(degenerate_cases()),
        "probe": [
            probe_case("six_classes", rng, 240, 12, 6, 1.0),
            probe_case("weak_penalty", rng, 160, 8, 4, 100.0),
            probe_case("two_classes", rng, 120, 10, 2, 0.1),
            probe_case("absent_class", rng, 120, 9, 5, 1.0, present=[0, 1, 4]),
        ],
        "paired": [
            paired_case(rng, n, confidence, shift)
            for n, confidence, shift in [(2, 0.95, 1.0), (3, 0.95, 2.0), (5, 0.9, 0.5), (30, 0.99, 0.0)]
        ],
        "quantiles": list(quantiles()),
        "shapley": [shapley_case(rng, players) for players in (1, 2, 3, 5)],
        "modality_gap": gap_case(rng),
        "agreement": agreement_case(rng),
    }
    OUT.write_text(json.dumps(golden, separators=(",", ":")) + "\n")
    print(f"{OUT.name}: {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
