# /// script
# requires-python = ">=3.10"
# dependencies = ["torch==2.15.0", "numpy==2.4.6", "safetensors==0.8.0"]
# ///
"""Writes tests/golden/mbsd.safetensors: the self-distillation of MBSD for two and three modalities, in float64 and float32.

    python tests/golden/generate/mbsd.py

Our reading of the method, row by row: where the modality with the most probability for the right class decides rightly, the others
are drawn to its distribution, weighted by how far they lag. crates/mm-balance/tests/it/golden/mbsd.rs reads it.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

ROWS, CLASSES = 10, 4


def case(count: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(20 + count)
    logits = [torch.randn(ROWS, CLASSES, generator=generator, dtype=torch.float64) * 2 for _ in range(count)]
    labels = torch.arange(ROWS) % CLASSES
    logits = [z.to(dtype).requires_grad_() for z in logits]
    total = torch.zeros((), dtype=dtype)
    leaders = []
    for row, y in enumerate(labels.tolist()):
        p = [z[row].softmax(0).detach() for z in logits]
        leader = max(range(count), key=lambda m: p[m][y])
        leaders.append(leader)
        if p[leader].argmax() != y:
            continue
        for m in range(count):
            if m != leader:
                weight = p[leader][y] - p[m][y]
                divergence = (p[leader] * (p[leader].log() - logits[m][row].log_softmax(0))).sum()
                total = total + weight * divergence / ROWS / (count - 1)
    loss = total + sum(F.cross_entropy(z, labels) for z in logits)
    transfer = torch.autograd.grad(total, logits, retain_graph=True)
    found = {"labels": labels, "leaders": torch.tensor(leaders), "transfer": total.detach(), "loss": loss.detach()}
    for m in range(count):
        found |= {f"logits{m}": logits[m].detach(), f"grad{m}": transfer[m]}
    return found


def main() -> None:
    tensors: dict[str, torch.Tensor] = {}
    for prefix, dtype in {"f64": torch.float64, "f32": torch.float32}.items():
        for count in (2, 3):
            found = case(count, dtype)
            tensors[f"m{count}.labels"] = found.pop("labels")
            tensors[f"m{count}.leaders"] = found.pop("leaders")
            tensors |= {f"{prefix}.m{count}.{name}": t.contiguous() for name, t in found.items()}
    path = Path(__file__).resolve().parent.parent / "mbsd.safetensors"
    save_file(tensors, path, metadata={"source": "own: generate/mbsd.py", "torch": torch.__version__})


if __name__ == "__main__":
    main()
