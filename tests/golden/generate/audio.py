# /// script
# requires-python = ">=3.10"
# dependencies = [
#   "librosa==0.11.0", "scipy==1.17.1", "soundfile==0.14.0", "torch==2.15.0", "torchaudio==2.5.1",
#   "transformers==5.23.0", "numpy==2.4.6", "safetensors==0.8.0",
# ]
# ///
"""Writes tests/golden/audio.safetensors: what librosa, SciPy, torchaudio and transformers make of short clips.

    python tests/golden/generate/audio.py

Everything is computed in float64 and kept in float32, of long results only every few rows and columns. `signal` is the
one clip; a case takes its first samples and calls them sound of some rate. The metadata hold the cases: the
front-end's settings as JSON, the samples, the rate, the strides, the full shape. `resample.` are whole clips at other
rates, `soxr.` some of them as librosa makes them by default, `wav.` files of libsndfile as bytes and what it reads from
them, `media.` the same for FLAC, Ogg and MP3, and for AAC of the program ffmpeg (5.1.9).
crates/mm-data/tests/it/audio_golden.rs reads it. At the end the script prints how far librosa's own single precision
and its default resampler are from these numbers.

Of torchaudio the two Python files are loaded without its compiled library, which belongs to another torch.
"""

import importlib.machinery
import importlib.util
import io
import json
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import librosa
import numpy as np
import scipy
import soundfile
import torch
from safetensors.numpy import save_file

torch.set_default_dtype(torch.float64)


def torchaudio_files():
    root = Path(importlib.util.find_spec("torchaudio").submodule_search_locations[0])
    names = ["torchaudio", "torchaudio.functional", "torchaudio._internal", "torchaudio.compliance"]
    for name in names:
        place = root.joinpath(*name.split(".")[1:])
        module = types.ModuleType(name)
        module.__path__ = [str(place)]
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        sys.modules[name] = module
    filtering = types.ModuleType("torchaudio.functional.filtering")
    filtering.highpass_biquad = filtering.treble_biquad = None
    sys.modules["torchaudio.functional.filtering"] = filtering
    from torchaudio.functional import functional

    sys.modules["torchaudio"].functional = functional
    from torchaudio.compliance import kaldi

    return functional, kaldi


FUNCTIONAL, KALDI = torchaudio_files()

# transformers asks for a package `kernels`: it must not find kernels.py, which would write its own file anew.
sys.path = [place for place in sys.path if Path(place or ".").resolve() != Path(__file__).resolve().parent]

from transformers import Wav2Vec2FeatureExtractor  # noqa: E402

LN = {"kind": "ln", "eps": 1e-7}
KAISER = {"resampling_method": "sinc_interp_kaiser", "lowpass_filter_width": 64,
          "rolloff": 0.9475937167399596, "beta": 14.769656459379492}  # fmt: skip


