"""Runs and pictures drawn for the tests of reports, so that every figure of theirs is known."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as mask_util

from pixelmask.config import get_cfg
from reporting.gallery import Instance, PatchGrid, Picture
from reporting.instance_gallery import InstanceGallery
from reporting.matching import compare
from reporting.metric_tables import Table
from reporting.page import Content, write_page
from reporting.reported_runs import Curve, ReportedRun

HEIGHT, WIDTH = 60, 80
# Names that would break out of a page that does not escape them
CLASSES = ["</script><script>window.broken = 1</script>", 'naïve "cat" & <b>', "人"]
NAMES = ["a{{style}}.png", 'b "quoted" <img src=x onerror=window.broken=1>.png', "ünïcode.png", "d.png"]


def box(left: int, top: int, right: int, bottom: int, label: int = 0, score: float | None = None) -> Instance:
    """A filled rectangle, up to but not including right and bottom."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[top:bottom, left:right] = 1
    return Instance(mask_util.encode(mask), label, score)


def drawn_run(
    name: str, folder: Path = Path("runs"), curves: dict[str, Curve] | None = None, **test: dict
) -> ReportedRun:
    return ReportedRun(folder / name, get_cfg(), test or {"drawn": {"segm": {"AP": 50.0}}}, name, curves or {})


def drawn_pictures(folder: Path) -> list[Picture]:
    """Four images of two runs; Boundary IoU of A is 1, 0, a value between and none, in the order of the names.

    In the first both runs are right; in the second A misses the object; in the third A's mask is shifted by 4 pixels;
    the last has no object, and A sees one.
    """
    truth = box(10, 10, 50, 40)
    found: list[tuple[list[Instance], list[Instance], list[Instance]]] = [
        ([truth], [box(10, 10, 50, 40, 0, 0.9)], [box(10, 10, 50, 40, 0, 0.8)]),
        ([box(10, 10, 50, 40, 1)], [], [box(10, 10, 50, 40, 1, 0.6)]),
        ([box(10, 10, 50, 40, 2)], [box(14, 10, 54, 40, 2, 0.7)], [box(10, 10, 50, 40, 2, 0.95)]),
        ([], [box(20, 20, 30, 30, 0, 0.55)], []),
    ]
    pictures = []
    for i, (name, (objects, a, b)) in enumerate(zip(NAMES, found, strict=True)):
        file = folder / f"{i}.png"
        Image.new("RGB", (WIDTH, HEIGHT), (90, 90, 90)).save(file)
        picture = compare(name, str(file), objects, [a, b], 0.02)
        labels = np.array([[0, 1], [1, 2]])
        picture.patches.update({"run0": [PatchGrid((10, 10, 50, 40), labels)], "run1": []})
        pictures.append(picture)
    return pictures


def write_drawn(
    path: Path, pictures: Sequence[Picture], names: Sequence[str] = ("first", "<second>"), image_size: int = 640
) -> Path:
    curves = {"total_loss": [(20, 3.0), (40, 2.0), (60, 1.5)], "segm/AP": [(60, 50.0)], "lr": [(20, 0.1)]}
    runs = [drawn_run(name, curves=curves) for name in names]
    tables = [Table("Mask AP on <drawn>", ["AP"], [(name, ["50.00"]) for name in names])]
    write_page(path, Content(runs, "drawn", tables, CLASSES, InstanceGallery.measures, pictures), image_size)
    return path
