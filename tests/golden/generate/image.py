# /// script
# requires-python = ">=3.10"
# dependencies = ["torch==2.15.0", "torchvision==0.29.2", "pillow==13.0.0", "numpy==2.4.6", "safetensors==0.8.0"]
# ///
"""Writes tests/golden/image.safetensors: what Pillow and torchvision make of small pictures, and files of Pillow and NumPy.

    python tests/golden/generate/image.py

The pictures to resize are not in the file: both sides draw them with `uniform` of resnet18.py. Keys:

    <filter>.<picture>.<case>.{part,out}     Pillow's `resize` with `box=part`; the size is that of `out`
    crop.<case>.{box,out}                    torchvision's `resized_crop` to 24 x 24, mirrored where box[4] is 1, normalised
    evaluation.<picture>.{resize,centre}     `Resize((24, 24))`; `Resize(29)` and `CenterCrop(24)`; normalised
    grey.rgb                                 Pillow's `convert("L")`
    moments.<picture>.{mean,spread,whole}    `RandomResizedCrop.get_params`, 100 000 draws: mean and standard deviation of
                                             (top, left, height, width) over (H, W, H, W), share of crops that keep H or W
    file.<name>.{bytes,out}                  JPEGs and PNGs, and what Pillow reads
    npy.<name>.{bytes,out}                   files of `numpy.save`, and what is in them

crates/mm-data/tests/it/{image_resize,image_transform,image_files,npy}.rs read it.
"""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
import torchvision.transforms as T
import torchvision.transforms.functional as F
from PIL import Image
from resnet18 import uniform
from safetensors.torch import save_file

PICTURES = {"rgb": (37, 53, 3), "grey": (23, 41, 1), "wide": (5, 200, 3), "tall": (61, 30, 3), "dot": (1, 1, 3)}
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
CASES = {
    "rgb": [
        ((24, 24), None), ((37, 20), None), ((11, 53), None), ((37, 53), None), ((90, 100), None), ((1, 1), None),
        ((24, 24), (3, 5, 40, 30)), ((24, 24), (0.5, 1.25, 52.75, 36.5)), ((37, 53), (1, 0, 53, 36)),
        ((5, 3), (10.1, 20.2, 12.3, 21.7)), ((60, 13), (0, 30, 53, 37)),
    ],
    "grey": [((16, 16), None), ((50, 7), None), ((9, 9), (2.5, 3.5, 30, 20))],
    "wide": [((24, 24), None), ((1, 199), None), ((5, 100), None)],
    # The last three: where Pillow 13 begins with the columns, and just not.
    "tall": [((24, 24), None), ((200, 3), None), ((54, 27), None), ((55, 27), None), ((24, 24), (2.5, 4, 28, 50))],
    "dot": [((4, 3), None)],
}  # fmt: skip
CROPS = [(0, 0, 37, 53, 0), (5, 7, 20, 30, 1), (36, 52, 1, 1, 0), (10, 0, 27, 12, 1), (2, 3, 24, 24, 1), (0, 9, 30, 40, 0)]


def picture(name: str) -> Image.Image:
    array = ((uniform(name, PICTURES[name]).numpy() + 1) * 128).astype(np.uint8)
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def pixels(image: Image.Image) -> torch.Tensor:
    array = np.array(image)
    return torch.from_numpy(array.reshape(array.shape[0], array.shape[1], -1).copy())


def normalised(image: Image.Image) -> torch.Tensor:
    return F.normalize(F.to_tensor(image.convert("RGB")), MEAN, STD).permute(1, 2, 0).contiguous()


