# /// script
# requires-python = ">=3.10"
# dependencies = ["torch==2.15.0", "numpy==2.4.6", "safetensors==0.8.0"]
# ///
"""Writes tests/golden/cggm.safetensors: balance terms and the direction loss of CGGM, in float64 and float32.

    python tests/golden/generate/cggm.py

The gradients that are compared are taken by autograd, `create_graph=True`, w.r.t. the block of a linear fusion and the
weight of a linear classifier. crates/mm-balance/tests/it/golden/cggm.rs reads it.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

ROWS, CLASSES, WIDTHS = 8, 5, [4, 3]
# Improvements of the accuracies: usual, nobody, on balance none, one falls back.
IMPROVEMENTS = [[0.25, 0.125], [0.0, 0.0], [0.125, -0.25], [0.5, -0.125]]
BOUND = 5.0


def balance(deltas: list[float]) -> list[float]:
    total = sum(deltas)
    if total <= 0:
        return [(len(deltas) - 1) / len(deltas)] * len(deltas)
    return [min(max((total - d) / total, 0.0), BOUND) for d in deltas]


def main() -> None:
    torch.manual_seed(0)
    double = torch.float64
    h = [torch.randn(ROWS, w, dtype=double) for w in WIDTHS]
    blocks = [torch.randn(CLASSES, w, dtype=double) * 0.5 for w in WIDTHS]
    bias = torch.randn(CLASSES, dtype=double) * 0.1
    heads = [torch.randn(CLASSES, w, dtype=double) * 0.5 for w in WIDTHS]
    shifts = [torch.randn(CLASSES, dtype=double) * 0.1 for _ in WIDTHS]
    labels = torch.randint(0, CLASSES, (ROWS,))
    out = {
        "labels": labels,
        "improvements": torch.tensor(IMPROVEMENTS, dtype=double),
        "balance": torch.tensor([balance(d) for d in IMPROVEMENTS], dtype=double),
    }
    for prefix, dtype in (("f64", double), ("f32", torch.float32)):
        leaf = lambda x: x.to(dtype).clone().requires_grad_()  # noqa: E731
        x, w, b = [leaf(t) for t in h], [leaf(t) for t in blocks], leaf(bias)
        u, c = [leaf(t) for t in heads], [leaf(t) for t in shifts]
        fused = sum(x[m] @ w[m].T for m in range(2)) + b
        task = F.cross_entropy(fused, labels)
        term = 0.0
        weights = balance(IMPROVEMENTS[0])
        for m in range(2):
            logits = x[m].detach() @ u[m].T + c[m]
            ours = torch.autograd.grad(task, w[m], create_graph=True)[0]
            theirs = torch.autograd.grad(F.cross_entropy(logits, labels), u[m])[0].detach()
            cosine = (ours * theirs).sum() / (ours.norm() * theirs.norm())
            term = term + (abs(weights[m]) - weights[m] * cosine) / 2
            out |= {f"{prefix}.logits{m}": logits.detach(), f"{prefix}.cosine{m}": cosine.detach()}
            out |= {f"{prefix}.param.block{m}": w[m].detach(), f"{prefix}.x{m}": x[m].detach()}
        leaves = {"x0": x[0], "x1": x[1], "block0": w[0], "block1": w[1], "bias": b}
        grads = torch.autograd.grad(term, list(leaves.values()))
        out |= {f"{prefix}.grad.{name}": g for name, g in zip(leaves, grads)}
        out |= {f"{prefix}.param.bias": b.detach(), f"{prefix}.fused": fused.detach(), f"{prefix}.direction": term.detach()}
    path = Path(__file__).resolve().parents[1] / "cggm.safetensors"
    metadata = {"source": "own", "torch": torch.__version__.split("+")[0]}
    save_file({k: v.contiguous() for k, v in sorted(out.items())}, path, metadata=metadata)


if __name__ == "__main__":
    main()
