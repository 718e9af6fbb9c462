#!/usr/bin/env python
"""Measure how good masks can be that pass through each mask representation (PatchDCT, Table 1), without any model.

    python tools/upper_bound.py --annotations instances_val2017.json
    python tools/upper_bound.py --annotations instances_val2017.json --detections results.json --json upper_bound.json
    python tools/upper_bound.py --annotations instances_val2017.json --histograms figure_3.png

Every ground-truth mask of a COCO-format set is cut out by its box at 112 x 112 pixels, encoded, decoded, pasted into
the image at a threshold of 0.5, and evaluated (mask AP and Boundary AP). The boxes are the ground truth's, with a
score of 1; or, as in the paper, a detector's: --detections takes its COCO results. As in the authors' code, each
detection gets the mask of the object of its image whose box it overlaps most, of whatever class, be it ever so little.
With --one-to-one, best score first, it gets that of the free object of its class with an IoU of at least 0.5; what has
no object stays a false positive, with its whole box as mask. Results without boxes get those around their masks.

Patches that are all background or all foreground are kept as they are, only mixed ones pass through the codec. A patch
of 1 x 1 is the binary grid, one of 112 x 112 the DCT of the whole mask. Images are not needed.

--histograms also draws Figure 3: how the six elements of the vectors of 8 x 8 patches are distributed where a patch is
foreground, background and mixed, for all objects in their true boxes; the numbers are written beside it as JSON.
"""

import argparse
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from matplotlib.figure import Figure
from pycocotools import mask as mask_util
from tqdm import tqdm

from patchdct.evaluation.upper_bound import boxes_of, cut_out, objects_of, upper_bounds
from patchdct.figures.patch_histograms import PatchHistograms
from pixelmask.cli import print_table, run
from pixelmask.data.coco_file import CocoFile, read_coco, read_results
from pixelmask.errors import UserError
from pixelmask.files import read_json, write_json
from pixelmask.rle import to_rle


def load_truth(path: str) -> tuple[str, list[dict[str, Any]]]:
    """Register a COCO JSON, and return its name as a data set and its images' dicts.

    Raises:
        UserError: if the file is missing, not COCO, or has no masks.
    """
    read_coco(path)
    name = f"upper_bound:{Path(path).resolve()}"
    if name not in DatasetCatalog:
        register_coco_instances(name, {}, path, image_root="")
    records = DatasetCatalog.get(name)
    objects = [a for record in records for a in objects_of(record)]
    without = sum("segmentation" not in a for a in objects)
    if without or not objects:
        raise UserError(f"{path} has no masks: {without} of its {len(objects)} objects are without")
    return name, records


def load_results(path: str, name: str, records: list[dict[str, Any]]) -> dict[Any, list[dict[str, Any]]]:
    """Read COCO results by image id, with the classes of the data set for category ids; a mask gives a missing box.

    Image ids may be strings of the annotations' numbers, as some tools write them.

    Raises:
        UserError: if the file is missing, no list of COCO results with boxes or masks, or of other images or
            categories.
    """
    metadata = MetadataCatalog.get(name)
    classes, truth = metadata.thing_dataset_id_to_contiguous_id, read_json(metadata.json_file)
    content = read_results(path, CocoFile(metadata.json_file, truth), boxes=True)
    images = {str(record["image_id"]): record for record in records}
    results: dict[Any, list[dict[str, Any]]] = {record["image_id"]: [] for record in records}
    for i, result in enumerate(content):
        record = images[str(result["image_id"])]
        box = result.get("bbox")
        if box is None:
            try:
                box = mask_util.toBbox(to_rle(result["segmentation"], record["height"], record["width"])).tolist()
            except ValueError as e:
                raise UserError(f"{path}: result {i} {e}") from None
        entry = {"bbox": box, "score": result["score"], "category_id": classes[result["category_id"]]}
        results[record["image_id"]].append(entry)
    return results


def write_histograms(path: Path, records: list[dict[str, Any]]) -> PatchHistograms:
    """Draw Figure 3 of all objects in their true boxes, and write its numbers beside it as JSON."""
    histograms = PatchHistograms()
    for record in tqdm(records, desc="histograms", unit="image"):
        objects = objects_of(record)
        histograms.add(cut_out(objects, boxes_of(objects)))
    histograms.draw(path)
    write_json(path.with_suffix(".json"), histograms.to_json())
    return histograms


def check_outputs(args: argparse.Namespace) -> None:
    """Raise UserError for file names that cannot be used, before minutes are spent."""
    if not args.histograms:
        return
    kinds = Figure().canvas.get_supported_filetypes()
    if args.histograms.suffix.lstrip(".").lower() not in kinds:
        raise UserError(f"--histograms {args.histograms} is no picture; its name may end in .{', .'.join(kinds)}")
    if args.json and args.json.resolve() == args.histograms.with_suffix(".json").resolve():
        raise UserError(f"--json {args.json} is where --histograms writes its numbers; choose another name")


def cells(row: dict[str, Any]) -> list[str]:
    sides = [f"{row[key]} x {row[key]}" for key in ("resolution", "patch_size")]
    return [*sides, str(row["dim"]), f"{row['AP']:.2f}", f"{row['AP_B']:.2f}"]


def main(args: argparse.Namespace) -> list[dict[str, Any]]:
    check_outputs(args)
    name, records = load_truth(args.annotations)
    results = load_results(args.detections, name, records) if args.detections else None
    if args.histograms:
        histograms = write_histograms(args.histograms, records)
        counts = ", ".join(f"{count:,} {label}" for label, count in histograms.patches().items())
        print(f"Patches of {histograms.num_masks:,} masks: {counts}; {args.histograms}")
    rows = list(upper_bounds(name, records, results, args.one_to_one))
    title = f"Upper bound of AP, {'matched detections' if args.detections else 'ground-truth boxes'}"
    print_table(title, ("Resolution", "Patch size", "Dim.", "AP", "AP_B"), map(cells, rows), left=0)
    if args.json:
        write_json(args.json, rows, indent=2)
    return rows


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", required=True, metavar="FILE", help="COCO JSON with the ground truth")
    parser.add_argument("--detections", metavar="FILE", help="COCO results whose boxes to use, not the truth's")
    parser.add_argument("--one-to-one", action="store_true", help="a detection for each object, of its class")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table's rows to this file")
    parser.add_argument("--histograms", type=Path, metavar="FILE.png", help="also draw Figure 3, numbers in FILE.json")
    return parser


if __name__ == "__main__":
    run(main, argument_parser().parse_args())
