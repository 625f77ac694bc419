# /// script
# requires-python = ">=3.10"
# dependencies = ["torch==2.15.0", "numpy==2.4.6", "safetensors==0.8.0"]
# ///
"""Writes tests/golden/relearning.safetensors: purities by k-means and the share of a reset.

    python tests/golden/generate/relearning.py

k-means takes the best of 300 random starts, which no other start of the same data beats: it is the optimum of data as easy
as these. crates/mm-balance/tests/it/golden/relearning.rs reads it.
"""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

CLASSES, DIM = 4, 5


def scaled(x: np.ndarray) -> np.ndarray:
    low, high = x.min(0), x.max(0)
    return 2 * (x - low) / (high - low) - 1


def k_means(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    best = (np.inf, None)
    for _ in range(300):
        centres = x[rng.choice(len(x), CLASSES, replace=False)]
        for _ in range(100):
            member = ((x[:, None] - centres) ** 2).sum(2).argmin(1)
            moved = np.stack([x[member == c].mean(0) if (member == c).any() else centres[c] for c in range(CLASSES)])
            if np.array_equal(moved, centres):
                break
            centres = moved
        total = ((x - centres[member]) ** 2).sum()
        if total < best[0]:
            best = (total, member)
    return best[1]


def purity(labels: np.ndarray, member: np.ndarray) -> float:
    return sum(np.bincount(labels[member == c], minlength=CLASSES).max() for c in range(CLASSES)) / len(labels)


def main() -> None:
    rng = np.random.default_rng(0)
    centres = 2.5 * rng.standard_normal((CLASSES, DIM))
    out: dict[str, np.ndarray] = {}
    purities = []
    # Clusters that are easy to find, and some rows of another class in each.
    for part, (rows, wrong) in {"train": (120, 0.05), "held_out": (60, 0.25)}.items():
        labels = rng.integers(0, CLASSES, rows)
        x = scaled(centres[labels] + 0.7 * rng.standard_normal((rows, DIM)))
        labels = np.where(rng.random(rows) < wrong, rng.integers(0, CLASSES, rows), labels)
        purities.append(purity(labels, k_means(x, rng)))
        out |= {f"{part}.features": 3 * x + 1, f"{part}.labels": labels, f"{part}.scaled": x}
        out[f"{part}.purity"] = np.array(purities[-1])
    gap = np.array([0.0, 0.05, 0.2, 0.5, purities[0] - purities[1], purities[1] - purities[0]])
    out |= {"gap": gap, "share": np.tanh(3 * np.abs(gap))}
    path = Path(__file__).resolve().parents[1] / "relearning.safetensors"
    save_file({k: np.ascontiguousarray(v) for k, v in sorted(out.items())}, path, metadata={"source": "own", "numpy": np.__version__})


if __name__ == "__main__":
    main()
