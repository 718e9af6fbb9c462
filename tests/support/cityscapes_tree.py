"""A data set in Cityscapes' layout that tests make: drawn images, and instance ids as its PNG files have them."""

from pathlib import Path

import numpy as np
from PIL import Image

NAME = "cityscapes_fine_instance_seg_"
PERSON, RIDER, CAR, TRAILER, UNLABELED, ROAD, EGO = 24, 25, 26, 30, 0, 7, 1


def paint(ids: np.ndarray, top: int, left: int, height: int, width: int, value: int) -> np.ndarray:
    ids[top : top + height, left : left + width] = value
    return ids


def scene(seed: int, height: int = 64, width: int = 128) -> np.ndarray:
    """(height, width) uint16 ids: cars (one of them small), a group of cars, persons, a rider, a trailer, void."""
    rng = np.random.default_rng(seed)
    ids = np.full((height, width), ROAD, np.uint16)
    paint(ids, height - 6, 0, 6, width, EGO)
    paint(ids, 0, 0, 8, width // 4, UNLABELED)
    values = [CAR, CAR * 1000, CAR * 1000 + 1, PERSON * 1000, PERSON * 1000 + 1, TRAILER * 1000, RIDER * 1000 + 2]
    for value in values:
        y, x = np.ogrid[:height, :width]
        center = rng.random(2) * (height, width)
        axes = (0.08 + 0.15 * rng.random(2)) * (height, width)
        ids[((y - center[0]) / axes[0]) ** 2 + ((x - center[1]) / axes[1]) ** 2 <= 1] = value
    return paint(ids, 20, 60, 5, 6, CAR * 1000 + 9)


def write_frame(root: Path, split: str, frame: str, ids: np.ndarray) -> tuple[Path, Path]:
    """Write a frame `<city>/<city>_<sequence>_<number>`, its image and its annotation, and return their paths."""
    image = root / "cityscapes" / "leftImg8bit" / split / f"{frame}_leftImg8bit.png"
    annotation = root / "cityscapes" / "gtFine" / split / f"{frame}_gtFine_instanceIds.png"
    for path in (image, annotation):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.stack([ids % 251, ids // 1000 * 7, ids % 17 * 15], 2).astype(np.uint8)).save(image)
    Image.fromarray(ids).save(annotation)
    return image, annotation


def write_tree(root: Path, split: str = "val", frames: int = 3) -> list[np.ndarray]:
    """Write that many scenes of two cities, in the order of their names, and return their ids."""
    scenes = [scene(seed) for seed in range(frames)]
    for index, ids in enumerate(scenes):
        city = "aachen" if index < frames / 2 else "bochum"
        write_frame(root, split, f"{city}/{city}_000000_{index:06d}", ids)
    return scenes
