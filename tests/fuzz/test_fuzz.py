"""The short form of `make fuzz`, and that its readers read what is not damaged."""

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
