# /// script
# requires-python = ">=3.10"
# dependencies = ["torch==2.15.0", "numpy==2.4.6", "safetensors==0.8.0"]
# ///
"""Writes tests/golden/mcr.safetensors: the three terms of MCR with gradients, in float64 and float32.

    python tests/golden/generate/mcr.py

The rules are those of kkontras/MCR @338d370 for a linear fusion: which predictions are detached in which divergence, under
three strategies, with the clean prediction attached. A share of the fused logits carries its part of the bias, and so
detaches it. The contrastive loss is NT-Xent over labels, as in pytorch-metric-learning.
crates/mm-balance/tests/it/golden/mcr.rs reads it.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

ROWS, CLASSES, WIDTH, SAMPLES, TEMPERATURE = 6, 4, 3, 5, 0.5


def js(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    p, q = F.softmax(a, dim=1), F.softmax(b, dim=1)
    middle = torch.clamp(0.5 * (p + q), 1e-20, 1).log()
    return 0.5 * (F.kl_div(middle, p, reduction="batchmean") + F.kl_div(middle, q, reduction="batchmean"))


def nt_xent(z: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    z = F.normalize(z, dim=1)
    s = z @ z.T / TEMPERATURE
    losses = []
    for a in range(len(labels)):
        negatives = [n for n in range(len(labels)) if labels[n] != labels[a]]
        for p in range(len(labels)):
            if p != a and labels[p] == labels[a]:
                losses.append(-(s[a, p] - torch.logsumexp(torch.stack([s[a, p], *[s[a, n] for n in negatives]]), 0)))
    return torch.stack(losses).mean()


def main() -> None:
    torch.manual_seed(5)
    double = torch.float64
    out = {"labels": torch.randint(0, CLASSES - 1, (ROWS,)), "temperature": torch.tensor([TEMPERATURE], dtype=double)}
    for count in (2, 3):
        h = [torch.randn(ROWS, WIDTH, dtype=double) for _ in range(count)]
        w = [torch.randn(CLASSES, WIDTH, dtype=double) for _ in range(count)]
        bias = torch.randn(CLASSES, dtype=double) * 0.3
        hidden, wide = torch.randn(WIDTH, CLASSES, dtype=double), torch.randn(count * WIDTH, WIDTH, dtype=double)
        pairs = []
        for m in range(count):
            rows, partners = [], []
            for _ in range(SAMPLES):
                order = torch.randperm(ROWS)
                keep = order != torch.arange(ROWS)
                rows.append(torch.arange(ROWS)[keep])
                partners.append(order[keep])
            pairs.append((torch.cat(rows), torch.cat(partners)))
            out |= {f"m{count}.rows{m}": pairs[m][0], f"m{count}.partners{m}": pairs[m][1]}
        for prefix, dtype in (("f64", double), ("f32", torch.float32)):
            key = f"{prefix}.m{count}"
            leaves = {f"h{m}": h[m] for m in range(count)} | {f"w{m}": w[m] for m in range(count)}
            leaves |= {"bias": bias, "hidden": hidden, "wide": wide}
            leaves = {name: value.to(dtype).clone().requires_grad_() for name, value in leaves.items()}
            out |= {f"{key}.param.{name}": value.detach().clone() for name, value in leaves.items()}
            shares = [leaves[f"h{m}"] @ leaves[f"w{m}"].T + leaves["bias"] / count for m in range(count)]
            fused = sum(shares)

            def permuted(m: int, live: set[int]) -> torch.Tensor:
                rows, partners = pairs[m]
                terms = [s if n in live else s.detach() for n, s in enumerate(shares)]
                return sum(t[partners] if n == m else t[rows] for n, t in enumerate(terms))

            def divergence(m: int, live: set[int]) -> torch.Tensor:
                return js(permuted(m, live), fused[pairs[m][0]])

            everyone = set(range(count))
            terms = {
                "greedy": sum(-divergence(m, {m}) + divergence(m, everyone - {m}) for m in range(count)),
                "independent": sum(-divergence(m, {m}) for m in range(count)),
                "collaborative": sum(-divergence(m, everyone) for m in range(count)),
                "contrast": nt_xent(torch.cat([leaves[f"h{m}"] for m in range(count)]), out["labels"].repeat(count)),
            }
            explained = torch.relu(fused.detach() @ leaves["hidden"].T) @ leaves["wide"].T
            features = torch.cat([leaves[f"h{m}"] for m in range(count)], 1)
            terms["bottleneck"] = F.mse_loss(features, explained)
            out[f"{key}.divergences"] = torch.stack([divergence(m, everyone).detach() for m in range(count)])
            for name, term in terms.items():
                if name in ("contrast", "bottleneck"):
                    out[f"{key}.{name}"] = term.detach()
                found = torch.autograd.grad(term, list(leaves.values()), retain_graph=True, allow_unused=True)
                for leaf, grad in zip(leaves, found):
                    if grad is not None:
                        out[f"{key}.{name}.grad.{leaf}"] = grad
    path = Path(__file__).resolve().parents[1] / "mcr.safetensors"
    metadata = {"source": "own", "torch": torch.__version__.split("+")[0]}
    save_file({k: v.contiguous() for k, v in sorted(out.items())}, path, metadata=metadata)


if __name__ == "__main__":
    main()
