"""Detectron2's COCO evaluator with Boundary AP beside box and mask AP, computed by faster-coco-eval."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from detectron2.evaluation import COCOEvaluator
from faster_coco_eval import COCO, COCOeval_faster
from pycocotools import mask as mask_util

from ..data.coco_file import in_order
from ..rle import to_rle
from .boundary import DILATION_RATIO, rle_to_boundary
from .submission import write_submission

TASKS = ("bbox", "segm", "boundary")


class BoundaryEval(COCOeval_faster):
    """faster-coco-eval's Boundary AP on the boundaries of :mod:`.boundary`.

    The library's own boundaries leave the definition where the image is not higher than twice the boundary's width,
    and where dilation_ratio * diagonal is an odd number and a half (225 x 300, 285 x 380, 465 x 620); they also take
    several times longer on one core. Its IoU is kept: min(mask IoU, boundary IoU), but for a crowd region (iscrowd)
    the share of the detection that lies in the region, without a boundary term. As in mask AP, detections matched to a
    crowd region are ignored.
    """

    def _prepare(self) -> None:
        self.params.compute_boundary = False
        super()._prepare()
        self.params.compute_boundary = True
        for coco in (self.cocoGt, self.cocoDt):
            for annotation in coco.loadAnns(coco.getAnnIds(self.params.imgIds, self.params.catIds)):
                annotation["boundary"] = rle_to_boundary(annotation["rle"], self.boundary_dilation_ratio)


class _BoundaryLabel(str):
    """ "segm" to Detectron2's table of metric names, "boundary" in what it logs."""

    def __format__(self, spec: str) -> str:
        return format("boundary", spec)


