"""That nothing in the documentation escapes `make docs-check` unnoticed, and that all it names exists."""

import glob
import pkgutil
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from detectron2.config import get_cfg

from airm import add_airm_config
from patchdct import add_patchdct_config
from tests.docs.blocks import (
    EXECUTED,
    NOT_RUN,
    ROOT,
    SHOWN,
    TESTED_ELSEWHERE,
    adapt,
    blocks_of,
    find_blocks,
    pages,
    prose_of,
    to_execute,
    without_blocks,
)

PAGES = [*pages(), "MODEL_ZOO.md"]
# Pages whose keys are all of AIRM; keys that are written to be wrong
OF_AIRM = ("docs/airm.md", "docs/refining_images.md")
MISTAKES = {"SOLVER.MAX_ITERS"}
# Folders of this repository that files are named in; datasets/ has a user's files, too
FOLDERS = "pixelmask|patchdct|airm|tools|tests|configs|docs"


def test_blocks_are_found_also_in_lists():
    text = "1. First\n\n   ```sh\n   a \\\n     b  # why\n   ```\n- ```python\n  x\n  ```\n```text\n```sh\n```\n"
    found = [(block.line, block.language, block.code) for block in find_blocks("page.md", text)]
    assert found == [(3, "sh", "a \\\n  b  # why\n"), (7, "python", "x\n"), (10, "text", "```sh\n")]
    with pytest.raises(ValueError, match="page.md:2"):
        list(find_blocks("page.md", "x\n```sh\n"))
    # Sections of a long page stand for themselves
    blocks = find_blocks("tools/README.md", "```sh\n```\n## a.py\n```sh\n## no heading\n```\n## b.py\n```sh\n```\n")
    assert [block.part for block in blocks] == ["tools/README.md", "tools/README.md a.py", "tools/README.md b.py"]
    assert without_blocks("a\n```sh\n[x](y)\n```\nb") == "a\n\n\n\nb"


def test_what_is_executed_of_a_block():
    text = (
        "```sh\nmake test  # all\n# said\npython a.py --num-gpus 8 \\\n  --row b\n```\n```sh\nmake install # x\n```\n"
    )
    first, second = find_blocks("page.md", text)
    assert first.commands() == ["make test", "python a.py --num-gpus 8 --row b"]
    assert first.to_run() == "# said\npython a.py \\\n  --row b\n"
    assert second.to_run() == ""
    assert adapt("run --iterations 300 --repeats 1 --output x") == "run --iterations 2 --repeats 1 --output x"
    assert adapt("run --repeats 10 --size 400 800 --instances 20") == "run --repeats 2 --size 100 200 --instances 10"
    assert adapt("run --height 512 --width 768 -o x") == "run --height 128 --width 192 -o x"


@pytest.mark.parametrize("page", pages())
def test_every_block_is_known(page):
    """A block of another language, such as bash, would be left out silently."""
    assert {block.language for block in blocks_of(page)} <= {*EXECUTED, *SHOWN}


def test_every_block_is_executed_or_has_a_reason_not_to_be():
    executed = {(block.page, block.line) for block in to_execute()}
    for page in pages():
        for block in blocks_of(page):
            if block.language in EXECUTED and (page, block.line) not in executed:
                assert page in TESTED_ELSEWHERE or set(block.commands()) <= set(NOT_RUN), f"{page}:{block.line}"


def test_no_exception_is_left_behind():
    commands = {c for page in pages() for block in blocks_of(page) if block.language == "sh" for c in block.commands()}
    assert set(NOT_RUN) <= commands
    for page, test in TESTED_ELSEWHERE.items():
        assert page in pages() and page.removeprefix("docs/") in (ROOT / test).read_text(encoding="utf-8")


