"""LVIS's evaluation (the ``lvis`` package) of boxes, masks and boundaries.  See LVIS (Gupta et al., CVPR 2019), Sec. 2.

The protocol is federated: an image counts for the categories that are annotated in it or verified to be absent from it;
detections of all others are left out. An unmatched detection of a category that is not annotated exhaustively in its
image is ignored. There are 300 detections per image, and no crowd regions.

Importing this module imports ``lvis``, which sets up the root logger: it is imported when it is needed.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lvis import LVIS, LVISEval

from pixelmask.engine.compat import numpy_float
from pixelmask.errors import UserError
from pixelmask.evaluation.matching import boundary_overlaps
from pixelmask.rle import to_rle

from ..data.lvis_format import read_lvis

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
#: With those of LVIS's rare, common and frequent categories
LVIS_METRICS = (*METRICS, "APr", "APc", "APf")
# It warns of every list of results that it is given
logging.getLogger("lvis.results").setLevel(logging.ERROR)


class Truth(LVIS):
    """The annotations of an LVIS file, with masks as RLE: evaluation copies them, and polygons are larger.

    Args:
        path: the file.
        read: reads and checks it: :func:`patchdct.data.lvis_format.read_lvis` or ``read_cocofied``.

    Raises:
        UserError: those of ``read``, and for an RLE whose runs do not fill its image.
    """

    def __init__(self, path: Path | str, read: Callable[[Path | str], dict[str, Any]] = read_lvis):
        self._load_json = read  # what LVIS reads a path with
        super().__init__(path)
        for number, annotation in self.anns.items():
            image = self.imgs[annotation["image_id"]]
            try:
                annotation["segmentation"] = to_rle(annotation["segmentation"], image["height"], image["width"])
            except ValueError as e:
                raise UserError(f"{path}: annotation {number} {e}") from None


class MaskEval(LVISEval):
    """LVIS's evaluation on any numpy."""

    def accumulate(self) -> None:
        with numpy_float():
            super().accumulate()


class BoundaryEval(MaskEval):
    """LVIS's evaluation with the overlap of Boundary AP, min(mask IoU, boundary IoU); dilation ratio 0.02.

    Masks that overlap too little to match at any threshold keep their mask IoU, which makes no difference.
    """

    def compute_iou(self, img_id: int, cat_id: int) -> Any:
        """Return the overlaps of (detections, best score first) x (objects) of one image and category."""
        ious = super().compute_iou(img_id, cat_id)
        if len(ious) == 0:
            return ious
        objects, detections = self._get_gt_dt(img_id, cat_id)
        order = np.argsort([-detection["score"] for detection in detections], kind="stable")
        overlapping = ious >= self.params.iou_thrs.min()
        rows, columns = (np.flatnonzero(overlapping.any(axis)) for axis in (1, 0))
        if len(rows):
            found, true = [detections[order[row]] for row in rows], [objects[column] for column in columns]
            masks = [[thing["segmentation"] for thing in things] for things in (found, true)]
            ious[np.ix_(rows, columns)] = boundary_overlaps(masks[0], masks[1])
        return ious


def evaluate_lvis(
    truth: LVIS,
    results: Iterable[dict[str, Any]],
    task: str,
    image_ids: Collection[int],
    metrics: Sequence[str] = LVIS_METRICS,
) -> dict[str, float]:
    """Evaluate results in COCO format, whose category ids are the truth's.

    Args:
        truth: annotations; masks of any COCO format.
        results: of any images and categories; those that the truth does not have are left out.
        task: "bbox", "segm" or "boundary".
        image_ids: images that were evaluated, of which the truth may have some only.
        metrics: some of LVIS_METRICS.

    Returns:
        the metrics from 0 to 100; NaN where there is no detection at all, or no object of that size or frequency. Sizes
        are the objects' areas in the truth, and the masks' (for "bbox" the boxes') of detections.

    Raises:
        UserError: if the truth has none of the images.
    """
    common = set(truth.get_img_ids()) & set(image_ids)
    if not common:
        raise UserError("none of the images that were evaluated are in the LVIS annotations")
    # With a box, the library would take the box's area for the mask's
    keys = ("image_id", "category_id", "score", "bbox" if task == "bbox" else "segmentation")
    detections = [{key: result[key] for key in keys} for result in results if result["image_id"] in common]
    if not detections:
        return dict.fromkeys(metrics, float("nan"))
    evaluation = (BoundaryEval if task == "boundary" else MaskEval)(
        truth, detections, "bbox" if task == "bbox" else "segm"
    )
    evaluation.params.img_ids = sorted(common)
    evaluation.run()
    figures = evaluation.get_results()
    return {metric: 100 * float(figures[metric]) if figures[metric] >= 0 else float("nan") for metric in metrics}
