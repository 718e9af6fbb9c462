"""Long work on files: what is done stays done, what has changed is named, what is bad stops nothing."""

import os
import signal
from pathlib import Path

import pytest

from pixelmask.cli import run
from pixelmask.errors import UserError
from pixelmask.progress import Item, Progress, check_output


@pytest.fixture
def items(tmp_path):
    """Files a, b and c, of each of which a file of that name in "out" is to be made."""
    for name in "abc":
        (tmp_path / name).write_text(name)
    return {name: Item([tmp_path / name], [tmp_path / "out" / name]) for name in "abc"}


def copy(items, done: list[str]):
    def work(name: str) -> dict:
        source, target = items[name].inputs[0], items[name].outputs[0]
        if source.read_text() == "bad":
            raise UserError("it is bad")
        target.write_text(source.read_text())
        done.append(name)
        return {"length": len(source.read_text())}

    return work


def begin(folder: Path, items, about=None, resume: bool = True) -> Progress:
    return Progress(folder / "out", about or {"size": (1, 2)}, items, resume)


@pytest.fixture
def interrupted(tmp_path, items):
    """A folder in which a and b are done, and a line of c is cut off."""
    with begin(tmp_path, {name: items[name] for name in "ab"}) as progress:
        assert not progress.run(copy(items, []), "file")
    with (tmp_path / "out/progress.jsonl").open("a") as file:
        file.write('{"item": "c", "inp')
    return tmp_path


def test_what_is_done_stays_done(interrupted, items):
    done: list[str] = []
    with begin(interrupted, items, {"size": [1, 2]}) as progress:
        assert list(progress.done) == ["a", "b"] and not progress.run(copy(items, done), "file")
        assert done == ["c"] and [entry["length"] for entry in progress.entries] == [1, 1, 1]
        progress.remove()
    assert sorted(path.name for path in (interrupted / "out").iterdir()) == ["a", "b", "c"]


def test_lines_of_other_processes_are_taken_up(interrupted, items):
    """As torchrun left them, of however many processes."""
    path = interrupted / "out/progress.jsonl"
    about, a, b, _ = path.read_text().splitlines(keepends=True)
    path.write_text(about + a)
    (interrupted / "out/progress.3.jsonl").write_text(b + '{"item": "c", "inp')
    with begin(interrupted, items) as progress:
        assert list(progress.done) == ["a", "b"]
    assert path.read_text() == about + a + b and not (interrupted / "out/progress.3.jsonl").exists()


def test_what_was_made_and_is_gone_is_made_again(interrupted, items):
    done: list[str] = []
    (interrupted / "out/a").unlink()
    with begin(interrupted, items) as progress:
        progress.run(copy(items, done), "file")
    assert done == ["a", "c"]


def test_without_resume_all_is_done_anew(interrupted, items):
    with begin(interrupted, items, resume=False) as progress:
        assert not progress.done


def test_what_has_changed_is_named(interrupted, items):
    def refuses(message: str, items=items, **about) -> None:
        with pytest.raises(UserError, match=message):
            begin(interrupted, items, about)
        assert not (interrupted / "out/.lock").exists()

    refuses(r"begun with other options \(size, speed\)", size=[1, 3], speed=4)
    refuses("b was done, and has been taken away from the inputs", {"a": items["a"]})
    refuses(
        f"{interrupted / 'c'} has been added since", {**items, "a": Item([interrupted / "a", interrupted / "c"], [])}
    )
    later = os.stat(interrupted / "a").st_mtime_ns + 10**9
    os.utime(interrupted / "a", ns=(later, later))
    with begin(interrupted, items):  # the same content
        pass
    (interrupted / "a").write_text("A")
    refuses(f"{interrupted / 'a'} has changed since")
    (interrupted / "a").unlink()
    refuses(f"{interrupted / 'a'} has been removed since")


def test_bad_items_are_named_and_the_others_done(tmp_path, items):
    (tmp_path / "a").write_text("bad")
    (tmp_path / "b").write_bytes(b"\xff")  # of which the work has not thought
    done: list[str] = []
    items |= {"d": Item([tmp_path / "d"], [])}
    with begin(tmp_path, items) as progress:
        faults = progress.run(copy(items, done), "file")
    assert faults[0] == f"{tmp_path / 'a'}: it is bad" and done == ["c"]
    assert faults[1].startswith(f"{tmp_path / 'b'}: UnicodeDecodeError: ") and len(faults) == 3
    assert faults[2] == f"cannot read {tmp_path / 'd'}: No such file or directory"


def test_a_full_disk_ends_all_of_it(tmp_path, items):
    def work(name: str) -> dict:
        if name == "b":
            raise OSError(28, "No space left on device", "b")
        return {}

    with pytest.raises(OSError, match="No space left"), begin(tmp_path, items) as progress:
        progress.run(work, "file")
    with begin(tmp_path, {name: item._replace(outputs=[]) for name, item in items.items()}) as progress:
        assert list(progress.done) == ["a"]


def test_a_signal_says_what_is_kept(tmp_path, items, capsys):
    def main() -> None:
        with begin(tmp_path, items) as progress:
            progress.run(lambda name: signal.raise_signal(signal.SIGTERM) if name == "b" else {}, "file")

    with pytest.raises(SystemExit) as left:
        run(main)
    assert left.value.code == 143
    assert "error: stopped by SIGTERM: 1 of 3 files are done and kept; --resume" in capsys.readouterr().err


def test_one_process_writes_into_a_folder(tmp_path, items):
    with begin(tmp_path, items), pytest.raises(UserError, match="another process writes into"):
        begin(tmp_path, items)


def test_nothing_is_replaced_unasked(interrupted, items):
    folder, outputs = interrupted / "out", [path for item in items.values() for path in item.outputs]
    with pytest.raises(UserError, match="unfinished run; --resume goes on"):
        check_output(folder, outputs, False, False)
    for resume, overwrite in ((True, False), (False, True)):
        check_output(folder, outputs, resume, overwrite)
    (folder / "progress.jsonl").unlink()
    for resume in (False, True):
        with pytest.raises(UserError, match=f"{folder / 'a'} exists already, and 1 others"):
            check_output(folder, outputs, resume, False)
    with pytest.raises(UserError, match="is no folder"):
        check_output(folder / "a", [], False, False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[3]", "the first line of {} cannot be used: it is [3], not an object; begin anew with --overwrite"),
        ("{}\n3", "{} cannot be used: entry 0 is 3, not an object"),
        ('{}\n{"inputs": {}}', "{} cannot be used: entry 0 has no item; begin anew"),
        ('{}\n{"item": "a", "inputs": {}}\n{"item": 1, "inputs": {}}', "entry 1 has the item 1, not a text"),
        ('{}\n{"item": "a", "inputs": {"a": 3}}', "{} cannot be used: entry 0 has the inputs"),
        ('{}\n{"item": "a", "inputs": {}, "counts": {"refined": "x"}}', "{} cannot be used: entry 0 has the counts"),
        ('{}\n{"item": "a", "inputs": {}, "refined": [7]}', "entry 0 has the refined [7], not an object"),
    ],
)
def test_progress_that_is_none(tmp_path, text, words):
    path = tmp_path / "progress.jsonl"
    path.write_text(text)
    with pytest.raises(UserError) as e:
        Progress(tmp_path, {}, {}, resume=True)
    assert words.format(path) in str(e.value)
    path.write_bytes(b'{}\n\xff\xfe\n{"item": "a", "inputs": {}}\n' + b"[" * 100_000)
    with Progress(tmp_path, {}, {}, resume=True) as progress:  # goes on before what cannot be read
        assert not progress.done
