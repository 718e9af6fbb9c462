"""The project's trainer on refinement data."""

from pathlib import Path

from detectron2.config import CfgNode
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
    def build_mapper(cls, cfg: CfgNode, is_train: bool) -> RefinementDatasetMapper:
        return RefinementDatasetMapper(cfg, is_train=is_train)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return RefinementEvaluator(dataset_name, output_dir=str(Path(cfg.OUTPUT_DIR) / "inference" / dataset_name))
