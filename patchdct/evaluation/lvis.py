"""Evaluation on LVIS: AP* of COCO models (PatchDCT, Wen et al., ICLR 2023, Sec. 4.1), and LVIS's own data sets.

LVIS annotated COCO's images anew, with better masks, which AP* measures. The cocofied files that it reads are described
in :mod:`patchdct.data.lvis_format`; the protocol is LVIS's, see :mod:`.lvis_eval`.
"""

import itertools
import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from detectron2.evaluation import COCOEvaluator
from detectron2.utils.logger import create_small_table

from pixelmask.errors import UserError
from pixelmask.evaluation.coco import TASKS, COCOInstanceEvaluator

from ..data.lvis_format import COMMAND, VERSIONS, cocofied_file, lvis_file, read_cocofied, read_lvis

logger = logging.getLogger(__name__)

MASK_TASKS = ("segm", "boundary")


class COCOWithLVISEvaluator(COCOInstanceEvaluator):
    """:class:`COCOInstanceEvaluator` for COCO val2017, with AP* of the same detections.

    ``evaluate()`` also returns "lvis_v0.5_segm", "lvis_v0.5_boundary", "lvis_v1_segm" and "lvis_v1_boundary", each with
    AP, AP50, AP75, APs, APm and APl from 0 to 100 over the images that the LVIS file has. They need
    ``lvis/lvis_{v0.5,v1}_val_cocofied.json`` below ``$DETECTRON2_DATASETS``. Where one is absent, a log line says so
    before inference; where one cannot be used, an error is logged. COCO's own metrics come in any case.

    Args: as of :class:`COCOInstanceEvaluator`; without a mask task there is no AP*.
    """

    def __init__(self, dataset_name: str, tasks: Sequence[str] | None = None, **kwargs: Any):
        super().__init__(dataset_name, tasks, **kwargs)
        files = {version: cocofied_file(lvis_file(version, "val")) for version in VERSIONS}
        absent = [str(path) for path in files.values() if not path.is_file()]
        self._lvis_files = {version: path for version, path in files.items() if path.is_file()}
        if absent and set(tasks or TASKS) & set(MASK_TASKS):
            logger.warning(
                "AP* (LVIS's annotations of COCO) is skipped where the file is absent: no %s; to make it: %s",
                " and no ".join(absent),
                COMMAND,
            )

    def _eval_predictions(self, predictions: list[dict[str, Any]], img_ids: Sequence[Any] | None = None) -> None:
        super()._eval_predictions(predictions, img_ids)
        tasks = [task for task in MASK_TASKS if task in self._results]
        if not tasks:
            return
        results = list(itertools.chain.from_iterable(p["instances"] for p in predictions))
        image_ids = list(self._coco_api.imgs) if img_ids is None else img_ids
        for version, path in self._lvis_files.items():
            try:
                metrics = _evaluate(path, read_cocofied, results, tasks, image_ids, f"lvis_{version}_")
            except Exception as e:  # COCO's metrics, which are there by now, are not to be lost, whatever the fault
                reason = e if isinstance(e, UserError) else f"{path}: {type(e).__name__}: {e}"
                logger.error("AP* of LVIS %s is skipped: %s", version, reason)
            else:
                self._results.update(metrics)


class LVISInstanceEvaluator(COCOEvaluator):
    """Evaluate box AP, mask AP and Boundary AP on a data set of LVIS's, cocofied or not, by LVIS's protocol.

    ``evaluate()`` returns {"bbox": metrics, "segm": metrics, "boundary": metrics}, those of masks where detections have
    masks, each with AP, AP50, AP75, APs, APm, APl, and APr, APc, APf of rare, common and frequent categories, from 0 to
    100. ``coco_instances_results.json`` in output_dir holds the detections.

    Args: as of :class:`COCOInstanceEvaluator`; the data set is one that Detectron2 registers as LVIS's.

    Raises:
        UserError: in evaluation, for an LVIS file with a fault.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
    ):
        super().__init__(dataset_name, (), distributed, output_dir)
        self._wanted = tasks or TASKS

    def _tasks_from_predictions(self, predictions: list[dict[str, Any]]) -> Sequence[str]:
        return ()  # Detectron2 maps class ids and writes the results; what it would evaluate itself is none

    def _eval_predictions(self, predictions: list[dict[str, Any]], img_ids: Sequence[Any] | None = None) -> None:
        results = list(itertools.chain.from_iterable(p["instances"] for p in predictions))
        if not hasattr(self._metadata, "thing_dataset_id_to_contiguous_id"):
            for result in results:
                result["category_id"] += 1  # as Detectron2 has LVIS's own categories, which are numbered from 1
        super()._eval_predictions(predictions, img_ids)
        if self._do_evaluation:
            masks = all("segmentation" in result for result in results)
            tasks = [task for task in self._wanted if masks or task == "bbox"]
            image_ids = list(self._coco_api.imgs) if img_ids is None else img_ids
            self._results.update(_evaluate(self._metadata.json_file, read_lvis, results, tasks, image_ids, ""))


def _evaluate(
    path: Path | str,
    read: Callable[[Path | str], dict[str, Any]],
    results: Sequence[dict[str, Any]],
    tasks: Sequence[str],
    image_ids: Collection[int],
    prefix: str,
) -> dict[str, dict[str, float]]:
    """Return the metrics of each task under its name with the prefix (AP*: those without frequencies), and log them."""
    from .lvis_eval import LVIS_METRICS, METRICS, Truth, evaluate_lvis  # sets up the root logger

    truth = Truth(path, read)
    metrics = {}
    for task in tasks:
        name = prefix + task
        metrics[name] = evaluate_lvis(truth, results, task, image_ids, METRICS if prefix else LVIS_METRICS)
        logger.info("Evaluation results for %s (%s):\n%s", name, path, create_small_table(metrics[name]))
    return metrics