def test_what_the_reasons_say():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    executed = "\n".join(block.to_run() for block in to_execute())
    demo, example = "tools/train_demo.py", "-m airm.refine --example --overwrite"
    for target, command in (("demo", demo), ("demo-airm", f"{demo} --model airm"), ("demo-photo", example)):
        assert re.search(rf"^{target}: .*\n\t\$\(RUN\) {command}$", makefile, re.MULTILINE)
        assert f"python {command}" in executed
    by_ci = {c.removeprefix("make ") for c, reason in NOT_RUN.items() if reason.startswith(".ci/run")}
    (targets,) = re.findall(r"^for target in (.*); do$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert by_ci | {"docs-check"} <= set(targets.split())


def test_packages_to_install_are_known():
    project, constraints = ((ROOT / name).read_text(encoding="utf-8") for name in ("pyproject.toml", "constraints.txt"))
    for command in (command for command in NOT_RUN if command.startswith("pip install")):
        for name in command.partition(" -c ")[0].split()[2:]:
            assert f'"{name}>=' in project, command
            assert re.search(rf"^{re.escape(name)}==", constraints, re.MULTILINE), command


def anchors_of(text: str) -> set[str]:
    """Return the anchors that GitHub gives to a page's headings."""
    found: Counter[str] = Counter()
    anchors = set()
    for heading in re.findall(r"^#+ +(.*?) *$", without_blocks(text), re.MULTILINE):
        heading = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", heading).replace(" ", "-")
        anchors.add(f"{slug}-{found[slug]}" if found[slug] else slug)
        found[slug] += 1
    return anchors


def test_anchors_are_those_of_github_and_braces_are_expanded_as_in_bash():
    text = "# AP\\*: COCO's `mask` AP\n```\n# no\n```\n## convert_x.py\n## A [link](b.md)\n## A link\n"
    assert anchors_of(text) == {"ap-cocos-mask-ap", "convert_xpy", "a-link", "a-link-1"}
    assert list(expand("a_{3,5}_{x,y}.yaml")) == ["a_3_x.yaml", "a_3_y.yaml", "a_5_x.yaml", "a_5_y.yaml"]


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_links_lead_somewhere(page):
    prose = re.sub(r"`[^`\n]*`", "", prose_of(page))
    for target in re.findall(r"\]\(([^)\s]+)\)", prose) + re.findall(r'(?:src|href)="([^"]+)"', prose):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors_of(file.read_text(encoding="utf-8")), f"{page}: {target}"


def expand(pattern: str) -> Iterator[str]:
    """Yield what bash makes of the braces in a pattern."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if not match:
        yield pattern
        return
    for choice in match.group(1).split(","):
        yield from expand(pattern[: match.start()] + choice + pattern[match.end() :])


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page):
    file = rf"(?:{FOLDERS})/[\w./{{}},*-]*\.(?:py|ya?ml|json|md|jpg|png)"
    names = rf"(?<![\w./$-])(?:{file}|(?:{FOLDERS})/[\w/]*/|datasets/\w+\.py)"
    for code in re.findall(r"`([^`\n]+)`", prose_of(page)):
        for name in re.findall(names, code):
            for path in expand(name):
                assert glob.glob(str(ROOT / path)) or glob.glob(str((ROOT / page).parent / path)), f"{page}: {path}"


def test_the_layout_is_that_of_the_tree():
    (tree,) = (block.code for block in blocks_of("CONTRIBUTING.md") if block.code.startswith("patchdct/"))
    papers, _, others = tree.partition("\n\n")
    airm = papers.index("airm/")
    for half in (slice(airm), slice(airm, None)):
        (folder, *_), *lines = (line[half].split() for line in papers.splitlines())
        names = [word for line in lines for word in line if word.endswith((".py", "/"))]
        assert len(names) >= len(lines) and all((ROOT / folder / name).exists() for name in names)
    assert all((ROOT / line.split()[0]).is_dir() for line in others.splitlines())


@pytest.mark.parametrize("page", PAGES)
def test_modules_and_names_that_are_written_with_dots_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for name in re.findall(r"(?<![\w./@-])(?:pixelmask|patchdct|airm)(?:\.\w+)+\b(?![/-])", text):
        if not name.endswith((".md", ".yaml")):
            pkgutil.resolve_name(name)


@pytest.mark.parametrize("page", PAGES)
def test_config_keys_that_are_named_exist(page):
    cfgs = [get_cfg()] if page in OF_AIRM else [get_cfg(), get_cfg()]
    for cfg, add_keys in zip(cfgs, (add_airm_config, add_patchdct_config), strict=False):
        add_keys(cfg)
    nodes = "DATALOADER|DATASETS|INPUT|MODEL|SOLVER|TEST"
    keys = set(re.findall(rf"\b(?:{nodes})(?:\.[A-Z][A-Z0-9_]*)+\b", (ROOT / page).read_text(encoding="utf-8")))
    for key in keys - MISTAKES:
        assert any(has_key(cfg, key) for cfg in cfgs), f"{page}: {key}"


def has_key(node: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def test_the_readme_stays_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8")) <= 8000
