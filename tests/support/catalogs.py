"""A root of data sets of a test's own, and empty files for it."""

from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """DETECTRON2_DATASETS, as an empty folder; Detectron2's catalogs forget what the test registers."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for catalog in (DatasetCatalog, MetadataCatalog):
        monkeypatch.setattr(catalog, "data", dict(catalog.data))
    return tmp_path


def put(folder: Path, *names: str) -> Path:
    """Make empty files in a folder, and return the folder."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder
