"""docs/extending.md: its head is registered from outside the package, trained and evaluated by its command."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from patchdct import UserError
from tests.tools.test_train_net import TINY, run, shapes_root, train_net

PAGE = Path("docs/extending.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"```(python|sh)\n(.*?)```", PAGE, re.DOTALL))

__all__ = ["shapes_root"]


def arguments(code: Path, output: Path, *opts: str):
    """The page's command with the file where it was saved, small and short."""
    words = shlex.split(BLOCKS["sh"].replace("\\\n", " "))
    assert words[:2] == ["python", "tools/train_net.py"]
    words = [{"my_head.py": str(code), "output/residual_shapes": str(output)}.get(word, word) for word in words[2:]]
    return train_net.argument_parser().parse_args([*words, *TINY, *opts])


@pytest.fixture
def code(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "my_head.py"
    path.write_text(BLOCKS["python"], encoding="utf-8")
    return path


def test_the_example_trains_and_is_evaluated(code, tmp_path, monkeypatch, shapes_root):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shapes_root))
    stages = ["MODEL.ROI_MASK_HEAD.NUM_STAGE", "3", "MODEL.ROI_MASK_HEAD.MASK_LOSS_PARA_EACH_STAGE", "[1.0,1.0,1.0]"]
    run(train_net.launch, train_net.main, arguments(code, tmp_path / "out", *stages))
    lines = (tmp_path / "out" / "metrics.json").read_text().splitlines()
    logged = {key for line in lines for key in json.loads(line)}
    assert {"patchdct/loss_dct", "patchdct/loss_residual_stage1", "patchdct/loss_residual_stage2"} <= logged
    assert {"bbox", "segm", "boundary"} == set(json.loads((tmp_path / "out" / "evaluation.json").read_text()))


@pytest.mark.parametrize("name", ["absent.py", "no_such_module"])
def test_code_that_is_not_there_is_named(name):
    with pytest.raises(UserError, match=f"--import {name}"):
        train_net.import_code(name)
