"""What happens to the data sets of a config before anything else: registration and checks."""

from detectron2.config import CfgNode

from pixelmask.data.coco_format import check_datasets

from .cityscapes import check_cityscapes, is_cityscapes_name, register_cityscapes
from .shapes_dataset import is_shapes_name, register_shapes


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
            register_cityscapes(name)
    check_datasets(cfg, train)
    check_cityscapes(cfg, train)
