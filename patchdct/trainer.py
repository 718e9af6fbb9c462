"""The trainer of detectors."""

import importlib.util
import logging
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOPanopticEvaluator, DatasetEvaluator, DatasetEvaluators
from detectron2.modeling import GeneralizedRCNNWithTTA
from torch import nn

from pixelmask.data.mapper import CheckedDatasetMapper
from pixelmask.engine import BaseTrainer
from pixelmask.errors import UserError
from pixelmask.evaluation import COCOInstanceEvaluator

from .data.prepare import prepare_datasets
from .evaluation import CityscapesInstanceEvaluator, COCOWithLVISEvaluator, LVISInstanceEvaluator
from .figures.panels import draw_instances

logger = logging.getLogger(__name__)


class Trainer(BaseTrainer):
    """Trains PatchDCT, DCT-Mask and Detectron2's own detectors, and evaluates box, mask and Boundary AP."""

    draw_prediction = staticmethod(draw_instances)

    @classmethod
    def prepare_datasets(cls, cfg: CfgNode, train: bool) -> None:
        model = cfg.MODEL
        plain = model.META_ARCHITECTURE == "GeneralizedRCNN" and not (model.KEYPOINT_ON or model.LOAD_PROPOSALS)
        if cfg.TEST.AUG.ENABLED and not plain:
            raise UserError(
                "TEST.AUG.ENABLED True is for MODEL.META_ARCHITECTURE GeneralizedRCNN without KEYPOINT_ON and "
                f"LOAD_PROPOSALS, and this is {model.META_ARCHITECTURE}: set it to False"
            )
        prepare_datasets(cfg, train)

    @classmethod
    def build_mapper(cls, cfg: CfgNode, is_train: bool) -> CheckedDatasetMapper:
        return CheckedDatasetMapper(cfg, is_train=is_train)

    @classmethod
    def evaluate(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> dict[str, Any]:
        """Evaluate; with TEST.AUG.ENABLED also by Detectron2's test-time augmentation, as "bbox_TTA" and so on."""
        results = super().evaluate(cfg, model, evaluators)
        if not cfg.TEST.AUG.ENABLED or evaluators or isinstance(model, GeneralizedRCNNWithTTA):
            return results
        names = cfg.DATASETS.TEST
        folder = Path(cfg.OUTPUT_DIR) / "inference_TTA"
        own = [cls.build_evaluator(cfg, name, str(folder / name)) for name in names]
        augmented = super().evaluate(cfg, GeneralizedRCNNWithTTA(cfg, model).train(model.training), own)

        def both(metrics: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
            return {**metrics, **{f"{task}_TTA": found for task, found in others.items()}}

        if len(names) == 1:
            return both(results, augmented)
        return {name: both(results[name], augmented[name]) for name in results}

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
        """Build the evaluator of a data set; its detections go to ``output_folder``, by default in OUTPUT_DIR."""
        folder = output_folder or str(Path(cfg.OUTPUT_DIR) / "inference" / dataset_name)
        tasks = ("bbox", "segm", "boundary") if cfg.MODEL.MASK_ON else ("bbox",)
        name = Path(cfg.OUTPUT_DIR).resolve().name
        evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type")
        if evaluator_type == "cityscapes_instance" and cfg.MODEL.MASK_ON:  # whose official evaluation is of masks alone
            return CityscapesInstanceEvaluator(dataset_name)
        if evaluator_type == "lvis":
            return LVISInstanceEvaluator(dataset_name, tasks, output_dir=folder)
        evaluator = COCOWithLVISEvaluator if dataset_name == "coco_2017_val" else COCOInstanceEvaluator
        instances = evaluator(dataset_name, tasks, output_dir=folder, submission_name=name)
        if evaluator_type == "coco_panoptic_seg" and _has_pq(cfg, dataset_name):
            return DatasetEvaluators([instances, COCOPanopticEvaluator(dataset_name, folder)])
        return instances


def _has_pq(cfg: CfgNode, dataset_name: str) -> bool:
    """Tell whether panoptic quality can be evaluated; if not, the log says why."""
    if cfg.MODEL.META_ARCHITECTURE != "PanopticFPN":
        reason = (
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} segments instances only; PanopticFPN also stuff"
        )
    elif importlib.util.find_spec("panopticapi") is None:
        reason = "it needs panopticapi: pip install git+https://github.com/cocodataset/panopticapi.git"
    else:
        return True
    logger.warning("No panoptic quality (PQ) on %s, AP alone: %s", dataset_name, reason)
    return False
