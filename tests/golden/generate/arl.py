# /// script
# requires-python = ">=3.10"
# dependencies = ["torch==2.15.0", "numpy==2.4.6", "safetensors==0.8.0"]
# ///
"""Writes tests/golden/arl.safetensors: the coefficients of ARL for two modalities, in float64 and float32.

    python tests/golden/generate/arl.py

Written from the rules of the released code (shicaiwei123/ICCV2025-ARL @51a9de33), not with it: a linear head over both features,
unimodal logits with the other feature zero, weights by entropy and magnitude. Each case holds the features, the head, the weights,
the summed loss, and the gradients of the features as the encoders get them, times one plus the weight.
crates/mm-balance/tests/it/golden/arl.rs reads it.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

ROWS, CLASSES, WIDTHS, TEMPERATURE = 9, 4, (5, 3), 8.0


def case(scale: float, dtype: torch.dtype, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    a, v = (draw(ROWS, WIDTHS[0]) * scale), draw(ROWS, WIDTHS[1])
    head, bias = draw(CLASSES, sum(WIDTHS)), draw(CLASSES)
    a, v, head, bias = (x.to(dtype) for x in (a, v, head, bias))
    labels = torch.arange(ROWS) % CLASSES
    a.requires_grad_()
    v.requires_grad_()
    fused = torch.cat([a, v], 1) @ head.T + bias
    alone = [a @ head[:, : WIDTHS[0]].T + bias, v @ head[:, WIDTHS[0] :].T + bias]
    loss = F.cross_entropy(fused, labels) + sum(F.cross_entropy(z, labels) for z in alone)
    loss.backward()
    with torch.no_grad():
        magnitude = torch.stack([z.abs().mean(0).sum() for z in alone])
        dependence = magnitude / magnitude.sum()
        entropy = torch.stack([-(z.softmax(1) * z.log_softmax(1)).sum(1).mean() for z in alone])
        certainty = 1 / (entropy / entropy.sum()).clamp(min=0.3)
        certainty = certainty / certainty.sum()
        weight = (TEMPERATURE * dependence.flip(0) * certainty).softmax(0)
    return {
        "feat_a": a.detach(), "feat_v": v.detach(), "W": head, "b": bias, "labels": labels,
        "out_a": alone[0].detach(), "out_v": alone[1].detach(), "magnitude": magnitude, "entropy": entropy,
        "weight": weight, "loss": loss.detach(),
        "grad_a": a.grad * (1 + weight[0]), "grad_v": v.grad * (1 + weight[1]),
    }


def main() -> None:
    tensors: dict[str, torch.Tensor] = {}
    for prefix, dtype in {"f64": torch.float64, "f32": torch.float32}.items():
        # A leader by size, equals, and one so certain that its share of the entropy meets the floor.
        for n, scale in enumerate([2.0, 1.0, 6.0]):
            found = case(scale, dtype, 11 + n)
            tensors[f"case{n}.labels"] = found.pop("labels")
            tensors |= {f"{prefix}.case{n}.{name}": t.contiguous() for name, t in found.items()}
    path = Path(__file__).resolve().parent.parent / "arl.safetensors"
    save_file(tensors, path, metadata={"source": "own: generate/arl.py", "torch": torch.__version__})


if __name__ == "__main__":
    main()
