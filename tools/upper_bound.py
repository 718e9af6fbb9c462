#!/usr/bin/env python
"""Measure how good masks can be that pass through each mask representation (PatchDCT, Table 1), without any model.

    python tools/upper_bound.py --annotations instances_val2017.json
    python tools/upper_bound.py --annotations instances_val2017.json --detections results.json --json upper_bound.json

Every ground-truth mask of a COCO-format set is cut out by its box at 112 x 112 pixels, encoded, decoded, pasted into
the image at a threshold of 0.5, and evaluated (mask AP and Boundary AP). The boxes are the ground truth's, with a
score of 1; or, as in the paper, a detector's: --detections takes its COCO results. Each detection, best score first,
gets the mask of the free object of its image and class whose box it overlaps most, with an IoU of at least 0.5; the
others stay false positives, with their whole box as mask.

Patches that are all background or all foreground are kept as they are, only mixed ones pass through the codec. A patch
of 1 x 1 is the binary grid, one of 112 x 112 the DCT of the whole mask. Images are not needed.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.layers import paste_masks_in_image
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks, pairwise_iou
from pycocotools import mask as mask_util
from rich import box as box_styles
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

from patchdct.cli import run
from patchdct.dct import DCTMaskCodec
from patchdct.errors import UserError
from patchdct.evaluation import COCOInstanceEvaluator
from patchdct.patches import assemble_patches, classify_patches, fill_uniform_patches, split_into_patches

MASK_SIZE = 112
# Side of a patch and elements of its vector, in the order of the paper's table
REPRESENTATIONS = ((1, 1), (8, 3), (8, 6), (8, 9), (8, 12), (112, 200), (112, 300))
MATCHING_IOU = 0.5


def reconstruct(masks: Tensor, patch_size: int, vector_dim: int) -> Tensor:
    """Push (B, M, M) boolean masks through patch labels and vectors; returns (B, M, M) soft masks."""
    codec = DCTMaskCodec(patch_size, vector_dim)
    patches = split_into_patches(masks, patch_size)
    decoded = codec.decode(codec.encode(patches))
    return assemble_patches(fill_uniform_patches(decoded, classify_patches(patches)))


def cut_out(annotations: list[dict[str, Any]], boxes: Tensor) -> Tensor:
    """Rasterise each annotation's mask in the box at its place: (B, 4) boxes to (B, M, M) boolean masks."""
    masks = torch.zeros(len(boxes), MASK_SIZE, MASK_SIZE, dtype=torch.bool)
    for mask, annotation, box in zip(masks, annotations, boxes, strict=True):
        segmentation = annotation["segmentation"]
        if isinstance(segmentation, dict):
            shape = BitMasks(torch.from_numpy(mask_util.decode(segmentation)).bool()[None])
        else:
            shape = PolygonMasks([segmentation])
        mask[:] = shape.crop_and_resize(box[None], MASK_SIZE)[0]
    return masks


def true_instances(record: dict[str, Any]) -> tuple[Instances, Tensor]:
    """Return an image's objects as detections with a score of 1, and their (B, M, M) masks."""
    objects = [a for a in record["annotations"] if not a["iscrowd"]]
    instances = Instances((record["height"], record["width"]))
    instances.pred_boxes = Boxes(_boxes(objects))
    instances.pred_classes = torch.tensor([a["category_id"] for a in objects], dtype=torch.int64)
    instances.scores = torch.ones(len(objects))
    return instances, cut_out(objects, instances.pred_boxes.tensor)


def matched_instances(record: dict[str, Any], results: list[dict[str, Any]]) -> tuple[Instances, Tensor]:
    """Return an image's detections, best score first, and the (B, M, M) masks of the objects they match."""
    results = sorted(results, key=lambda result: -result["score"])
    objects = [a for a in record["annotations"] if not a["iscrowd"]]
    boxes = _boxes(results)
    classes = torch.tensor([result["category_id"] for result in results], dtype=torch.int64)
    iou = pairwise_iou(Boxes(boxes), Boxes(_boxes(objects)))
    iou[classes[:, None] != torch.tensor([a["category_id"] for a in objects])] = 0
    masks = torch.ones(len(results), MASK_SIZE, MASK_SIZE, dtype=torch.bool)
    for i in range(len(results) if objects else 0):
        best = int(iou[i].argmax())
        if iou[i, best] >= MATCHING_IOU:
            masks[i : i + 1] = cut_out([objects[best]], boxes[i : i + 1])
            iou[:, best] = 0
    instances = Instances((record["height"], record["width"]))
    instances.pred_boxes = Boxes(boxes)
    instances.pred_classes = classes
    instances.scores = torch.tensor([result["score"] for result in results])
    return instances, masks