class COCOInstanceEvaluator(COCOEvaluator):
    """Evaluate box AP, mask AP and Boundary AP (dilation ratio 0.02 of the image diagonal).

    ``evaluate()`` returns {"bbox": metrics, "segm": metrics, "boundary": metrics}, each with Detectron2's names: AP,
    AP50, AP75, APs, APm, APl and AP-<class>, from 0 to 100. As in Detectron2 they are NaN where there is no detection
    at all, or no ground truth of that size or class. ``coco_instances_results.json`` in output_dir holds the
    detections; for ground truth without annotations (image_info files of test sets) that is all, but for the zip that
    :func:`.submission.write_submission` makes of them. Sizes are areas of
    the box for box AP, else of the mask, and those in the JSON for ground truth. Keypoints are not evaluated.

    Args:
        dataset_name: registered data set; one that is not in COCO format is converted as Detectron2 does.
        tasks: some of "bbox", "segm", "boundary"; None is all three. Those of masks are left out where detections or
            ground truth have none.
        distributed: gather the detections of all processes; only the main process gets results.
        output_dir: folder for the detections, made if missing; None writes none.
        submission_name: of the method, for the zip.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        submission_name: str = "model",
    ):
        unknown = set(tasks or ()) - set(TASKS)
        if unknown:
            raise ValueError(f"unknown evaluation tasks {sorted(unknown)}; there are {TASKS}")
        super().__init__(dataset_name, (), distributed, output_dir)
        self._wanted, self._submission_name = tasks, submission_name

    def _tasks_from_predictions(self, predictions: list[dict[str, Any]]) -> Sequence[str]:
        return ()  # Detectron2 maps class ids and writes the results; what it would evaluate itself is none

    def _eval_predictions(self, predictions: list[dict[str, Any]], img_ids: Sequence[Any] | None = None) -> None:
        super()._eval_predictions(predictions, img_ids)
        results = list(itertools.chain.from_iterable(p["instances"] for p in predictions))
        if not self._do_evaluation:
            self._submit(results, [p["image_id"] for p in predictions])
            return
        truth = _GroundTruth.of(self._coco_api.dataset)
        for task in self._tasks_for(results, truth.coco):
            label = _BoundaryLabel("segm") if task == "boundary" else task
            # Detectron2 takes None as "no detections", and says so
            evaluation = self._evaluate_task(task, results, truth, img_ids) if results else None
            self._results[task] = self._derive_coco_results(evaluation, label, self._metadata.get("thing_classes"))

    def _submit(self, results: list[dict[str, Any]], processed: list[Any]) -> None:
        if self._output_dir:
            truth, json_file = self._coco_api.dataset, self._metadata.json_file
            write_submission(results, truth, processed, json_file, self._submission_name, self._output_dir)

    def _tasks_for(self, results: list[dict[str, Any]], truth: COCO) -> Sequence[str]:
        tasks = self._wanted or TASKS
        if any("segmentation" not in result for result in results):
            return [task for task in tasks if task == "bbox"]
        without = sum(not annotation.get("segmentation") for annotation in truth.anns.values())
        if without and set(tasks) - {"bbox"}:
            self._logger.warning(
                f"{without} of {len(truth.anns)} annotations in {self._metadata.json_file} have no mask: "
                "mask AP and Boundary AP are skipped."
            )
            return [task for task in tasks if task == "bbox"]
        return tasks

    def _evaluate_task(
        self, task: str, results: list[dict[str, Any]], truth: "_GroundTruth", img_ids: Sequence[Any] | None
    ) -> COCOeval_faster:
        # With a box, the library would take the box's area for the mask's
        keys = ("category_id", "score", "bbox" if task == "bbox" else "segmentation")
        detections = [
            {"image_id": truth.numbers[result["image_id"]], **{key: result[key] for key in keys}} for result in results
        ]
        evaluation = (BoundaryEval if task == "boundary" else COCOeval_faster)(
            truth.coco, truth.coco.loadRes(detections), task, boundary_dilation_ratio=DILATION_RATIO
        )
        if img_ids is not None:
            evaluation.params.imgIds = [truth.numbers[img_id] for img_id in img_ids]
        evaluation.evaluate()
        evaluation.accumulate()
        lines: list[str] = []
        evaluation.print_function = lines.append
        evaluation.summarize()
        self._logger.info("Summary of %s:\n%s", task, "\n".join(lines))
        return evaluation


class ResultsEvaluator(COCOInstanceEvaluator):
    """Takes image ids and their COCO results, with classes for category ids, in place of a model's input and output."""

    def process(self, inputs: Iterable[Any], outputs: Iterable[list[dict[str, Any]]]) -> None:
        for image_id, results in zip(inputs, outputs, strict=True):
            self._predictions.append({"image_id": image_id, "instances": results})


class _GroundTruth(NamedTuple):
    """A COCO JSON as the library wants it, and the numbers that it has for image ids.

    The library counts an annotation with id 0 as not matched, and takes integer ids only: images (in the order of their
    ids) and annotations are numbered from 1. Areas are added where they are missing.
    """

    coco: COCO
    numbers: dict[Any, int]

    @classmethod
    def of(cls, dataset: dict[str, Any]) -> "_GroundTruth":
        images = sorted(dataset["images"], key=lambda image: in_order(image["id"]))
        numbers = {image["id"]: number for number, image in enumerate(images, start=1)}
        sizes = {image["id"]: (image["height"], image["width"]) for image in images}
        annotations = []
        for number, annotation in enumerate(dataset["annotations"], start=1):
            image_id = annotation["image_id"]
            area = annotation["area"] if "area" in annotation else _area(annotation, *sizes[image_id])
            annotations.append({**annotation, "id": number, "image_id": numbers[image_id], "area": area})
        images = [{**image, "id": numbers[image["id"]]} for image in images]
        truth = {"images": images, "annotations": annotations, "categories": dataset["categories"], "info": {}}
        return cls(COCO(truth), numbers)


def _area(annotation: dict[str, Any], height: int, width: int) -> float:
    segmentation = annotation.get("segmentation")
    if not segmentation:
        return annotation["bbox"][2] * annotation["bbox"][3]
    return float(mask_util.area(to_rle(segmentation, height, width)))
