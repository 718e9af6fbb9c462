"""The trainer of detectors."""

from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator

from pixelmask.data.mapper import CheckedDatasetMapper
from pixelmask.engine import BaseTrainer
from pixelmask.evaluation import COCOInstanceEvaluator

from .data.prepare import prepare_datasets
from .evaluation import CityscapesInstanceEvaluator, COCOWithLVISEvaluator, LVISInstanceEvaluator
from .figures.panels import draw_instances


class Trainer(BaseTrainer):
    """Trains PatchDCT, DCT-Mask and Detectron2's own detectors, and evaluates box, mask and Boundary AP."""

    draw_prediction = staticmethod(draw_instances)

    @classmethod
    def prepare_datasets(cls, cfg: CfgNode, train: bool) -> None:
        prepare_datasets(cfg, train)

    @classmethod
    def build_mapper(cls, cfg: CfgNode, is_train: bool) -> CheckedDatasetMapper:
        return CheckedDatasetMapper(cfg, is_train=is_train)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        output_dir = Path(cfg.OUTPUT_DIR) / "inference" / dataset_name
        tasks = ("bbox", "segm", "boundary") if cfg.MODEL.MASK_ON else ("bbox",)
        name = Path(cfg.OUTPUT_DIR).resolve().name
        evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type")
        if evaluator_type == "cityscapes_instance" and cfg.MODEL.MASK_ON:  # whose official evaluation is of masks alone
            return CityscapesInstanceEvaluator(dataset_name)
        if evaluator_type == "lvis":
            return LVISInstanceEvaluator(dataset_name, tasks, output_dir=str(output_dir))
        evaluator = COCOWithLVISEvaluator if dataset_name == "coco_2017_val" else COCOInstanceEvaluator
        return evaluator(dataset_name, tasks, output_dir=str(output_dir), submission_name=name)
