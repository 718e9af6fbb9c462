"""A root of data sets of a test's own."""

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
