"""What happens to the data sets of a config before anything else: registration, checks, and names of the classes."""

import logging
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from pixelmask.data.coco_format import check_datasets
from pixelmask.errors import UserError

from .cityscapes import check_cityscapes, is_cityscapes_name, register_cityscapes
from .shapes_dataset import is_shapes_name, register_shapes

logger = logging.getLogger(__name__)


def prepare_datasets(cfg: CfgNode, train: bool = True) -> None:
    """Register the data sets that the config names or describes, and check them, before a model is built.

    Args:
        cfg: its DATASETS may name built-in sets, shapes, and those of ``DATASETS.COCO_FORMAT``.
        train: check DATASETS.TRAIN as well as DATASETS.TEST.

    Raises:
        UserError: see :func:`~pixelmask.data.coco_format.check_datasets` and :func:`~.cityscapes.check_cityscapes`.
    """
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        if is_shapes_name(name):
            register_shapes(name)
        elif is_cityscapes_name(name):
            register_cityscapes(name, polygons=name in cfg.DATASETS.TRAIN and cfg.INPUT.MASK_FORMAT == "polygon")
    check_datasets(cfg, train)
    check_cityscapes(cfg, train)


def find_categories(cfg: CfgNode) -> list[dict[str, Any]]:
    """Return id and name of each class of the model as a data set of the config has them, else its index as both."""
    problem = "none of its data sets has that many"
    try:
        prepare_datasets(cfg, train=False)
        for name in {entry[0] for entry in cfg.DATASETS.COCO_FORMAT} & {*cfg.DATASETS.TEST}:
            DatasetCatalog.get(name)  # tells the ids of its categories
    except UserError as e:
        # No matter for sets like COCO, whose classes are known without their files
        problem = str(e)
    num_classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        metadata = MetadataCatalog.get(name)
        names = metadata.get("thing_classes", ())
        if len(names) == num_classes:
            indices = metadata.get("thing_dataset_id_to_contiguous_id") or {i: i for i in range(num_classes)}
            return [
                {"id": number, "name": names[indices[number]]} for number in sorted(indices, key=lambda k: indices[k])
            ]
    logger.warning("The %d classes of the model get numbers for names: %s", num_classes, problem)
    return [{"id": i, "name": str(i)} for i in range(num_classes)]
