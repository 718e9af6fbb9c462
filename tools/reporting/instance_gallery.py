"""What an instance segmentation report's gallery is made from: the data set, the runs' detections, and their models."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.structures import Instances
from pycocotools import mask as mask_util

from patchdct.data.cityscapes import is_cityscapes_name
from patchdct.data.prepare import prepare_datasets
from patchdct.evaluation.cityscapes import CITYSCAPES_DILATION_RATIO
from patchdct.mask_head import MaskRCNNPatchDCTHead
from patchdct.predictor import Predictor
from pixelmask.errors import UserError
from pixelmask.evaluation.boundary import DILATION_RATIO
from pixelmask.images import read_picture
from pixelmask.rle import to_rle

from .gallery import Instance, PatchGrid, Picture
from .matching import compare
from .reported_runs import ReportedRun

logger = logging.getLogger(__name__)

RESULTS = "coco_instances_results.json"


class InstanceGallery:
    """Pictures of a data set with the detections of runs that were evaluated on it.

    Detections are those that the evaluation wrote. Where it wrote none, as that of Cityscapes, the run's checkpoint is
    run on the gallery's images; and likewise for patch labels. ``class_names`` are those of the data set.
    """

    measures = {"score": "score", "boundary_iou": "Boundary IoU"}

    def __init__(self, runs: Sequence[ReportedRun], data_set: str, min_score: float = 0.5, patch_labels: bool = False):
        """Take runs of instance segmentation that were evaluated on ``data_set``.

        Detections below ``min_score`` are left out, as are those with empty masks. ``patch_labels`` asks for the models
        of PatchDCT to be run for the labels of patches.

        Raises:
            UserError: if the data set cannot be used, a run's detections have no masks, or a model is needed and there
                is no checkpoint; or if patch labels are asked for and no run is of PatchDCT.
        """
        prepare_datasets(runs[0].config_for(data_set), train=False)
        self.records: list[dict[str, Any]] = DatasetCatalog.get(data_set)
        metadata = MetadataCatalog.get(data_set)
        self.class_names = list(metadata.get("thing_classes", ()))
        self.dilation_ratio = CITYSCAPES_DILATION_RATIO if is_cityscapes_name(data_set) else DILATION_RATIO
        self.min_score = min_score
        self.with_patches = [patch_labels and _has_patches(run) for run in runs]
        if patch_labels and not any(self.with_patches):
            raise UserError("--patch-labels: none of the runs is of PatchDCT, whose masks alone are made of patches")
        classes = metadata.get("thing_dataset_id_to_contiguous_id")
        self.stored = [_load_results(run, data_set, classes) for run in runs]
        self.predictors = [
            _predictor(run, data_set, keep_stages=patches) if patches or stored is None else None
            for run, stored, patches in zip(runs, self.stored, self.with_patches, strict=True)
        ]

    def picture(self, record: dict[str, Any]) -> Picture:
        """Compare the runs on an image of the data set.

        Raises:
            UserError: if the image cannot be read by a model that needs it.
        """
        detections: list[list[Instance]] = []
        patches: dict[str, list[PatchGrid]] = {}
        for i, (stored, predictor) in enumerate(zip(self.stored, self.predictors, strict=True)):
            found = [] if stored is None else stored.get(record["image_id"], [])
            if predictor is not None:
                predicted = predictor(read_picture(record["file_name"]))
                predicted = predicted[predicted.scores >= self.min_score]
                if stored is None:
                    results = instances_to_coco_json(predicted, record["image_id"])
                    found = [_instance(result, result["category_id"]) for result in results]
                if self.with_patches[i]:
                    patches[f"run{i}"] = _patch_grids(predicted)
            kept = [d for d in found if d.score is not None and d.score >= self.min_score and mask_util.area(d.rle)]
            detections.append(sorted(kept, key=lambda d: -(d.score or 0)))
        name = record["file_name"]
        picture = compare(name.rpartition("/")[2], name, list(_truth(record)), detections, self.dilation_ratio)
        picture.patches.update(patches)
        return picture


def _has_patches(run: ReportedRun) -> bool:
    name = run.cfg.MODEL.ROI_MASK_HEAD.NAME
    return run.cfg.MODEL.MASK_ON and issubclass(ROI_MASK_HEAD_REGISTRY.get(name), MaskRCNNPatchDCTHead)


def _predictor(run: ReportedRun, data_set: str, keep_stages: bool) -> Predictor:
    cfg = run.config_for(data_set)
    logger.info("Running %s on the images of the gallery", cfg.MODEL.WEIGHTS)
    try:
        return Predictor(cfg, keep_stages)
    except UserError as e:
        raise UserError(f"the model of {run.name} is needed for its masks or patch labels: {e}") from None


def _load_results(run: ReportedRun, data_set: str, classes: dict[int, int] | None) -> dict[Any, list[Instance]] | None:
    """Read a run's detections by image id; None where its evaluation kept none."""
    results = run.results(data_set, RESULTS)
    if results is None:
        return None
    found: dict[Any, list[Instance]] = {}
    try:
        for result in results:
            number = result["category_id"]
            # Categories without a mapping are LVIS's, numbered from 1
            label = classes[number] if classes else number - 1
            found.setdefault(result["image_id"], []).append(_instance(result, label))
    except (KeyError, TypeError) as e:
        raise UserError(
            f"{run.folder / 'inference' / data_set / RESULTS} does not hold instance masks of {data_set} ({e!r}); is "
            "the data set still the same?"
        ) from None
    return found


def _instance(result: dict[str, Any], label: int) -> Instance:
    return Instance(result["segmentation"], label, float(result["score"]))


def _truth(record: dict[str, Any]) -> Iterator[Instance]:
    """Yield the objects of an image that have masks; crowd regions are none."""
    for annotation in record.get("annotations", ()):
        segmentation = annotation.get("segmentation")
        if not segmentation or annotation.get("iscrowd", 0):
            continue
        yield Instance(to_rle(segmentation, record["height"], record["width"]), annotation["category_id"])


def _patch_grids(instances: Instances) -> list[PatchGrid]:
    pairs = zip(instances.pred_boxes.tensor.tolist(), instances.pred_patch_labels.numpy(), strict=True)
    return [PatchGrid(box, labels) for box, labels in pairs]
