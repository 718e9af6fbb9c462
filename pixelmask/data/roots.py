"""Where data sets are."""

import os
from pathlib import Path


def datasets_root() -> Path:
    """Return the folder of all data sets: `$DETECTRON2_DATASETS`, read at each call; ./datasets where it is not set."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


def describe_root() -> str:
    """Return a clause on the variable, for messages about what is missing there."""
    root = os.environ.get("DETECTRON2_DATASETS")
    return f"DETECTRON2_DATASETS is {root}" if root else "DETECTRON2_DATASETS is not set, so that ./datasets is used"


def expand_path(path: str) -> str:
    """Expand ``~`` and ``$VARIABLES``."""
    return os.path.expandvars(os.path.expanduser(path))