def windowed_sinc(x: np.ndarray, a: int, b: int, zeros: float, rolloff: float, beta: float) -> np.ndarray:
    """A sinc under a Kaiser window, at the rate a * b."""
    divisor = np.gcd(a, b)
    a, b = a // divisor, b // divisor
    base = rolloff * min(a, b)
    half = int(zeros * a * b / base)
    half += -half % a
    t = np.arange(-half, half + 1) * base / (a * b)
    inside = np.sqrt(np.clip(1 - (t / zeros) ** 2, 0, None))
    h = np.where(np.abs(t) < zeros, np.sinc(t) * np.i0(beta * inside) / np.i0(beta) * base / a, 0.0)
    y = scipy.signal.upfirdn(h, x, b, a)[half // a :]
    return np.pad(y, (0, max(0, -(-len(x) * b // a) - len(y))))[: -(-len(x) * b // a)]


METHODS = {
    "soxr-like": lambda x, a, b: windowed_sinc(x, a, b, 105.2, 0.95684, 15.92),
    "sinc": lambda x, a, b: FUNCTIONAL.resample(torch.from_numpy(x), a, b).numpy(),
    "sinc-kaiser": lambda x, a, b: FUNCTIONAL.resample(torch.from_numpy(x), a, b, **KAISER).numpy(),
    "polyphase": lambda x, a, b: librosa.resample(x, orig_sr=a, target_sr=b, res_type="polyphase"),
}


def signal(n: int) -> np.ndarray:
    """Syllables of a gliding voice with noise, loud enough to pass 1 now and then; pauses between them."""
    rng = np.random.default_rng(20)
    t = np.arange(n) / 16000
    pitch = 2 * np.pi * np.cumsum(140 + 60 * np.sin(2 * np.pi * 1.7 * t)) / 16000
    voice = sum(np.sin(k * pitch + k) / k for k in range(1, 30))
    envelope = np.clip(np.sin(2 * np.pi * 2.3 * t), 0, None) ** 2
    noise = rng.standard_normal(n)
    x = 0.7 * envelope * voice + 0.05 * envelope**0.5 * noise + 0.001 * noise + 0.02
    return x.astype(np.float32)


CLIP = signal(30011)
SILENCE = np.zeros(3000, np.float32)


def scaled(s: np.ndarray, scale: dict) -> np.ndarray:
    if scale["kind"] == "ln":
        return np.log(s + scale["eps"])
    if scale["kind"] == "db":
        return librosa.power_to_db(s, amin=scale["floor"], top_db=scale["top"])
    return s


def prepared(x: np.ndarray, rate: int, given: dict) -> np.ndarray:
    x = x.astype(np.float64)
    if rate != given["rate"]:
        # Single precision, as between any two steps: the noise of its rounding shows in the bands that are empty.
        x = METHODS[given.get("resample", "sinc")](x, rate, given["rate"]).astype(np.float32).astype(np.float64)
    if given.get("remove_mean"):
        x = (x - x.mean()).astype(np.float32).astype(np.float64)
    if wanted := given.get("samples"):
        if len(x) < wanted:
            x = np.resize(x, wanted) if given.get("short", "tile") == "tile" else np.pad(x, (0, wanted - len(x)))
        start = (len(x) - wanted) // 2 if given.get("take") == "centre" else 0
        x = x[start : start + wanted]
    return np.clip(x, -1, 1) if given.get("clamp") else x


def stft(x, c):
    padding = c.get("padding", "constant")
    z = librosa.stft(x, n_fft=c["n_fft"], hop_length=c["hop"], win_length=c.get("window"), pad_mode=padding)
    return np.abs(z) ** (2 if c.get("spectrum") == "power" else 1)


def analysed(x, c, recipe) -> np.ndarray:
    """(bins, time), as librosa lays it out."""
    rate = recipe["input"]["rate"]
    kind = recipe["kind"]
    if kind == "stft":
        return scaled(stft(x, recipe), recipe.get("scale", LN))
    if kind == "psd":
        window = ("tukey", recipe.get("taper", 0.25))
        s = scipy.signal.spectrogram(x, rate, window=window, nperseg=recipe["segment"], noverlap=recipe["overlap"])[2]
        return scaled(s, recipe.get("scale", LN))
    if kind in ("log-mel", "mfcc"):
        m = recipe if kind == "log-mel" else recipe["mel"]
        s = librosa.feature.melspectrogram(
            S=stft(x, m | {"spectrum": "power"}), sr=rate, n_fft=m["n_fft"], n_mels=m["bins"], fmin=m.get("low", 0.0),
            fmax=m.get("high"), htk=m.get("curve") == "htk", norm="slaney" if m.get("area", True) else None,
            dtype=np.float64,
        )  # fmt: skip
        if kind == "mfcc":
            return librosa.feature.mfcc(S=librosa.power_to_db(s), n_mfcc=recipe["coefficients"])
        return scaled(s, m.get("scale", LN))
    if kind == "kaldi-fbank":
        s = KALDI.fbank(
            torch.from_numpy(x)[None], num_mel_bins=recipe["bins"], frame_length=recipe.get("length", 25.0),
            frame_shift=recipe.get("shift", 10.0), window_type=recipe.get("window", "povey"),
            sample_frequency=float(rate),
            preemphasis_coefficient=recipe.get("preemphasis", 0.97), remove_dc_offset=recipe.get("remove_dc", True),
            low_freq=recipe.get("low", 20.0), high_freq=recipe.get("high", 0.0), use_power=recipe.get("power", True),
            use_log_fbank=recipe.get("log", True), use_energy=recipe.get("energy", False),
            raw_energy=recipe.get("raw_energy", True), energy_floor=recipe.get("energy_floor", 1.0),
            htk_compat=recipe.get("htk_compat", False), snip_edges=recipe.get("snip_edges", True), dither=0.0,
        ).numpy()  # fmt: skip
        if frames := recipe.get("frames"):
            s = np.pad(s, ((0, max(0, frames - len(s))), (0, 0)))[:frames]
        return s.T
    assert kind == "waveform"
    if recipe.get("normalize", True):
        extractor = Wav2Vec2FeatureExtractor(feature_size=1, sampling_rate=rate, do_normalize=True)
        x = np.asarray(extractor.zero_mean_unit_var_norm([x], attention_mask=None)[0])
    return x[None]


def finished(y: np.ndarray, output: dict) -> np.ndarray:
    norm = output.get("norm", {"kind": "none"})
    if norm["kind"] == "clip":
        y = (y - y.mean()) / (y.std() + 1e-9)
    elif norm["kind"] == "constant":
        y = (y - norm["mean"]) / norm["std"]
    return y if output.get("orientation") == "bins-time" else y.T


OGM = {"rate": 22050, "resample": "soxr-like", "samples": 66150, "clamp": True}
UCF = {"rate": 16000, "resample": "soxr-like", "samples": 48000, "channel": 0}
VGG = UCF | {"samples": 80000, "take": "centre", "clamp": True}
AVE = UCF | {"samples": 160000, "clamp": True}
del VGG["channel"], AVE["channel"]
FLAT = {"orientation": "bins-time"}
SMALL = {"kind": "stft", "n_fft": 64, "hop": 23, "input": {"rate": 16000}}
MEL = {"kind": "log-mel", "n_fft": 400, "hop": 160, "bins": 80, "input": {"rate": 16000}}
SPARSE = {"kind": "log-mel", "n_fft": 256, "hop": 100, "bins": 12, "input": {"rate": 16000}}
KALDI_23 = {"kind": "kaldi-fbank", "bins": 23, "input": {"rate": 16000}}
MLA = {"kind": "kaldi-fbank", "bins": 128, "window": "hanning", "htk_compat": True, "frames": 1024,
       "input": {"rate": 16000, "remove_mean": True},
       "output": {"norm": {"kind": "constant", "mean": -5.081, "std": 4.4849}}}  # fmt: skip
BB = MLA | {"output": {"norm": {"kind": "constant", "mean": -4.503877, "std": 2 * 5.141276}}}
MFCC = {"kind": "mfcc", "coefficients": 20, "mel": {"n_fft": 2048, "hop": 512, "bins": 128}, "input": {"rate": 22050}}

# name: (recipe, samples (negative: of silence), rate, row stride, column stride)
CASES = {
    "ogm-stft": ({"kind": "stft", "n_fft": 512, "hop": 353, "input": OGM, "output": FLAT}, 30011, 22050, 7, 5),
    "ogm-stft.resampled": ({"kind": "stft", "n_fft": 512, "hop": 353, "input": OGM, "output": FLAT},
                           30011, 16000, 7, 5),
    "lfm-stft": ({"kind": "stft", "n_fft": 512, "hop": 353, "input": OGM | {"samples": 441000}, "output": FLAT},
                 30011, 22050, 23, 17),
    "ucf-stft": ({"kind": "stft", "n_fft": 512, "hop": 353, "input": UCF, "output": FLAT},
                 30011, 16000, 7, 5),
    "vggsound-stft": ({"kind": "stft", "n_fft": 256, "hop": 128, "input": VGG, "output": FLAT}, 30011, 16000, 7, 11),
    "stft.centre": ({"kind": "stft", "n_fft": 256, "hop": 128, "input": VGG | {"samples": 9000}}, 30011, 16000, 3, 5),
    "stft.zeros": (SMALL | {"input": {"rate": 16000, "samples": 900, "short": "zeros"}}, 700, 16000, 1, 1),
    "scipy-psd": ({"kind": "psd", "segment": 512, "overlap": 353, "input": AVE, "output": FLAT}, 30011, 16000, 7, 19),
    "pmr-psd": ({"kind": "psd", "segment": 512, "overlap": 353, "input": AVE,
                 "output": FLAT | {"norm": {"kind": "clip"}}}, 30011, 16000, 7, 19),
    "log-mel": (MEL, 16000, 16000, 3, 3),
    "log-mel.htk": (SPARSE | {"curve": "htk", "area": False, "low": 100.0, "high": 7000.0,
                              "scale": {"kind": "db", "floor": 1e-10, "top": 80.0}}, 5000, 16000, 1, 1),
    "log-mel.plain": (SPARSE | {"scale": {"kind": "linear"}, "padding": "reflect", "window": 200}, 4001, 16000, 1, 1),
    "log-mel.silence": (MEL, -3000, 16000, 3, 3),
    "mla-fbank": (MLA, 30011, 16000, 5, 3),
    "bb-fbank": (BB, 30011, 16000, 5, 3),
    "kaldi-fbank": (KALDI_23, 16000, 16000, 2, 1),
    "kaldi-fbank.odd": (KALDI_23 | {"input": {"rate": 22050}, "length": 21.3, "shift": 7.7, "window": "hamming",
                                    "high": 9000.0, "low": 0.0, "preemphasis": 0.0}, 7777, 22050, 1, 1),
    "kaldi-fbank.first": (KALDI_23 | {"energy": True, "snip_edges": False, "window": "blackman"}, 4003, 16000, 1, 1),
    "kaldi-fbank.last": (KALDI_23 | {"energy": True, "htk_compat": True, "raw_energy": False, "energy_floor": 0.0,
                                     "power": False, "log": False, "remove_dc": False, "window": "rectangular"},
                         3001, 16000, 1, 1),
    "kaldi-fbank.silence": (KALDI_23 | {"energy": True}, -2000, 16000, 1, 1),
    "mfcc": (MFCC, 22050, 22050, 1, 1),
    "mfcc.16k": (MFCC | {"coefficients": 13, "mel": {"n_fft": 512, "hop": 160, "bins": 40}, "input": {"rate": 16000}},
                 8001, 16000, 1, 1),
    "waveform": ({"kind": "waveform", "input": {"rate": 16000}}, 2001, 16000, 1, 1),
    "waveform.silence": ({"kind": "waveform", "input": {"rate": 16000}}, -50, 16000, 1, 1),
    "waveform.raw": ({"kind": "waveform", "normalize": False, "input": {"rate": 8000, "resample": "polyphase"}},
                     2001, 16000, 1, 1),
    "stft.small": (SMALL, 1001, 16000, 1, 1),
    "stft.power": (SMALL | {"spectrum": "power", "scale": {"kind": "linear"}, "padding": "reflect", "window": 41},
                   1001, 16000, 1, 1),
    "stft.short": (SMALL | {"padding": "reflect"}, 9, 16000, 1, 1),
    "stft.one": (SMALL, 1, 16000, 1, 1),
    "stft.one.reflect": (SMALL | {"padding": "reflect"}, 1, 16000, 1, 1),
    "stft.odd": (SMALL | {"n_fft": 63, "hop": 20}, 700, 16000, 1, 1),
    "stft.silence": (SMALL, -200, 16000, 1, 1),
    "psd.small": ({"kind": "psd", "segment": 61, "overlap": 20, "taper": 0.6, "input": {"rate": 8000}},
                  1000, 8000, 1, 1),
    "psd.hann": ({"kind": "psd", "segment": 64, "overlap": 0, "taper": 1.0, "input": {"rate": 8000},
                  "scale": {"kind": "linear"}}, 1000, 8000, 1, 1),
    "psd.box": ({"kind": "psd", "segment": 32, "overlap": 31, "taper": 0.0, "input": {"rate": 8000}}, 99, 8000, 1, 1),
}  # fmt: skip
RATES = [(16000, 22050, 1501), (22050, 16000, 1501), (44100, 16000, 2003), (48000, 16000, 1000), (8000, 16000, 400),
         (16000, 8000, 401), (11025, 16000, 333), (16000, 16001, 100), (16000, 22050, 1)]  # fmt: skip
WAV = {
    "u8": ("WAV", "PCM_U8"), "i16": ("WAV", "PCM_16"), "i24": ("WAV", "PCM_24"), "i32": ("WAV", "PCM_32"),
    "f32": ("WAV", "FLOAT"), "f64": ("WAV", "DOUBLE"), "ulaw": ("WAV", "ULAW"), "x_u8": ("WAVEX", "PCM_U8"),
    "x_i16": ("WAVEX", "PCM_16"), "x_i24": ("WAVEX", "PCM_24"), "x_i32": ("WAVEX", "PCM_32"),
    "x_f32": ("WAVEX", "FLOAT"), "x_f64": ("WAVEX", "DOUBLE"),
}  # fmt: skip
MEDIA = {"flac": ("FLAC", "PCM_16"), "ogg": ("OGG", "VORBIS"), "mp3": ("MP3", "MPEG_LAYER_III")}


def written(x: np.ndarray, rate: int, form: str, subtype: str) -> tuple[np.ndarray, np.ndarray]:
    buffer = io.BytesIO()
    soundfile.write(buffer, x, rate, format=form, subtype=subtype)
    data = buffer.getvalue()
    back, _ = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    return np.frombuffer(data, np.uint8).copy(), back


def advanced(x: np.ndarray, ending: str) -> tuple[np.ndarray, np.ndarray]:
    """AAC, alone or in MP4, at 16 kHz."""
    quiet, raw = ["ffmpeg", "-v", "error", "-y"], ["-f", "f32le", "-ar", "16000", "-ac", "2"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"clip.{ending}"
        exact = ["-fflags", "+bitexact", "-flags:a", "+bitexact"]
        sound = x.astype("<f4").tobytes()
        subprocess.run([*quiet, *raw, "-i", "-", "-c:a", "aac", *exact, path], input=sound, check=True)
        back = subprocess.run([*quiet, "-i", path, *raw, "-"], capture_output=True, check=True).stdout
        return np.frombuffer(path.read_bytes(), np.uint8).copy(), np.frombuffer(back, "<f4").reshape(-1, 2).copy()


def main() -> None:
    out, cases = {"signal": CLIP}, {}
    for name, (recipe, count, rate, rows, columns) in CASES.items():
        recipe = {"input": {"rate": 16000}} | recipe
        x = CLIP[:count] if count > 0 else SILENCE[:-count]
        y = finished(analysed(prepared(x, rate, recipe["input"]), recipe, recipe), recipe.get("output", {}))
        settings = dict(recipe)
        if recipe["kind"] == "mfcc":
            settings["mel"] = recipe["mel"] | {"input": settings.pop("input")}
        cases[name] = {"settings": settings, "samples": count, "rate": rate, "stride": [rows, columns]}
        cases[name]["shape"] = y.shape
        out[f"case.{name}"] = np.ascontiguousarray(y[::rows, ::columns]).astype(np.float32)
    for method, run in METHODS.items():
        for a, b, count in RATES:
            if method in ("sinc-kaiser", "soxr-like") and b == 16001:
                continue
            out[f"resample.{method}.{a}.{b}.{count}"] = run(CLIP[:count].astype(np.float64), a, b).astype(np.float32)
    for a, b, count in RATES[:7]:
        soxr = librosa.resample(CLIP[:count].astype(np.float64), orig_sr=a, target_sr=b)
        out[f"soxr.{a}.{b}.{count}"] = soxr.astype(np.float32)
    stereo = np.stack([CLIP[4000:4101], -0.3 * CLIP[6000:6101] + 0.1], 1).clip(-1, 1 - 2**-8).astype(np.float64)
    for name, (form, subtype) in WAV.items():
        out[f"wav.{name}.bytes"], out[f"wav.{name}.samples"] = written(stereo, 22050, form, subtype)
    stereo = np.stack([CLIP[2000:6000], 0.5 * CLIP[3000:7000]], 1).clip(-0.9, 0.9)
    for name, (form, subtype) in MEDIA.items():
        out[f"media.{name}.bytes"], out[f"media.{name}.samples"] = written(stereo, 16000, form, subtype)
    for ending in ("aac", "m4a"):
        out[f"media.{ending}.bytes"], out[f"media.{ending}.samples"] = advanced(stereo, ending)
    versions = {m.__name__: m.__version__ for m in (librosa, np, scipy, soundfile, torch)} | {"torchaudio": "2.5.1"}
    metadata = {"cases": json.dumps(cases), "versions": json.dumps(versions), "source": "own script generate/audio.py"}
    save_file(out, Path(__file__).parents[1] / "audio.safetensors", metadata)

    def off(a, b):
        return f"{np.abs(a - b).max() / np.abs(b).max():.1e}, mean {np.abs(a - b).mean() / np.abs(b).max():.1e}"

    single = np.log(np.abs(librosa.stft(CLIP, n_fft=512, hop_length=353)) + 1e-7)
    double = np.log(np.abs(librosa.stft(CLIP.astype(np.float64), n_fft=512, hop_length=353)) + 1e-7)
    print("librosa's single precision, ogm-stft:", off(single, double))
    soxr = librosa.resample(CLIP, orig_sr=16000, target_sr=22050)
    for method, run in METHODS.items():
        ours = run(CLIP.astype(np.float64), 16000, 22050).astype(np.float32)
        n = min(len(ours), len(soxr))
        spectra = [np.log(np.abs(librosa.stft(v[:n], n_fft=512, hop_length=353)) + 1e-7) for v in (ours, soxr)]
        below = [s[: 257 * 7200 // 11025] for s in spectra]
        print(f"{method} against soxr_hq: samples {off(ours[:n], soxr[:n])}")
        print(f"  ogm-stft {off(*spectra)}; below 7.2 kHz {off(*below)}")


main()
