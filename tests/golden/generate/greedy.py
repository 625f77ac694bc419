# /// script
# requires-python = ">=3.10"
# dependencies = ["torch==2.15.0", "numpy==2.4.6", "safetensors==0.8.0"]
# ///
"""Writes tests/golden/greedy.safetensors: a toy net with gates between its modalities, trained with re-balancing steps by
conditional learning speed, in float64 and float32.

    python tests/golden/generate/greedy.py

The rules are those of nyukat/greedy_multimodal_learning @cf28c4c: speeds ‖g‖²/‖w‖², of encoder and output layer against the
layers of the gates, added up over regular steps; the decision after the backward pass; a window of steps in which the gate of
the chosen modality is the running mean of its gates. The loss is that of the mean of the branches. For three modalities the
largest and the smallest speed are compared. crates/mm-balance/tests/it/golden/greedy.rs reads it.
"""

from math import log10
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

ROWS, CLASSES, STEPS, RATE = 6, 3, 14, 0.5
CASES = {"m2": ([4, 5], [3, 4]), "m3": ([4, 5, 3], [3, 4, 2])}
TOLERANCE, WINDOW, RATIO = 0.2, 3, 4


def run(prefix: str, dtype: torch.dtype, inputs: list[int], widths: list[int], start: dict, x: list, y: torch.Tensor) -> dict:
    count = len(widths)
    p = {name: value.to(dtype).clone().requires_grad_() for name, value in start.items()}
    means = [torch.zeros(w, dtype=dtype) for w in widths]
    main, bypass = [0.0] * count, [0.0] * count
    held, left = None, 0
    trace = {"loss": [], "speed": [], "held": []}
    out = {}
    for step in range(STEPS):
        h = [torch.tanh(x[m][step].to(dtype) @ p[f"encoder.m{m}.weight"].T + p[f"encoder.m{m}.bias"]) for m in range(count)]
        squeeze = torch.cat([p[f"fusion.squeeze.m{m}.weight"] for m in range(count)], 1)
        excitation = torch.relu(torch.cat(h, 1) @ squeeze.T + p["fusion.squeeze.bias"])
        logits = []
        for m in range(count):
            gate = torch.sigmoid(excitation @ p[f"fusion.excite.m{m}.weight"].T + p[f"fusion.excite.m{m}.bias"])
            means[m] = ((gate.mean(0) + means[m] * step) / (step + 1)).detach()
            if held == m:
                gate = means[m].expand_as(gate)
            logits.append((gate * h[m]) @ p[f"fusion.out.m{m}.weight"].T + p[f"fusion.out.m{m}.bias"])
        loss = F.cross_entropy(sum(logits) / count, y[step])
        for v in p.values():
            v.grad = None
        loss.backward()
        trace["loss"].append(loss.detach())
        trace["held"].append(-1.0 if held is None else float(held))
        if step == 0:
            out |= {f"{prefix}.grad.{name}": v.grad.clone() for name, v in p.items()}
        if held is None:
            for m in range(count):
                own = [f"encoder.m{m}", f"fusion.out.m{m}"]
                others = ["fusion.squeeze", f"fusion.excite.m{m}"]
                for sums, groups in ((main, own), (bypass, others)):
                    names = [n for n in p if any(n.startswith(g + ".") for g in groups)]
                    sums[m] += sum((p[n].grad ** 2).sum().item() for n in names) / sum(
                        (p[n] ** 2).sum().item() for n in names
                    )
            speeds = [log10(b / a) for a, b in zip(main, bypass)]
            if max(speeds) - min(speeds) > TOLERANCE:
                held, left = speeds.index(max(speeds)), WINDOW
        else:
            left -= 1
            if left == 0:
                held = None
        trace["speed"].append(torch.tensor(speeds, dtype=torch.float64))
        with torch.no_grad():
            for v in p.values():
                if v.grad is not None:
                    v -= RATE * v.grad
    out |= {f"{prefix}.end.{name}": v.detach() for name, v in p.items()}
    out |= {f"{prefix}.mean.m{m}": means[m] for m in range(count)}
    out[f"{prefix}.loss"] = torch.stack(trace["loss"])
    out[f"{prefix}.speed"] = torch.stack(trace["speed"])
    out[f"{prefix}.held"] = torch.tensor(trace["held"], dtype=torch.float64)
    return out


def main() -> None:
    torch.manual_seed(3)
    double = torch.float64
    out = {"settings": torch.tensor([TOLERANCE, WINDOW, RATIO, RATE], dtype=double)}
    for case, (inputs, widths) in CASES.items():
        total = sum(widths)
        narrow = int(2 * total / RATIO)
        draw = lambda *shape: torch.randn(*shape, dtype=double) * 0.6  # noqa: E731
        start = {}
        for m, (i, w) in enumerate(zip(inputs, widths)):
            start |= {f"encoder.m{m}.weight": draw(w, i), f"encoder.m{m}.bias": draw(w)}
            start |= {f"fusion.squeeze.m{m}.weight": draw(narrow, w)}
            start |= {f"fusion.excite.m{m}.weight": draw(w, narrow), f"fusion.excite.m{m}.bias": draw(w)}
            start |= {f"fusion.out.m{m}.weight": draw(CLASSES, w), f"fusion.out.m{m}.bias": draw(CLASSES)}
        start["fusion.squeeze.bias"] = draw(narrow)
        y = torch.randint(0, CLASSES, (STEPS, ROWS))
        centres = [torch.randn(CLASSES, i, dtype=double) * (1.5 - 0.5 * m) for m, i in enumerate(inputs)]
        x = [centres[m][y] + 0.3 * torch.randn(STEPS, ROWS, i, dtype=double) for m, i in enumerate(inputs)]
        out |= {f"{case}.start.{name}": value for name, value in start.items()}
        out |= {f"{case}.x{m}": value for m, value in enumerate(x)}
        out[f"{case}.labels"] = y.flatten()
        for prefix, dtype in (("f64", double), ("f32", torch.float32)):
            # The inputs of both are those of float64, rounded.
            out |= {f"{prefix}.{case}" + k[len(prefix):]: v for k, v in run(prefix, dtype, inputs, widths, start, x, y).items()}
    path = Path(__file__).resolve().parents[1] / "greedy.safetensors"
    metadata = {"source": "own", "torch": torch.__version__.split("+")[0]}
    save_file({k: v.contiguous() for k, v in sorted(out.items())}, path, metadata=metadata)
    for case in CASES:
        print(case, out[f"f64.{case}.held"].tolist(), out[f"f64.{case}.speed"][-1].tolist())


if __name__ == "__main__":
    main()
