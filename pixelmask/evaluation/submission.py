"""Files for COCO's evaluation server, which alone has the annotations of test-dev (Table 4)."""

import json
import logging
import re
import zipfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..data.coco_file import CocoFile, check_results
from ..errors import UserError
from ..files import whole_or_not_at_all
from ..rle import check_mask

logger = logging.getLogger(__name__)


def write_submission(
    results: Sequence[dict[str, Any]],
    dataset: dict[str, Any],
    processed: Collection[Any],
    json_file: str,
    name: str,
    output_dir: str,
) -> Path:
    """Write detections as the evaluation server wants them, and log where they are.

    The file is ``detections_<set>_<name>_results.zip``, with ``detections_<set>_<name>_results.json`` in it: a list of
    objects with image_id, category_id, segmentation (RLE) and score. There is no bbox, because COCO's API would take
    the box's area for the mask's; detections without masks have a bbox in place of a segmentation.

    Args:
        results: detections in COCO's format, with the category ids of the data set.
        dataset: COCO JSON of the test set: its images and categories are used.
        processed: ids of the images that detections were looked for in; a warning says how many are missing.
        json_file: where ``dataset`` is from; ``image_info_test-dev2017.json`` makes <set> test-dev2017.
        name: of the method; what is not a letter, digit, "_", "." or "-" becomes "-".
        output_dir: folder for the file; an earlier one of the same name is replaced.

    Raises:
        UserError: for a detection of another data set, or a mask of another size than its image.
    """
    _check(results, dataset, json_file)
    test_set = Path(json_file).stem.removeprefix("image_info_")
    stem = f"detections_{test_set}_{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}_results"
    path = Path(output_dir, f"{stem}.zip")
    with (
        whole_or_not_at_all(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open(f"{stem}.json", "w", force_zip64=True) as f,  # its size is not known beforehand
    ):
        f.write(b"[")
        for number, result in enumerate(tqdm(results, desc=f"writing {path.name}", unit="detection", mininterval=1)):
            f.write((b",\n" if number else b"") + json.dumps(_entry(result), separators=(",", ":")).encode())
        f.write(b"]")
    missing = len({image["id"] for image in dataset["images"]} - set(processed))
    if missing:
        logger.warning(
            "%d of the %d images of %s were not processed: the server expects all of them",
            missing, len(dataset["images"]), json_file,
        )  # fmt: skip
    logger.info(
        "%s has no annotations, so no AP is computed here: %s (%d detections in %d images, %.1f MB) is for COCO's "
        "evaluation server",
        json_file, path, len(results), len(processed), path.stat().st_size / 1e6,
    )  # fmt: skip
    return path


def _entry(result: dict[str, Any]) -> dict[str, Any]:
    what = "segmentation" if "segmentation" in result else "bbox"
    return {key: result[key] for key in ("image_id", "category_id", what, "score")}


def _check(results: Sequence[dict[str, Any]], dataset: dict[str, Any], json_file: str) -> None:
    truth = CocoFile(json_file, {"annotations": [], **dataset})  # the server, which has some, wants scores and classes
    check_results(results, truth, "the detections")
    images = truth.images
    for number, result in enumerate(results):
        image = images[str(result["image_id"])]
        try:
            check_mask(result.get("segmentation", []), image["height"], image["width"])
        except ValueError as e:
            raise UserError(f"the detections: result {number} of image {image['id']} {e} in {json_file}") from None
