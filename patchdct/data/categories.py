"""What the classes of a model are called."""

import logging
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from pixelmask.errors import UserError

from .prepare import prepare_datasets

logger = logging.getLogger(__name__)


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
