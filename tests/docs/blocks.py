"""The documentation's pages and their fenced blocks, and what `make docs-check` does not run of them, and why."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

EXECUTED = ("sh", "python")
SHOWN = ("", "text", "yaml", "bibtex")

# Pages whose blocks a test of the suite executes, as they stand there
TESTED_ELSEWHERE = {
    "docs/extending.md": "tests/docs/test_extending.py",
}

# Pages whose sections stand for themselves. On other pages a block may rely on every earlier one
BY_SECTION = ("tools/README.md",)

# Whole commands, without a comment, and what stands for them
NOT_RUN = {
    "make install": ".ci/run begins with it",
    "make lint": ".ci/run",
    "make types": ".ci/run",
    "make test": ".ci/run",
    "make docs-check": "this check",
    "make docs-site": ".ci/run",
    'git clone "$URL" pixelmask && cd pixelmask': "needs a network, and an address",
    "make demo": "docs-check runs what the Makefile calls, tools/train_demo.py, in tools/README.md",
    "make demo-airm": "docs-check runs what the Makefile calls, tools/train_demo.py, in tools/README.md",
    "make demo-photo": "docs-check runs what the Makefile calls, python -m airm.refine --example, in tools/README.md",
    'make photo-model DATA=datasets SEEDS="1 2 3"': "takes long; tests/tools/test_photo_model.py runs its commands",
    "python datasets/prepare_refinement.py --check": "wants as many images as published; test_prepare_refinement.py",
    "python datasets/prepare_refinement.py --check ecssd": "likewise",
    "pip install onnx onnxscript onnxruntime -c constraints.txt": "needs a network; test_coverage.py knows its names",
}


@dataclass(frozen=True)
class Block:
    """A fenced block: its page below the root, the line of its fence, its language, and its lines without indent.

    ``part`` is the page or section that its commands belong to: those of a part run in one folder, in their order.
    """

    page: str
    part: str
    line: int
    language: str
    code: str

    def commands(self) -> list[str]:
        """Return the commands of a sh block, continued lines joined, without comments and empty lines."""
        return [command for line in _logical_lines(self.code) if (command := _command(line))]

    def to_run(self) -> str:
        """Return what is executed of it: all but the commands of NOT_RUN, without what a machine without GPUs lacks."""
        if self.language == "python":
            return self.code
        kept = [line for line in _logical_lines(self.code) if _command(line) not in NOT_RUN]
        return adapt("\n".join(kept)) if any(map(_command, kept)) else ""


def adapt(command: str) -> str:
    """Return a command as it can be run here; all that is ever changed in one.

    There is no GPU. Iterations are in the configs, which are small here, unless a command has a number of its own;
    likewise sizes, of which a quarter is taken, and how often something is repeated.
    """
    command = re.sub(r" --num-gpus \d+", "", command)
    command = re.sub(r" --(iterations|repeats) (?!1\b)\d+", r" --\1 2", command)
    command = re.sub(r" --instances \d+", " --instances 10", command)
    sizes = r"(?<= --)(size|height|width)((?: \d+)+)"
    return re.sub(sizes, lambda size: " ".join([size[1], *(str(int(n) // 4) for n in size[2].split())]), command)


def _logical_lines(code: str) -> list[str]:
    return re.split(r"(?<!\\)\n", code)


def _command(line: str) -> str:
    return re.sub(r"(^|\s+)#.*", "", re.sub(r"\s*\\\n\s*", " ", line)).strip()


def pages() -> list[str]:
    """Return the Markdown pages that are a user's documentation."""
    named = ("README.md", "CONTRIBUTING.md", "tools/README.md", "datasets/README.md", "airm/pretrained/README.md")
    return [*named, *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]


def blocks_of(page: str) -> list[Block]:
    """Return all fenced blocks of a page, also those inside of list items."""
    return list(find_blocks(page, (ROOT / page).read_text(encoding="utf-8")))


def find_blocks(page: str, text: str) -> Iterator[Block]:
    """Find the fenced blocks of a text, in their order; ValueError if the last one is not closed."""
    start, indent, fence, language, code, part = 0, 0, "", "", [], page
    for number, line in enumerate(text.splitlines(), start=1):
        if fence:
            if line.strip() == fence:
                yield Block(page, part, start, language, "".join(f"{one}\n" for one in code))
                fence = ""
            else:
                code.append(re.sub(rf"^\s{{,{indent}}}", "", line))
        elif match := re.match(r"(\s*(?:[-*] |\d+\. )?)(```+|~~~+)(\S*)", line):
            start, indent, fence, language, code = number, len(match[1]), match[2], match[3], []
        elif page in BY_SECTION and line.startswith("## "):
            part = f"{page} {line.removeprefix('## ')}"
    if fence:
        raise ValueError(f"{page}:{start} is not closed")


def without_blocks(text: str) -> str:
    """Return a text with empty lines instead of its fenced blocks."""
    lines = text.splitlines()
    for block in find_blocks("", text):
        length = block.code.count("\n") + 2
        lines[block.line - 1 : block.line - 1 + length] = [""] * length
    return "\n".join(lines)


def prose_of(page: str) -> str:
    """Return a page without its fenced blocks."""
    return without_blocks((ROOT / page).read_text(encoding="utf-8"))


def to_execute() -> list[Block]:
    """Return the blocks that docs-check executes."""
    chosen = [block for page in pages() if page not in TESTED_ELSEWHERE for block in blocks_of(page)]
    return [block for block in chosen if block.language in EXECUTED and block.to_run()]
