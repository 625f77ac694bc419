# /// script
# requires-python = ">=3.10"
# dependencies = ["torch==2.15.0", "numpy==2.4.6", "safetensors==0.8.0"]
# ///
"""Writes tests/golden/info_reg.safetensors: growth of the information, coefficients and regulated gradients of InfoReg.

    python tests/golden/generate/info_reg.py

crates/mm-balance/tests/it/golden/info_reg.rs reads it.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file

STRENGTH, THRESHOLD, WINDOW = 0.95, 0.04, 10


def growth(traces: list[float]) -> float:
    if not traces:
        return 1.0
    now = sum(traces[-WINDOW:]) / WINDOW
    before = sum(traces[-WINDOW - 1 : -1]) / WINDOW
    return (now - before) / now


def main() -> None:
    torch.manual_seed(0)
    # Information that rises, saturates and falls.
    epochs = torch.arange(16, dtype=torch.float64)
    traces = epochs * torch.exp(-epochs / 6) + 0.5 + 0.05 * torch.rand(16, dtype=torch.float64)
    grown = torch.tensor([growth(traces[:e].tolist()) for e in range(17)], dtype=torch.float64)
    scores = torch.tensor([[0.625, 0.375, 0.25], [0.25, 0.5, 0.375], [0.1, 0.9, 0.2]], dtype=torch.float64)
    gaps = torch.stack([(3 * s - s.sum()) / 2 for s in scores])
    # At the growth of epochs 1, 5 and 14: inside the window, inside, and outside of it.
    at = [1, 5, 14]
    inside = torch.tensor([[1.0 if grown[e] > THRESHOLD else 0.0] for e in at], dtype=torch.float64)
    ahead = (gaps > 0).double()
    coefficients = STRENGTH * torch.exp(torch.tanh(gaps)) * ahead * inside
    out = {
        "traces": traces,
        "growth": grown,
        "scores": scores,
        "gaps": gaps,
        "epochs": torch.tensor(at),
        "coefficients": coefficients,
    }
    path = Path(__file__).resolve().parents[1] / "info_reg.safetensors"
    metadata = {"source": "own", "torch": torch.__version__.split("+")[0]}
    save_file({k: v.contiguous() for k, v in sorted(out.items())}, path, metadata=metadata)


if __name__ == "__main__":
    main()
