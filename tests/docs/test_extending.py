"""docs/extending.md: its head is registered from outside the package, trained, evaluated and drawn by its commands."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from pixelmask.cli import import_code, run
from pixelmask.errors import UserError
from tests.support.models import load_tool
from tests.support.training import PATCHDCT, run_train_net
from tests.tools.test_demo import picture

PAGE = Path("docs/extending.md").read_text(encoding="utf-8")
(CODE,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
TRAIN, DRAW = (shlex.split(block.replace("\\\n", " ")) for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL))


@pytest.fixture
def words(tmp_path, monkeypatch, data_root):
    """Change a command's paths to those of this test, with the code where it was saved."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_head.py").write_text(CODE, encoding="utf-8")
    picture().save(tmp_path / "photo.jpg")
    own = re.compile(r"my_head\.py|photo\.jpg|output/.*")
    return lambda command: [str(tmp_path / word) if own.fullmatch(word) else word for word in command[2:]]


@pytest.mark.slow
def test_the_example_trains_is_evaluated_and_draws(words, tmp_path):
    assert (TRAIN[:2], DRAW[:2]) == (["python", "tools/train_net.py"], ["python", "tools/demo.py"])
    stages = ["MODEL.ROI_MASK_HEAD.NUM_STAGE", "3", "MODEL.ROI_MASK_HEAD.MASK_LOSS_PARA_EACH_STAGE", "[1.0,1.0,1.0]"]
    run_train_net([*words(TRAIN), *PATCHDCT.opts, *stages])
    output = tmp_path / "output" / "residual_shapes"
    lines = (output / "metrics.json").read_text().splitlines()
    logged = {key for line in lines for key in json.loads(line)}
    assert {"patchdct/loss_dct", "patchdct/loss_residual_stage1", "patchdct/loss_residual_stage2"} <= logged
    assert {"bbox", "segm", "boundary"} == set(json.loads((output / "evaluation.json").read_text()))

    demo = load_tool("demo")
    run(demo.main, demo.argument_parser().parse_args(words(DRAW)))
    assert (tmp_path / "output" / "residual_masks" / "photo_masks.jpg").is_file()


def test_without_import_the_message_names_it(words, tmp_path, capsys):
    unknown = ["MODEL.ROI_MASK_HEAD.NAME", "NoSuchHead", "OUTPUT_DIR", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        run_train_net([*words(TRAIN), *PATCHDCT.opts, *unknown])
    assert "error: the config names NoSuchHead, which is not in the registry ROI_MASK_HEAD" in capsys.readouterr().err


def test_files_that_cannot_be_written_are_named_and_other_errors_not_hidden(tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        run((tmp_path / "file" / "folder").mkdir)
    assert capsys.readouterr().err == f"error: cannot read or write {tmp_path / 'file' / 'folder'}: Not a directory\n"
    with pytest.raises(FileNotFoundError):
        run((tmp_path / "absent").read_text)
    with pytest.raises(KeyError, match="of something else"):
        run({"a": 1}.__getitem__, "of something else")


@pytest.mark.parametrize("name", ["absent.py", "no_such_module"])
def test_code_that_is_not_there_is_named(name):
    with pytest.raises(UserError, match=f"--import {name}"):
        import_code([name])
