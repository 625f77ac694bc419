# The other side of the rows `data-…` of `cargo xtask bench peer`: one step at a time, when it is told to, on one thread.
# Needs librosa for data-stft, soundfile for data-wav, Pillow and torchvision for data-jpeg. The lines that it reads and
# writes are described in side.rs; the files are made by crates/mm-data/examples/peer_data.rs, and what is done with them
# is what the published recipes do.
import sys

# Not the folder that this was started in: libraries import whatever there has the name of a module they look for.
sys.path = [folder for folder in sys.path if folder]

import argparse
import json
import math
import os
import signal
import time

import numpy as np


def memory(what):
    """The memory that this process holds (VmRSS) or held at most (VmHWM), in MiB."""
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) / 1024 for line in status if line.startswith(what + ":"))
    except (OSError, StopIteration):
        return None


def say(answer):
    print(json.dumps(answer), flush=True)


def build(row, batch, files):
    """A library's name, and a function of no arguments that does all items once and returns what the last one gave."""
    paths = lambda ending: [os.path.join(files, f"{item:04}.{ending}") for item in range(batch)]
    if row == "data-stft":
        import librosa
        import soundfile

        clips = [soundfile.read(path, dtype="float32")[0] for path in paths("wav")]

        def item(clip):
            clip = np.clip(clip, -1.0, 1.0)
            return np.log(np.abs(librosa.stft(clip, n_fft=512, hop_length=353)) + 1e-7)

        return f"librosa {librosa.__version__}", item, clips
    if row == "data-jpeg":
        import PIL
        import torch
        from PIL import Image
        from torchvision import transforms

        torch.set_num_threads(1)
        view = transforms.Compose([
            transforms.Resize((224, 224)), transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ])

        def item(path):
            return view(Image.open(path).convert("RGB")).numpy()

        return f"Pillow {PIL.__version__}", item, paths("jpg")
    if row == "data-wav":
        import soundfile

        def item(path):
            return soundfile.read(path, dtype="float32")[0]

        return f"soundfile {soundfile.__version__}", item, paths("wav")
    sys.exit(f"there is no row {row}")


def main():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started this ends it
    parser = argparse.ArgumentParser()
    parser.add_argument("--row", required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--files", required=True)
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    library, item, items = build(args.row, args.batch, args.files)
    say({"ready": library, "mib": memory("VmRSS")})
    for line in sys.stdin:
        words = line.split()
        if words[0] == "quit":
            say({"mib": memory("VmHWM")})
            return
        ms, last = [], np.array([math.nan])
        for _ in range(int(words[1])):
            began = time.perf_counter()
            for one in items:
                last = item(one)
            ms.append((time.perf_counter() - began) * 1e3)
        mean = float(last.mean(dtype=np.float64))
        say({"ms": ms, "loss": mean if math.isfinite(mean) else None})


main()
