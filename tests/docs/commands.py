"""Every command of the documentation, executed: `make docs-check`. Not one of `make test`."""

import json
import re
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

import pytest

from pixelmask.data.coco_format import check_coco_file
from tests.docs.blocks import Block, to_execute
from tests.docs.sandbox import Sandbox


@pytest.fixture(scope="session")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    sandbox = Sandbox(tmp_path_factory.mktemp("docs"))
    yield sandbox
    sandbox.close()


def check_custom_data(folder: Path, said: str) -> None:
    """Check what docs/custom_data.md promises of its two trainings."""
    classes = ["gear", "star", "comb"]
    assert f"classes={classes}" in said and "rle=3, maskless=None" in said
    output = folder / "output" / "my_set"
    assert "(8 classes in the checkpoint, 3 in the model)" in (output / "log.txt").read_text()
    results = json.loads((output / "evaluation.json").read_text())
    for task in ("bbox", "segm", "boundary"):
        assert {"AP", "AP50", *(f"AP-{name}" for name in classes)} <= set(results[task])
    for name in classes:
        assert re.search(rf"^\| {name} \|( [\d.]+ \|| nan \|){{3}}$", said, flags=re.MULTILINE)
    images = list((folder / "datasets/my_set/val").iterdir())
    assert images and all((output / "pictures" / f"{path.stem}_masks.jpg").is_file() for path in images)
    assert (output / "inference/my_val/coco_instances_results.json").is_file()
    summary = check_coco_file(str(folder / "datasets/my_set/one.json"), str(folder / "datasets/my_set/train"))
    assert (summary.classes, summary.trainable) == (["board"], 1)

    assert "12 pairs" in said and "9 pairs to train on, 3 held out" in said
    output = folder / "output" / "my_pairs"
    metrics = json.loads((output / "evaluation.json").read_text())["refinement"]
    assert metrics["images"] == 3 and {"coarse_IoU", "refined_IoU", "coarse_mBA", "refined_mBA"} <= set(metrics)
    assert (output / "inference/pairs_val/per_image.csv").is_file() and (output / "refined.png").is_file()


# By part of the documentation, what is checked after its last block
CHECKS: dict[str, Callable[[Path, str], None]] = {"docs/custom_data.md": check_custom_data}


def class_of(blocks: list[Block]) -> type:
    """Return a class of tests: pytest-xdist gives a class to one process (--dist loadscope)."""
    check = CHECKS.get(blocks[0].part)

    @pytest.mark.parametrize("block", blocks, ids=[f"{block.page}:{block.line}" for block in blocks])
    def test_runs(self: object, block: Block, sandbox: Sandbox) -> None:
        try:
            sandbox.run(block)
        except AssertionError as e:
            pytest.fail(str(e), pytrace=False)

    def test_what_it_made(self: object, sandbox: Sandbox) -> None:
        assert check
        check(sandbox.copy, sandbox.said)

    return type("Test", (), {"test_runs": test_runs} | ({"test_what_it_made": test_what_it_made} if check else {}))


class TestSandbox:
    """A check that cannot fail is none."""

    @pytest.mark.parametrize(
        ("language", "code", "said"),
        [
            ("sh", "python -c 'import sys; sys.exit(3)'\ntrue", "status 3"),
            ("sh", "python - word <<'END'\nimport sys\nassert sys.argv[1:] != ['word'], 'heard'\nEND\n", "heard"),
            ("sh", "python tools/train_net.py --config-file absent.yaml | cat", "no config file absent.yaml"),
            ("sh", "torchrun --nproc_per_node=2 tools/train_net.py --config-file absent.yaml", "no config file"),
            ("python", "import os\nassert not os.path.isdir('configs')", "AssertionError"),
        ],
    )
    def test_a_failure_is_noticed(self, sandbox: Sandbox, language: str, code: str, said: str) -> None:
        with pytest.raises(AssertionError, match=said):
            sandbox.run(Block("", "failures", 1, language, code))


for part, found in groupby(to_execute(), key=lambda block: block.part):
    globals()["Test_" + re.sub(r"\W+", "_", part)] = class_of(list(found))
