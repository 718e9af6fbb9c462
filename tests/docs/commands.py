"""Every command of the documentation, executed: `make docs-check`. Not one of `make test`."""

import re
from collections.abc import Iterator
from itertools import groupby

import pytest

from tests.docs.blocks import Block, to_execute
from tests.docs.sandbox import Sandbox


@pytest.fixture(scope="session")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    sandbox = Sandbox(tmp_path_factory.mktemp("docs"))
    yield sandbox
    sandbox.close()


def class_of(blocks: list[Block]) -> type:
    """Return a class of tests: pytest-xdist gives a class to one process (--dist loadscope)."""

    @pytest.mark.parametrize("block", blocks, ids=[f"{block.page}:{block.line}" for block in blocks])
    def test_runs(self: object, block: Block, sandbox: Sandbox) -> None:
        try:
            sandbox.run(block)
        except AssertionError as e:
            pytest.fail(str(e), pytrace=False)

    return type("Test", (), {"test_runs": test_runs})


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