def saved(image: Image.Image, **settings) -> bytes:
    file = io.BytesIO()
    image.save(file, **settings)
    return file.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: list[bytes]) -> bytes:
    """A PNG of a kind that Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def scene() -> Image.Image:
    """Smooth colours with an edge: what a camera sees."""
    y, x = np.mgrid[0:45, 0:70]
    array = np.stack([x * 3, y * 5, 128 + 100 * np.sin(x / 9) * np.cos(y / 7)], -1)
    array[12:30, 20:44] = [200, 60, 30]
    return Image.fromarray(array.clip(0, 255).astype(np.uint8))


def files() -> dict[str, tuple[bytes, torch.Tensor]]:
    rgb, grey, photo = picture("rgb"), picture("grey"), scene()
    alpha = pixels(rgb)[:, :, :1].numpy()
    wide = (uniform("sixteen", (6, 10, 3)).numpy() * 32767 + 32768).astype(">u2")
    made = {
        "jpeg_444": saved(photo, format="JPEG", quality=95, subsampling=0),
        "jpeg_420": saved(photo, format="JPEG", quality=90, subsampling=2),
        "jpeg_422_progressive": saved(photo, format="JPEG", quality=85, subsampling=1, progressive=True),
        "jpeg_grey": saved(photo.convert("L"), format="JPEG", quality=90),
        "jpeg_restarts": saved(photo, format="JPEG", quality=90, subsampling=2, restart_marker_blocks=3),
        "png_rgb": saved(rgb, format="PNG"),
        "png_grey": saved(grey, format="PNG"),
        "png_rgba": saved(Image.fromarray(np.dstack([np.array(rgb), alpha])), format="PNG"),
        "png_grey_alpha": saved(Image.merge("LA", [grey, grey.transpose(Image.Transpose.ROTATE_180)]), format="PNG"),
        "png_palette": saved(photo.quantize(16), format="PNG", transparency=3),
        "png_bits": saved(grey.point(lambda v: 255 * (v > 99)).convert("1"), format="PNG"),
        "png_rgb_16": png(10, 6, 16, 2, [row.tobytes() for row in wide]),
        "png_grey_2": png(8, 2, 2, 0, [bytes([0b00011011, 0b11100100]), bytes([0b01010101, 0b10101010])]),
    }
    read = {}
    for name, data in made.items():
        image = Image.open(io.BytesIO(data))
        grey = image.mode in ("1", "L", "LA")
        read[name] = (data, pixels(image.convert("L" if grey else "RGB")))
    return read


def arrays() -> dict[str, np.ndarray]:
    numbers = uniform("numbers", (3, 4, 5)).numpy() * 1000
    made = {f"f{width}": numbers.astype(f"<f{width}") for width in (2, 4, 8)}
    made |= {f"big_f{width}": numbers.astype(f">f{width}") for width in (2, 4, 8)}
    made |= {f"fortran_{kind}": np.asfortranarray(numbers.astype(kind)) for kind in ("f2", "f4", "f8", "i2", "u1")}
    made |= {f"i{width}": (numbers / 8).astype(f"<i{width}") for width in (1, 2, 4, 8)}
    made |= {f"big_i{width}": (numbers / 8).astype(f">i{width}") for width in (2, 4, 8)}
    made |= {f"u{width}": abs(numbers / 4).astype(f"u{width}") for width in (1, 2, 4, 8)}
    made |= {"flags": numbers > 0, "scalar": np.float32(1.5), "empty": np.zeros((0, 3), np.float32), "row": numbers[0, 0]}
    return made


def npy(array: np.ndarray, version: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asanyarray(array), version=version)
    return file.getvalue()


def of_bytes(data: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())


def main() -> None:
    out: dict[str, torch.Tensor] = {}
    for method, flag in FILTERS.items():
        for name, cases in CASES.items():
            image = picture(name)
            for number, ((height, width), part) in enumerate(cases):
                key = f"{method}.{name}.{number:02}"
                part = part or (0, 0, *image.size)
                out[f"{key}.part"] = torch.tensor(part, dtype=torch.float32)
                out[f"{key}.out"] = pixels(image.resize((width, height), flag, box=part))
    for number, (top, left, height, width, mirror) in enumerate(CROPS):
        view = F.resized_crop(picture("rgb"), top, left, height, width, [24, 24])
        view = F.hflip(view) if mirror else view
        out[f"crop.{number}.box"] = torch.tensor([top, left, height, width, mirror])
        out[f"crop.{number}.out"] = normalised(view)
    for name in ("rgb", "grey", "tall"):
        out[f"evaluation.{name}.resize"] = normalised(T.Resize((24, 24))(picture(name)))
        out[f"evaluation.{name}.centre"] = normalised(T.CenterCrop(24)(T.Resize(29)(picture(name))))
    out["grey.rgb"] = pixels(picture("rgb").convert("L"))
    torch.manual_seed(0)
    for name in ("rgb", "wide"):
        height, width, _ = PICTURES[name]
        image = torch.zeros(3, height, width)
        draw = T.RandomResizedCrop.get_params
        crops = torch.tensor([draw(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(100_000)], dtype=torch.float64)
        crops /= torch.tensor([height, width, height, width])
        out[f"moments.{name}.mean"], out[f"moments.{name}.spread"] = crops.mean(0), crops.std(0)
        out[f"moments.{name}.whole"] = (crops[:, 2:] == 1).double().mean(0)
    for name, (data, read) in files().items():
        out[f"file.{name}.bytes"], out[f"file.{name}.out"] = of_bytes(data), read
    for number, (name, array) in enumerate(arrays().items()):
        out[f"npy.{name}.bytes"] = of_bytes(npy(array, (1 + number % 3, 0)))
        plain = np.ascontiguousarray(array).reshape(np.shape(array))
        out[f"npy.{name}.out"] = torch.from_numpy(np.array(plain, np.float64))
    metadata = {"source": "own script generate/image.py", "pillow": "13.0.0", "torchvision": "0.29.2"}
    target = Path(__file__).resolve().parent.parent / "image.safetensors"
    save_file({key: value.contiguous() for key, value in out.items()}, target, metadata)
    print(len(out), "tensors,", target.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
