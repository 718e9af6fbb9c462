"""The fixtures that all tests may ask for, and what they share without asking."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.training import AIRM, PATCHDCT, TinyModel, log_handlers_restored, made_once


@pytest.fixture(autouse=True)
def restore_log_handlers() -> Iterator[None]:
    with log_handlers_restored():
        yield


@pytest.fixture(scope="session", autouse=True)
def heed_ctrl_c() -> None:
    """Also where the tests were begun in the background by a shell, which has SIGINT ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this test session, which the processes of pytest-xdist share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def drawn_data(shared_folder: Path) -> Path:
    """The folder in which the session's drawn data sets are; see ``data_root``."""
    (shared_folder / "datasets").mkdir(exist_ok=True)
    return shared_folder / "datasets"


@pytest.fixture
def data_root(drawn_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """DETECTRON2_DATASETS, as a folder where drawn data sets appear when they are first used."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(drawn_data))
    return drawn_data


def _train(model: TinyModel, shared_folder: Path, drawn_data: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch, log_handlers_restored():
        patch.setenv("DETECTRON2_DATASETS", str(drawn_data))
        return made_once(shared_folder / f"trained_{model.name}", lambda folder: model.run("OUTPUT_DIR", folder))


@pytest.fixture(scope="session")
def trained_patchdct(shared_folder: Path, drawn_data: Path) -> Path:
    """The output of a short training: config.yaml, model_final.pth, evaluation.json, ...; tests must not change it."""
    return _train(PATCHDCT, shared_folder, drawn_data)


@pytest.fixture(scope="session")
def trained_airm(shared_folder: Path, drawn_data: Path) -> Path:
    """The same of AIRM."""
    return _train(AIRM, shared_folder, drawn_data)


@pytest.fixture
def real_data() -> Path:
    """The folder of real data; without one the test is skipped."""
    if "REAL_DATA_ROOT" not in os.environ:
        pytest.skip("REAL_DATA_ROOT names no folder of real data")
    return Path(os.environ["REAL_DATA_ROOT"])
