# /// script
# requires-python = ">=3.10"
# dependencies = ["torch==2.15.0", "numpy==2.4.6", "safetensors==0.8.0"]
# ///
"""Writes tests/golden/amco.safetensors: masked shares, dependences, and a masked step with its gradients, in float64 and
float32.

    python tests/golden/generate/amco.py

The rules are those of the port in GeWu-Lab/BalanceBenchmark @2603a98 (trainer) and @05e0e81 (model), with a given mask.
crates/mm-balance/tests/it/golden/amco.rs reads it.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

ROWS, CLASSES, WIDTHS, RAMP, EPOCH, BATCHES = 7, 4, [6, 5, 4], 0.3, 1, 6


def main() -> None:
    torch.manual_seed(8)
    double = torch.float64
    shares, progress = [], 0.0
    for _ in range(BATCHES):
        shares.append(float(np.sin(np.pi / 2 * (min(RAMP, progress) / RAMP))))
        progress += EPOCH / 10
    labels = torch.randint(0, CLASSES, (ROWS,))
    out = {"labels": labels, "ramp": torch.tensor([RAMP, EPOCH], dtype=double)}
    out["shares"] = torch.tensor(shares, dtype=double)
    share = shares[1]
    for count in (2, 3):
        h = [torch.randn(ROWS, w, dtype=double) for w in WIDTHS[:count]]
        w = [torch.randn(CLASSES, d, dtype=double) for d in WIDTHS[:count]]
        bias = torch.randn(CLASSES, dtype=double)
        masked = int(share * WIDTHS[0])
        kept = torch.cat([torch.ones(WIDTHS[0] - masked), torch.zeros(masked)])[torch.randperm(WIDTHS[0])]
        out[f"m{count}.kept"] = kept.to(torch.int64)
        for prefix, dtype in (("f64", double), ("f32", torch.float32)):
            key = f"{prefix}.m{count}"
            leaves = {f"h{m}": h[m] for m in range(count)} | {f"w{m}": w[m] for m in range(count)} | {"bias": bias}
            leaves = {name: value.to(dtype).clone().requires_grad_() for name, value in leaves.items()}
            out |= {f"{key}.param.{name}": value.detach().clone() for name, value in leaves.items()}
            # The first modality is the dependent one.
            z = [leaves[f"h{m}"] for m in range(count)]
            z[0] = z[0] * kept.to(dtype) * 1 / (1 - share)
            logits = [z[m] @ leaves[f"w{m}"].T + leaves["bias"] / count for m in range(count)]
            joined = F.softmax(torch.cat(logits, 1), dim=1)
            parts = [joined[:, m * CLASSES : (m + 1) * CLASSES].sum() / ROWS for m in range(count)]
            loss = F.cross_entropy(sum(logits), labels) + sum(F.cross_entropy(u, labels) for u in logits)
            found = torch.autograd.grad(loss, list(leaves.values()))
            out |= {f"{key}.dependence": torch.stack(parts).detach().to(double), f"{key}.loss": loss.detach()}
            out |= {f"{key}.grad.{name}": grad for name, grad in zip(leaves, found)}
    path = Path(__file__).resolve().parents[1] / "amco.safetensors"
    metadata = {"source": "own", "torch": torch.__version__.split("+")[0]}
    save_file({k: v.contiguous() for k, v in sorted(out.items())}, path, metadata=metadata)


if __name__ == "__main__":
    main()
