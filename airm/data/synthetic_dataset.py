"""The synthetic data sets of refinement as files, made on first use, and their registration in Detectron2.

A name `synthetic_refinement_{train|val}[_{body}][_{images}][_{width}x{height}]` is a data set:
`synthetic_refinement_train` (400 images of 320 x 240 pixels), `synthetic_refinement_val` (40),
`synthetic_refinement_val_4_6000x4000`, `synthetic_refinement_val_star_10`. A body, `blob`, `polygon`, `star` or
`castle`, makes a category: all objects have that shape. Its files are

    $DETECTRON2_DATASETS/synthetic_refinement/train_<images>_<width>x<height>/000001.jpg, 000001.png (truth), ...
    $DETECTRON2_DATASETS/synthetic_refinement/val_<images>_<width>x<height>/000001_im.jpg, 000001_gt.png (truth),
                                                                          000001_seg.png (coarse mask), ...

(with a body `train_<body>_<images>_...`), so that these folders can also serve as a user's own in
``DATASETS.REFINEMENT``. A smaller data set of the same split, body and size holds the first images of a larger one.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from pixelmask.data.drawn import SEEDS, DrawnCollection, write_jpeg
from pixelmask.errors import UserError

from .datasets import make_dicts
from .pairs import COARSE, IMAGE, TRUTH, find_pairs
from .synthetic import DRAWING_VERSION, draw_pair
from .synthetic_outlines import BODIES

_IMAGES = {"train": 400, "val": 40}
_WIDTH, _HEIGHT, _SMALLEST, _LARGEST = 320, 240, 64, 6000
_VERSION_FILE = "drawing_version.txt"
_COARSE_CELLS = 40  # of a coarse mask, along the longer side
_COARSE_NOISE = 0.2


def coarse_mask(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return what a segmentation at low resolution would make of a mask.

    On a grid of 40 cells along the longer side, the share of each cell that the mask covers is disturbed by smooth
    noise, interpolated bilinearly to the mask's size and cut at one half: thin structures vanish, or fill up their
    surroundings. The IoU with the mask depends on its shape; it is 0.75 to 0.93 for almost all of these data sets.

    Args:
        mask: (H, W) bool.
        rng: what the noise is drawn from.

    Returns:
        (H, W) bool. It may be empty if all of the mask is thin or small, and it is if the mask is.
    """
    height, width = mask.shape
    scale = min(1, _COARSE_CELLS / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    soft = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    noise = cv2.GaussianBlur(np.asarray(rng.standard_normal(soft.shape), np.float32), (0, 0), 1.5)
    noise = noise * np.float32(_COARSE_NOISE / max(float(noise.std()), 1e-6))
    # Weaker than one half, so that it moves edges, but makes no island out of nothing and no hole in solid parts
    disturbed = soft + noise.clip(-0.45, 0.45)
    return cv2.resize(disturbed, (width, height), interpolation=cv2.INTER_LINEAR) >= 0.5


class SyntheticSpec(NamedTuple):
    """What a name stands for: the split, the number of images, their width and height in pixels, the kind of body."""

    split: str
    images: int
    width: int
    height: int
    body: str | None = None


class SyntheticCollection(DrawnCollection[SyntheticSpec]):
    """The synthetic data sets of refinement."""

    title = "synthetic_refinement"
    pattern = re.compile(
        rf"{title}_(train|val)(?:_({'|'.join(BODIES)}))?" + r"(?:_([1-9]\d*))?(?:_([1-9]\d*)x([1-9]\d*))?"
    )
    usage = (
        f"{title}_{{train|val}}[_{{{'|'.join(BODIES)}}}][_{{images}}][_{{width}}x{{height}}], such as {title}_train, "
        f"{title}_val_10 or {title}_val_4_2560x1706"
    )
    version = DRAWING_VERSION

    def specify(self, name: str, *groups: str) -> SyntheticSpec:
        split, body, images, width, height = groups
        spec = SyntheticSpec(split, int(images or _IMAGES[split]), int(width or _WIDTH), int(height or _HEIGHT), body)
        if not _SMALLEST <= min(spec.width, spec.height) <= max(spec.width, spec.height) <= _LARGEST:
            raise UserError(
                f"'{name}' asks for {spec.width} x {spec.height} pixels: sides may have {_SMALLEST} to {_LARGEST}"
            )
        return spec

    def folder_name(self, spec: SyntheticSpec) -> str:
        split = spec.split if spec.body is None else f"{spec.split}_{spec.body}"
        return f"{split}_{spec.images}_{spec.width}x{spec.height}"

    def write(self, spec: SyntheticSpec, index: int, folder: Path) -> None:
        seed, name = SEEDS[spec.split], f"{index + 1:06d}"
        image, mask = draw_pair(seed, index, spec.width, spec.height, spec.body)
        for_training = spec.split == "train"
        write_jpeg(folder / f"{name}{'' if for_training else IMAGE}.jpg", image)
        _write_mask(folder / f"{name}{'' if for_training else TRUTH}.png", mask)
        if not for_training:
            _write_mask(folder / f"{name}{COARSE}.png", coarse_mask(mask, np.random.default_rng([seed, index, 1])))

    def finish(self, spec: SyntheticSpec, written: list[None], folder: Path) -> None:
        (folder / _VERSION_FILE).write_text(f"{self.version}\n")

    def read_version(self, folder: Path) -> int:
        return int((folder / _VERSION_FILE).read_text())

    def load(self, name: str, folder: Path) -> list[dict[str, Any]]:
        return make_dicts(name, find_pairs(self.make(name, folder)), str(folder))

    def metadata(self, folder: Path) -> dict[str, Any]:
        return {"evaluator_type": "refinement"}


def _write_mask(path: Path, mask: np.ndarray) -> None:
    path.write_bytes(cv2.imencode(".png", mask.astype(np.uint8) * 255)[1].tobytes())


SYNTHETIC = SyntheticCollection()
is_synthetic_name, parse_synthetic_name = SYNTHETIC.owns, SYNTHETIC.parse
make_synthetic, register_synthetic = SYNTHETIC.make, SYNTHETIC.register
