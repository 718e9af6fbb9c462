"""docs/troubleshooting.md against the source: every message of the code has its row, and no row is of another.

A message is compared as a pattern: its literal parts as they are in the source, and `…` for what is filled in.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pixelmask.config import get_cfg

ROOTS = ("patchdct", "airm", "reporting", "reproduction", "tools", "datasets")
PAGE = Path("docs/troubleshooting.md")
MESSAGES = "## Messages"
GAP = "…"

ERRORS = {"UserError", "ImageError", "UnreadableCheckpoint", "ValueError", "TypeError", "ImportError"}
ENDS = {"SystemExit", "ArgumentTypeError", "_leave"}  # command-line tools
LOGGED = {"warning", "error"}  # of a logger or an argument parser

# Functions whose strings say what is wrong with a file: other messages end in them
FAULTS = {
    "pixelmask/data/coco_format.py": {"_find_fault", "_find_id_fault", "_find_annotation_fault"},
    "patchdct/data/lvis_format.py": {"_find_faults"},
    "patchdct/backbone/swin_weights.py": {"problem"},
    "airm/backbone/weights.py": {"problem"},
    "airm/data/pairs.py": {"check_pair", "_split_big", "_match"},
    "airm/refine/files.py": {"match_files", "_by_name"},
    "datasets/prepare_refinement.py": {"check_target"},
}

# Messages whose text is elsewhere: made of one that has its own row, or a status and no text. Quotes and parentheses
# are left out, as versions of Python write them differently
INDIRECT = {
    "pixelmask/cli.py: stre": "of a UserError",
    "pixelmask/cli.py: 1": "a status",
    "pixelmask/engine/launch.py: e.exit_code or 1": "a status",
    "patchdct/config.py: f{source}: {_unknown_key_messagecfg, stre if unknown else e}": "rows by hand",
    "patchdct/backbone/swin_weights.py: report.problem": "in FAULTS",
    "airm/backbone/weights.py: report.problem": "in FAULTS",
    "airm/instances/files.py: f{text}: {a folder without images if root.is_dir else no such image}": "rows by hand",
    "airm/refine/files.py: f{text}: {fa folder without {kind}s if root.is_dir else fno such {kind}}": "rows by hand",
    "airm/refine.py: failures[0]": "of a UserError",
    "tools/reproduction/session.py: self._failed[run.folder]": "of a UserError",
    "tools/reproduction/session.py: %s %s: %s": "of a UserError",
    "tools/train_demo.py: status": "a status",
    "datasets/prepare_lvis_cocofied.py: runmain": "a status",
    "datasets/prepare_refinement.py: runmain": "a status",
}

# Rows for what is listed above as by hand, and where their words are in the source
BY_HAND = {
    "…: unknown config key …; did you mean …?": ("patchdct/config.py", "unknown config key {key}"),
    "…: a folder without images": ("airm/instances/files.py", "a folder without images"),
    "…: a folder without masks": ("airm/refine/files.py", "a folder without {kind}s"),
    "…: no such image": ("airm/instances/files.py", "no such image"),
    "…: no such mask": ("airm/refine/files.py", "no such {kind}"),
}
QUOTES = r"""['"()]"""
KEY = re.compile(r"\b(?:DATASETS|DATALOADER|INPUT|MODEL|SOLVER|TEST)(?:\.[A-Z][A-Z0-9_]*)+\b")


class Module:
    """The messages of one file."""

    def __init__(self, path: Path):
        self.path = path.as_posix()
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self.constants = self._strings(self.tree)

    def messages(self) -> Iterator[tuple[str, ast.expr]]:
        """Yield the pattern and the expression of each message."""
        for scope in ast.walk(self.tree):
            if isinstance(scope, (ast.FunctionDef, ast.Module)):
                known = self.constants | self._strings(scope)
                for node in self._nodes(scope):
                    yield from ((self._text(value, known), value) for value in self._values(node, scope))

    def _values(self, node: ast.AST, scope: ast.AST) -> Iterator[ast.expr]:
        if isinstance(node, ast.Call) and node.args:
            attribute = isinstance(node.func, ast.Attribute)
            name = node.func.attr if attribute else getattr(node.func, "id", "")
            if name in ERRORS | ENDS or (attribute and name in LOGGED):
                yield node.args[0]
        if isinstance(scope, ast.FunctionDef) and scope.name in FAULTS.get(self.path, ()):
            values: list[ast.AST | None] = []
            if isinstance(node, (ast.Return, ast.Yield, ast.AugAssign)):
                values = [node.value]
            elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("append", "insert"):
                values = [node.args[-1]]
            for value in values:
                yield from self._faults(value)

    def _faults(self, value: ast.AST | None) -> Iterator[ast.expr]:
        """Yield the strings that a fault's expression may be."""
        if isinstance(value, (ast.JoinedStr, ast.Constant)) and isinstance(getattr(value, "value", ""), str):
            yield value
        elif isinstance(value, ast.IfExp):
            yield from [*self._faults(value.body), *self._faults(value.orelse)]
        elif isinstance(value, (ast.ListComp, ast.GeneratorExp)):
            yield from self._faults(value.elt)
        elif isinstance(value, ast.Call):
            yield from (part for arg in value.args for part in self._faults(arg))

    def _text(self, node: ast.AST, known: dict[str, str]) -> str:
        """Return the pattern of a string expression; `…` for all that is no literal."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return re.sub(r"%[.\d]*[a-z]", GAP, node.value)
        if isinstance(node, ast.JoinedStr):
            return "".join(self._text(value, known) for value in node.values)
        if isinstance(node, ast.FormattedValue):
            return self._text(node.value, known) if node.conversion == -1 else GAP
        if isinstance(node, ast.Name):
            return known.get(node.id, GAP)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return self._text(node.left, known) + self._text(node.right, known)
        if isinstance(node, ast.Call) and isinstance(node.args[0] if node.args else None, ast.List):
            return self._text(node.args[0].elts[0], known) + f" {GAP}"  # "\n".join([headline, *faults])
        return GAP

    def _strings(self, scope: ast.AST) -> dict[str, str]:
        """Return the names that are assigned once in a scope, to a string."""
        assigned = [n for n in self._nodes(scope) if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name)]
        count = Counter(n.targets[0].id for n in assigned)
        known: dict[str, str] = {}
        for node in assigned:
            literal = isinstance(node.value, ast.JoinedStr) or (
                isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
            )
            if literal and count[node.targets[0].id] == 1:
                known[node.targets[0].id] = self._text(node.value, known)
        return known

    def _nodes(self, scope: ast.AST) -> Iterator[ast.AST]:
        """Yield what is in a scope, without the functions in it."""
        for child in ast.iter_child_nodes(scope):
            if not isinstance(child, ast.FunctionDef):
                yield child
                yield from self._nodes(child)


def normalise(text: str) -> str:
    return re.sub(f"{GAP}+", GAP, " ".join(text.split()))


def source_messages() -> tuple[set[str], set[str]]:
    """Return the patterns of all messages, and the places of those that have no text of their own."""
    patterns, indirect = set(), set()
    for path in sorted(file for root in ROOTS for file in Path(root).rglob("*.py")):
        module = Module(path)
        for text, expression in module.messages():
            if re.search(r"[^\W\d]{2}", text):
                patterns.add(normalise(text))
            else:
                indirect.add(f"{module.path}: {re.sub(QUOTES, '', ast.unparse(expression))}")
    return patterns, indirect


def rows(page: str) -> list[tuple[str, str]]:
    """Return (message, advice) of the tables below MESSAGES."""
    found = re.findall(r"^\| (`+)(.*?)\1 \| (.*) \|$", page.partition(MESSAGES)[2], re.MULTILINE)
    return [(normalise(message.replace("\\|", "|")), advice.strip()) for _, message, advice in found]


def test_every_message_has_its_row_and_no_row_is_of_another():
    written = [message for message, _ in rows(PAGE.read_text(encoding="utf-8"))]
    expected = source_messages()[0] | set(BY_HAND)
    assert len(written) > 300, "the tables were not found"
    assert sorted(set(written) - expected) == [], f"rows of {PAGE} that no code has"
    assert sorted(expected - set(written)) == [], f"messages without a row in {PAGE}"
    assert [message for message, count in Counter(written).items() if count > 1] == []
    assert [message for message, advice in rows(PAGE.read_text(encoding="utf-8")) if len(advice) < 10] == []


def test_messages_whose_text_is_elsewhere_are_known():
    assert source_messages()[1] == set(INDIRECT)
    for path, words in BY_HAND.values():
        assert words in Path(path).read_text(encoding="utf-8")


def test_keys_that_messages_and_the_page_name_are_in_the_config():
    cfg = get_cfg()
    page = PAGE.read_text(encoding="utf-8")
    keys = {key for text in (page, *source_messages()[0]) for key in KEY.findall(text)}
    assert {"MODEL.ROI_HEADS.NUM_CLASSES", "DATASETS.COCO_FORMAT", "SOLVER.AMP.DTYPE"} <= keys
    for key in keys:
        node = cfg
        for part in key.split("."):
            assert part in node, f"no config key {key}"
            node = node[part]


def test_patterns_of_messages(tmp_path):
    source = tmp_path / "module.py"
    source.write_text("""
NAME = "value"

def one(path, size):
    fault = f"{path} is wrong"
    hint = "a" if size else "b"
    raise UserError(f"{fault}: {size!r} x {hint}; set {NAME} "
                    "to 100 %")

def two(faults):
    logger.warning("%d of %s, %.3g", 1, 2, 3)
    raise errors.UserError("\\n".join([f"{len(faults)} faults:", *faults])) from None

def three(text):
    print("not a message")
    raise UserError(text)
""")
    found = [normalise(text) for text, _ in Module(source).messages()]
    assert sorted(found) == ["…", "… faults: …", "… is wrong: … x …; set value to 100 %", "… of …, …"]
