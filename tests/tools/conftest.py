"""What the tests of the command-line tools share."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode

from tests.support.checkpoints import save_model
from tests.support.models import tiny_airm_cfg, tiny_cfg


@pytest.fixture
def config_file(tmp_path: Path) -> Callable[..., str]:
    """A function that writes a tiny config to a file, as ``tiny_cfg(head, **overrides of ROI_MASK_HEAD)``."""

    def write(head: str = "patchdct", edit: Callable[[CfgNode], None] = lambda cfg: None, **mask_head: Any) -> str:
        cfg = tiny_cfg(head, **mask_head)
        edit(cfg)
        path = tmp_path / f"{head}.yaml"
        path.write_text(cfg.dump())
        return str(path)

    return write


@pytest.fixture
def fails(capsys) -> Callable[..., AbstractContextManager[None]]:
    """A context in which a tool is to end with status 1 and one message, of which parts are given."""

    @contextmanager
    def check(*parts: str) -> Iterator[None]:
        with pytest.raises(SystemExit) as error:
            yield
        printed = capsys.readouterr().err
        message = printed[printed.rindex("error: ") :]
        assert error.value.code == 1 and "Traceback" not in printed
        assert all(part in message for part in parts), message

    return check


@pytest.fixture(scope="session")
def detector_weights(tmp_path_factory) -> Path:
    """A checkpoint of the tiny PatchDCT model, whose random scores are all above 0.1 and below 0.9."""
    return save_model(tiny_cfg(), tmp_path_factory.mktemp("detector"))


@pytest.fixture(scope="session")
def airm_weights(tmp_path_factory) -> Path:
    """A checkpoint of the tiny AIRM, with a Mix Transformer and AIRMF, not trained."""
    return save_model(tiny_airm_cfg(), tmp_path_factory.mktemp("refiner"))