def _boxes(annotations: list[dict[str, Any]]) -> Tensor:
    boxes = [BoxMode.convert(a["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS) for a in annotations]
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


def load_truth(path: str) -> tuple[str, list[dict[str, Any]]]:
    """Register a COCO JSON, and return its name as a data set and its images' dicts.

    Raises:
        UserError: if the file is missing, not COCO, or has no masks.
    """
    if not Path(path).is_file():
        raise UserError(f"no annotation file {path}")
    name = f"upper_bound:{Path(path).resolve()}"
    if name not in DatasetCatalog:
        register_coco_instances(name, {}, path, image_root="")
    try:
        records = DatasetCatalog.get(name)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, AssertionError) as e:
        raise UserError(f"{path} is not a COCO annotation file: {type(e).__name__}: {e}") from None
    objects = [a for record in records for a in record["annotations"] if not a["iscrowd"]]
    without = sum("segmentation" not in a for a in objects)
    if without or not objects:
        raise UserError(f"{path} has no masks: {without} of its {len(objects)} objects are without")
    return name, records


def load_results(path: str, name: str, records: list[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    """Read COCO results by image id, their category ids made those of the data set's classes.

    Raises:
        UserError: if the file is missing, no list of COCO results with boxes, or of other images or categories.
    """
    results: dict[int, list[dict[str, Any]]] = {record["image_id"]: [] for record in records}
    classes = MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id
    try:
        for result in json.loads(Path(path).read_text()):
            figures = {"bbox": [float(x) for x in result["bbox"]], "score": float(result["score"])}
            results[result["image_id"]].append({**figures, "category_id": classes[result["category_id"]]})
    except OSError as e:
        raise UserError(f"cannot read detections {path}: {e.strerror}") from None
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(
            f"{path} does not hold COCO results with boxes for the images and categories of the annotations: {e!r}"
        ) from None
    return results


def evaluate(name: str, records: list[dict[str, Any]], results: dict[int, list] | None) -> list[dict[str, Any]]:
    """Return the rows of the table."""
    rows = []
    with tqdm(total=len(REPRESENTATIONS) * len(records), unit="image") as progress:
        for patch_size, vector_dim in REPRESENTATIONS:
            progress.set_description(f"{patch_size} x {patch_size}, {vector_dim}")
            evaluator = COCOInstanceEvaluator(name, tasks=("segm", "boundary"), distributed=False)
            evaluator.reset()
            for record in records:
                instances, masks = (
                    true_instances(record)
                    if results is None
                    else matched_instances(record, results[record["image_id"]])
                )
                soft = reconstruct(masks, patch_size, vector_dim)
                instances.pred_masks = paste_masks_in_image(soft, instances.pred_boxes, instances.image_size)
                evaluator.process([record], [{"instances": instances}])
                progress.update()
            metrics = evaluator.evaluate()
            row = {"resolution": MASK_SIZE, "patch_size": patch_size, "dim": vector_dim}
            rows.append({**row, "AP": metrics["segm"]["AP"], "AP_B": metrics["boundary"]["AP"]})
    return rows


def main(args: argparse.Namespace) -> list[dict[str, Any]]:
    name, records = load_truth(args.annotations)
    rows = evaluate(name, records, load_results(args.detections, name, records) if args.detections else None)
    table = Table(
        title=f"Upper bound of AP, {'matched detections' if args.detections else 'ground-truth boxes'}",
        box=box_styles.SIMPLE_HEAD,
    )
    for column in ("Resolution", "Patch size", "Dim.", "AP", "AP_B"):
        table.add_column(column, justify="right")
    for row in rows:
        sides = [f"{row[key]} x {row[key]}" for key in ("resolution", "patch_size")]
        table.add_row(*sides, str(row["dim"]), f"{row['AP']:.2f}", f"{row['AP_B']:.2f}")
    # A pipe or file has no width of its own
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")
    return rows


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", required=True, metavar="FILE", help="COCO JSON with the ground truth")
    parser.add_argument("--detections", metavar="FILE", help="COCO results whose boxes to use, not the truth's")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table's rows to this file")
    return parser


if __name__ == "__main__":
    run(main, argument_parser().parse_args())
