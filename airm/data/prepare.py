"""What happens to the data sets of a config before anything else: registration and checks."""

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from pixelmask.data.coco_format import suggest
from pixelmask.errors import UserError

from .datasets import FORMS_OF_ENTRY, BuiltInSet, CustomSet, register_refinement
from .synthetic_dataset import is_synthetic_name, register_synthetic


def prepare_refinement_datasets(cfg: CfgNode, train: bool) -> None:
    """Register what the config names, and check every set of DATASETS.TEST and, for training, of DATASETS.TRAIN.

    The sets of ``DATASETS.REFINEMENT`` and synthetic ones are registered. Files are looked for, not opened; synthetic
    sets are made when they are first loaded.

    Raises:
        UserError: if DATASETS.TRAIN (DATASETS.TEST where ``train`` is False) is empty, for a name that is not
            registered or no refinement set, and where files are missing.
    """
    register_refinement(cfg.DATASETS.REFINEMENT)
    key = "TRAIN" if train else "TEST"
    if not cfg.DATASETS[key]:
        raise UserError(f"DATASETS.{key} is empty; name at least one data set there")
    for key in ("TEST", "TRAIN") if train else ("TEST",):
        for name in cfg.DATASETS[key]:
            if name not in DatasetCatalog and is_synthetic_name(name):
                register_synthetic(name)
            known = {n for n in DatasetCatalog.list() if MetadataCatalog.get(n).get("evaluator_type") == "refinement"}
            if name not in known:
                # Registered when they are asked for
                known |= {"synthetic_refinement_train", "synthetic_refinement_val"}
                fault = "is no data set for refinement" if name in DatasetCatalog.list() else "is not registered"
                raise UserError(
                    f"data set {name} of DATASETS.{key} {fault}{suggest(name, known, 2)} Known are "
                    f"{', '.join(sorted(known))}; to register one of your own, add {FORMS_OF_ENTRY} to "
                    "DATASETS.REFINEMENT"
                )
            dataset = DatasetCatalog[name]
            if isinstance(dataset, (BuiltInSet, CustomSet)):
                dataset()
