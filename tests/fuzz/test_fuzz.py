"""The short form of `make fuzz`, and that its readers read what is not damaged."""

import json

import pytest

from .readers import READERS, write_seeds
from .runner import fuzz


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeds")
    write_seeds(folder)
    return folder


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_what_is_not_damaged_is_read(seeds, reader):
    found = [seeds / name for name in reader.seeds if (seeds / name).exists()]
    assert found
    for path in found:
        reader.read(path)


def test_damaged_files_are_read_or_refused():
    found = fuzz(seed=0, seconds=60, most=120)
    assert not found.findings
    assert found.tried == 120 and found.counts["read"] > 20 and found.counts["refused"] > 30


def test_lists_in_lists_where_nobody_reads(seeds):
    """JSON of a depth that can be parsed, and not copied."""
    content = json.loads((seeds / "coco.json").read_text())
    deep = json.dumps({**content, "info": "deep"}).replace('"deep"', "[" * 900 + "]" * 900)
    (seeds / "deep.json").write_text(deep)
    for reader in READERS:
        if reader.name.startswith("annotations, to"):
            reader.read(seeds / "deep.json")
