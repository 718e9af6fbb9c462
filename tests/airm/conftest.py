"""What tests of AIRM share: a root of data sets, and an untrained tiny model and its checkpoint."""

from pathlib import Path

import pytest

from airm.meta_arch import AIRM
from tests.support.catalogs import root
from tests.support.checkpoints import save_model
from tests.support.models import tiny_airm_cfg, untrained_airm

__all__ = ["root"]


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's checkpoint, with its config in it and beside it."""
    return save_model(tiny_airm_cfg(), tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def model() -> AIRM:
    return untrained_airm()
