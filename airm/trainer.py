"""The project's trainer on refinement data."""

from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.evaluation import DatasetEvaluator

from patchdct.trainer import Trainer

from .data.dataset_mapper import RefinementDatasetMapper
from .data.datasets import prepare_refinement_datasets
from .evaluation import RefinementEvaluator


class RefinementTrainer(Trainer):
    """Trains AIRM on pairs of image and mask, and evaluates IoU and mBA of coarse and refined masks."""

    @classmethod
    def prepare_datasets(cls, cfg: CfgNode, train: bool) -> None:
        prepare_refinement_datasets(cfg, train)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        return build_detection_train_loader(cfg, mapper=RefinementDatasetMapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        return build_detection_test_loader(cfg, dataset_name, mapper=RefinementDatasetMapper(cfg, is_train=False))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return RefinementEvaluator(dataset_name, output_dir=str(Path(cfg.OUTPUT_DIR) / "inference" / dataset_name))
