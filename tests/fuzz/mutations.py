"""Ways to damage a file of each format, so that some of the damage lies deep within what it holds."""

import copy
import io
import json
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import yaml

INTEGERS = (0, 1, -1, 2, 7, 255, 256, 2**15, 2**16, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**30)
NUMBERS = (*INTEGERS, 0.5, -0.0, 1e-300, 1e9, -1e9, 1e300, float("nan"), float("inf"))
VALUES: tuple[Any, ...] = (
    *(None, True, False, "", "x", "0", "a\0b", "\ud83d", "../..", "é" * 300, "o" * 100_000),
    *([], {}, [[]], [None], [0] * 10_000, {"": 0}, {"id": 1}, [[0, 0, 1e9, 0, 0, 1e9]]),
    {"size": [5, 5], "counts": [25]},
)  # fmt: skip
# Of a pickle: what makes numbers, containers, calls and references of what is there
OPCODES = (
    *(b"0", b"1", b"2", b"(", b")", b".", b"R", b"b", b"s", b"u", b"t", b"l", b"d", b"]", b"}", b"N", b"\x85", b"\x86"),
    *(b"\x87", b"\x88", b"\x89", b"a", b"e", b"o", b"Q", b"\x81", b"\x8f", b"\x90", b"\x91", b"\x93", b"\x94", b"\x97"),
    *(b"h\x00", b"h\x01", b"h\x05", b"q\x02", b"K\x00", b"J\xff\xff\xff\xff", b"J\xff\xff\xff\x7f"),
    *(b"C\x08" + b"A" * 8, b"cos\nsystem\n"),
    *(b"r\xff\xff\xff\x7f", b"X\x05\x00\x00\x00items", b"X\x02\x00\x00\x00O8", b"B\xff\xff\xff\x7f"),
    *(b"\x8a\x08" + b"\x7f" * 8, b"I" + b"9" * 5000 + b"\n"),
    *(b"cnumpy\ndtype\n", b"cnumpy._core.multiarray\n_reconstruct\n", b"cnumpy._core.multiarray\nscalar\n"),
    *(b"ccollections\nOrderedDict\n", b"cbuiltins\nbytearray\n", b"cbuiltins\nset\n", b"ctorch\nSize\n"),
    *(b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_parameter\n"),
    *(b"\x96" + struct.pack("<Q", 2**40), b"\x8e" + struct.pack("<Q", 2**40), b"\x95" + struct.pack("<Q", 2**40)),
)  # fmt: skip

Damage = Callable[[bytes, Random], bytes]


def damage_bytes(content: bytes, rng: Random) -> bytes:
    """Change, cut, repeat or insert some bytes, often near the beginning, where headers are."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(data) + 1) if rng.random() < 0.5 else rng.randrange(min(len(data), 200) + 1)
        length = rng.choice((1, 1, 2, 4, 8, 50, 1000))
        what = rng.randrange(5)
        if what == 0:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif what == 1:
            del data[at : at + length]
        elif what == 2:
            data[at:at] = data[at : at + length] * rng.choice((1, 2, 100))
        elif what == 3:
            data[at : at + 4] = struct.pack(rng.choice(("<I", ">I")), rng.choice((0, 1, 2**16, 2**31 - 1, 2**32 - 1)))
        else:
            del data[at:]
    return bytes(data)


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Return (container, key) of everything within."""
    places = []
    open_ = [tree]
    while open_:
        inside = open_.pop()
        keys = list(inside) if isinstance(inside, dict) else range(len(inside))
        places += [(inside, key) for key in keys]
        open_ += [inside[key] for key in keys if isinstance(inside[key], (dict, list)) and inside[key]]
    return places


def damage_tree(tree: Any, rng: Random) -> Any:
    """Put other values into parsed JSON or YAML, take some out, repeat them, or exchange them for others."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        places = _places(tree) if isinstance(tree, (dict, list)) else []
        if not places or rng.random() < 0.01:
            return rng.choice((*VALUES, *NUMBERS))
        inside, key = rng.choice(places)
        what = rng.randrange(6)
        if what == 0:
            inside[key] = copy.deepcopy(rng.choice(VALUES))
        elif what == 1:
            inside[key] = rng.choice(NUMBERS)
        elif what == 2:
            del inside[key]
        elif what == 3 and isinstance(inside, list):
            inside.append(copy.deepcopy(inside[key]))
        elif what == 4:
            other, name = rng.choice(places)
            if not isinstance(other[name], (dict, list)):
                inside[key] = other[name]
        elif isinstance(inside[key], (int, float)) and not isinstance(inside[key], bool):
            inside[key] = inside[key] * rng.choice((-1, 0, 0.5, 10, 1000, 1000_000)) + rng.choice((0, 1, -1))
        else:
            inside[key] = [inside[key]]
    return tree


def _text(text: str, rng: Random) -> bytes:
    """Encode a document, sometimes with what no tree can have."""
    if rng.random() < 0.03:
        text = text.replace("1", rng.choice(("1e400", "9" * 5000, "[" * 5000, "NaN", "-")), 1)
    return text.encode("utf-8", "surrogatepass")


def damage_json(content: bytes, rng: Random) -> bytes:
    if rng.random() < 0.15:
        return damage_bytes(content, rng)
    return _text(json.dumps(damage_tree(json.loads(content), rng)), rng)


def damage_json_lines(content: bytes, rng: Random) -> bytes:
    lines = content.splitlines()
    i = rng.randrange(len(lines))
    return b"\n".join([*lines[:i], damage_json(lines[i], rng), *lines[i + rng.randrange(2) :]])


def damage_yaml(content: bytes, rng: Random) -> bytes:
    if rng.random() < 0.3:
        return damage_bytes(content, rng)
    return _text(yaml.safe_dump(damage_tree(yaml.safe_load(content), rng)), rng)


def damage_pickle(content: bytes, rng: Random) -> bytes:
    """Insert, take out, repeat or exchange whole operations of a pickle."""
    if rng.random() < 0.2:
        return damage_bytes(content, rng)
    starts = [at for _, _, at in pickletools.genops(content) if at is not None]
    for _ in range(rng.choice((1, 1, 2, 5))):
        i = rng.randrange(1, len(starts))
        j = min(len(starts) - 1, i + rng.choice((0, 1, 1, 2, 10)))
        a, b = starts[i], starts[j]
        if rng.random() < 0.3:
            inserted = content[a:b] * rng.choice((1, 2, 1000))
        else:
            inserted = rng.choice(OPCODES) * rng.choice((1, 1, 1, 2, 3000))
        content = content[:a] + inserted + content[b if rng.random() < 0.5 else a :]
        starts = starts[: i + 1]  # behind it, they are elsewhere
        if len(starts) < 2:
            break
    return content


def damage_zip(content: bytes, rng: Random) -> bytes:
    """Damage the pickle in a file of PyTorch, and put it back with the right check sum."""
    if rng.random() < 0.3:
        return damage_bytes(content, rng)
    new = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(new, "w") as damaged:
        for name in archive.namelist():
            part = archive.read(name)
            if name.endswith("data.pkl"):
                part = damage_pickle(part, rng)
            elif rng.random() < 0.02:
                part = damage_bytes(part, rng)
            damaged.writestr(name, part, rng.choice((zipfile.ZIP_STORED,) * 9 + (zipfile.ZIP_DEFLATED,)))
    return new.getvalue()


def damage_safetensors(content: bytes, rng: Random) -> bytes:
    if rng.random() < 0.3:
        return damage_bytes(content, rng)
    (length,) = struct.unpack("<Q", content[:8])
    header = _text(json.dumps(damage_tree(json.loads(content[8 : 8 + length]), rng)), rng)
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def damage_png(content: bytes, rng: Random) -> bytes:
    """Damage one part of a PNG, and give it the right check sum."""
    parts, at = [], 8
    while at < len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        parts.append(content[at + 4 : at + 8 + length])
        at += 12 + length
    i = rng.randrange(len(parts))
    parts[i] = parts[i][:4] + damage_bytes(parts[i][4:], rng)
    if rng.random() < 0.2:
        parts.insert(i, parts[rng.randrange(len(parts))])
    return content[:8] + b"".join(
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts
    )


BY_SUFFIX: dict[str, Damage] = {
    ".json": damage_json,
    ".jsonl": damage_json_lines,
    ".yaml": damage_yaml,
    ".pkl": damage_pickle,
    ".pth": damage_zip,
    ".safetensors": damage_safetensors,
    ".png": damage_png,
}


def damage(path: Path, rng: Random) -> bytes:
    """Return a damaged form of a real file, by its suffix; one in ten is damaged twice."""
    content = path.read_bytes()
    way = BY_SUFFIX.get(path.suffix, damage_bytes)
    if way is damage_zip and not content.startswith(b"PK"):
        way = damage_bytes  # of PyTorch before 1.6
    content = way(content, rng)
    return damage_bytes(content, rng) if rng.random() < 0.1 else content
