"""What the tests of the command-line tools share: the tools as modules, and configs as files."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from detectron2.config import CfgNode

from ..testing import tiny_cfg


@pytest.fixture(scope="session")
def load_tool() -> Callable[[str], ModuleType]:
    """A function that imports ``tools/<name>.py``."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"tool_{name}", f"tools/{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


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
