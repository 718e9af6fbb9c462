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
from detectron2.data import DatasetCatalog, MetadataCatalog
from tqdm import tqdm

from pixelmask.data.roots import DrawnSet, check_version, datasets_root, make_folder, write_jpeg
from pixelmask.errors import UserError

from .datasets import make_dicts
from .pairs import find_pairs
from .synthetic import DRAWING_VERSION, draw_pair
from .synthetic_outlines import BODIES

COLLECTION = "synthetic_refinement"
_NAME = re.compile(
    COLLECTION + rf"_(train|val)(?:_({'|'.join(BODIES)}))?" + r"(?:_([1-9]\d*))?(?:_([1-9]\d*)x([1-9]\d*))?"
)
_IMAGES = {"train": 400, "val": 40}
_SEEDS = {"train": 1, "val": 2}
_WIDTH, _HEIGHT, _SMALLEST, _LARGEST = 320, 240, 64, 6000
_VERSION_FILE = "drawing_version.txt"
_COARSE_CELLS = 40  # of a coarse mask, along the longer side
_COARSE_NOISE = 0.2


class SyntheticSpec(NamedTuple):
    """What a name stands for: the split, the number of images, their width and height in pixels, the kind of body."""

    split: str
    images: int
    width: int
    height: int
    body: str | None = None

    @property
    def folder(self) -> Path:
        """Where the files are, in the folder of data sets of this moment."""
        split = self.split if self.body is None else f"{self.split}_{self.body}"
        return datasets_root() / COLLECTION / f"{split}_{self.images}_{self.width}x{self.height}"


def is_synthetic_name(name: str) -> bool:
    """Tell whether a data set name claims to be one of these, be it well-formed or not."""
    return name == COLLECTION or name.startswith(COLLECTION + "_")


def parse_synthetic_name(name: str) -> SyntheticSpec:
    """Read a data set's name, in the form that this module's docstring gives; raise UserError if it is not."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise UserError(
            f"'{name}' is no data set: names are {COLLECTION}_{{train|val}}[_{{{'|'.join(BODIES)}}}][_{{images}}]"
            f"[_{{width}}x{{height}}], such as {COLLECTION}_train, {COLLECTION}_val_10 or {COLLECTION}_val_4_2560x1706"
        )
    split, body, images, width, height = match.groups()
    spec = SyntheticSpec(split, int(images or _IMAGES[split]), int(width or _WIDTH), int(height or _HEIGHT), body)
    if not _SMALLEST <= min(spec.width, spec.height) <= max(spec.width, spec.height) <= _LARGEST:
        raise UserError(
            f"'{name}' asks for {spec.width} x {spec.height} pixels: sides may have {_SMALLEST} to {_LARGEST}"
        )
    return spec


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


def _write_mask(path: Path, mask: np.ndarray) -> None:
    path.write_bytes(cv2.imencode(".png", mask.astype(np.uint8) * 255)[1].tobytes())


def _write(spec: SyntheticSpec, folder: Path) -> None:
    """Draw all images of a data set into an empty folder."""
    seed = _SEEDS[spec.split]
    for index in tqdm(range(spec.images), desc=f"drawing {spec.folder.name}", unit="image", mininterval=1):
        pair = draw_pair(seed, index, spec.width, spec.height, spec.body)
        name = f"{index + 1:06d}"
        if spec.split == "train":
            write_jpeg(folder / f"{name}.jpg", pair.image)
            _write_mask(folder / f"{name}.png", pair.mask)
        else:
            write_jpeg(folder / f"{name}_im.jpg", pair.image)
            _write_mask(folder / f"{name}_gt.png", pair.mask)
            coarse = coarse_mask(pair.mask, np.random.default_rng([seed, index, 1]))
            _write_mask(folder / f"{name}_seg.png", coarse)
    (folder / _VERSION_FILE).write_text(f"{DRAWING_VERSION}\n")


def make_synthetic(name: str, folder: Path | None = None) -> Path:
    """Return the folder of a data set, drawing it first where it is missing.

    Processes may ask at once, and be interrupted (see :func:`~pixelmask.data.roots.make_folder`).

    Args:
        name: see :func:`parse_synthetic_name`.
        folder: where the files belong, if not at the place that the name and `$DETECTRON2_DATASETS` imply.

    Raises:
        UserError: the name is malformed, or the folder holds something else or data of another drawing version.
    """
    spec = parse_synthetic_name(name)
    folder = folder or spec.folder
    make_folder(folder, lambda partial: _write(spec, partial))
    check_version(folder, COLLECTION, lambda: int((folder / _VERSION_FILE).read_text()), DRAWING_VERSION)
    return folder


def _load(name: str, folder: Path) -> list[dict[str, Any]]:
    return make_dicts(name, find_pairs(make_synthetic(name, folder)), str(folder))


def register_synthetic(name: str) -> None:
    """Register a data set by its name; its files are made when its dicts are first asked for.

    Registering a name again changes nothing.

    Raises:
        UserError: the name is malformed.
    """
    folder = parse_synthetic_name(name).folder
    if name in DatasetCatalog.list():
        return
    DatasetCatalog.register(name, DrawnSet(name, folder, _load))
    MetadataCatalog.get(name).set(evaluator_type="refinement")
