"""What files of JSON are to hold, written down as types (msgspec's), and what is wrong with one said in a sentence."""

import contextlib
import json
import re
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from .errors import UserError

Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Number = Annotated[float, Meta(ge=-1e300, le=1e300)]
"""Finite, whole or not, and no bool."""
Id = Int64 | Number | str

_KINDS = {"int": "a whole number", "float": "a number", "str": "a text", "array": "a list", "object": "an object"}
_ENTRIES = {"images": "image", "annotations": "annotation", "categories": "category"}


def find_fault(content: Any, kind: Any, wanted: Mapping[str, str] | None = None, entry: str = "entry") -> str | None:
    """Return what makes parsed JSON none of a kind, as "image 7 has no file_name"; None if it is one.

    Args:
        content: as :func:`~pixelmask.files.read_json` gives it.
        kind: a type as msgspec has them; fields that a Struct does not name may be there, and be anything.
        wanted: by field, what is to be there, as "a text"; by default as msgspec calls it.
        entry: what the entries of a list are called.
    """
    try:
        msgspec.convert(content, kind)
    except RecursionError:
        return "it has lists within lists, deeper than any such file"
    except UnicodeEncodeError as e:
        return f"it has text that is none: {e}"
    except msgspec.ValidationError as e:
        what, _, path = str(e).replace("`", "").partition(" - at $")
        steps: list[Any] = [int(step) if step.isdecimal() else step for step in re.findall(r"[^.\[\]]+", path)]
        owner = "it"
        if isinstance(content, list) and steps:
            owner, content, steps = f"{entry} {steps[0]}", content[steps[0]], steps[1:]
        elif len(steps) > 1 and steps[0] in _ENTRIES:
            number, content = steps[1], content[steps[0]][steps[1]]
            named = isinstance(content, dict) and isinstance(content.get("id"), (int, str))
            owner = f"{_ENTRIES[steps[0]]} {content['id']}" if named else f"entry {number} of its {steps[0]!r}"
            steps = steps[2:]
        missing = re.search(r"missing required field (\w+)", what)
        if missing and not steps:
            return f"{owner} has no {missing[1]!r}" if owner == "it" else f"{owner} has no {missing[1]}"
        expected = what.removeprefix("Expected ").partition(", got ")[0]
        expected = re.sub(r"\b(int|float|str|array|object)\b", lambda kind: _KINDS[kind[0]], expected)
        if not steps:
            return f"{owner} is {reprlib.repr(content)}, not {expected}"
        found, expected = reprlib.repr(content[steps[0]]), (wanted or {}).get(steps[0], expected)
        return f"{owner} has the {steps[0]} {found}, not {expected}"
    return None


def check(content: Any, kind: Any, source: Any, way_out: str) -> None:
    """Raise a UserError that names the source, the entry and the way out, unless content is of a kind."""
    fault = find_fault(content, kind)
    if fault:
        raise UserError(f"{source} cannot be used: {fault}; {way_out}")


def read_lines(path: Path, kind: Any) -> Iterator[Any]:
    """Yield the parsed lines of a JSON-lines file, there or not, that are of a kind: none that was cut off."""
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError, RecursionError):
            entry = json.loads(line)
            if find_fault(entry, kind) is None:
                yield entry
