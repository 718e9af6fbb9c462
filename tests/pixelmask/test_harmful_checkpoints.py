"""Checkpoint files that hold code, are damaged, of something else, or of a training that diverged."""

import builtins
import pickle
import zipfile

import numpy as np
import pytest
import torch

from pixelmask.checkpoint.checkpointer import SafeCheckpointer, UnreadableCheckpoint
from pixelmask.checkpoint.files import check_tensors
from tests.support.checkpoints import Model, save, write_old_torch, write_pickle, write_torch


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


@pytest.mark.parametrize(
    ("file", "write"),
    [("a.pth", write_torch), ("a.pth", write_old_torch), ("a.pkl", write_pickle), ("a.pyth", write_torch)],
)
@pytest.mark.parametrize("place", ["beside", "within"])
def test_code_is_never_run(tmp_path, file, write, place):
    marker = tmp_path / "marker"
    path = tmp_path / file
    evil = Evil(marker)
    tensors = {"fc.weight": torch.ones(4, 4) if write is not write_pickle else np.ones((4, 4), np.float32)}
    if place == "within":
        tensors["fc.bias"] = evil
    write(path, {"model": tensors, "model_state": tensors, "__author__": "x", "other": evil})
    with pytest.raises(UnreadableCheckpoint, match=r"is refused: loading it would call \S*open") as error:
        SafeCheckpointer(Model()).load(str(path))
    assert str(path) in str(error.value)
    assert not marker.exists()
    pickle.loads(pickle.dumps(evil)).close()
    assert marker.exists()  # it would have been run


@pytest.mark.parametrize("name", ["eval", "getattr", "__import__", "print"])
def test_builtins_are_not_containers(tmp_path, name):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"x": getattr(builtins, name)}))
    with pytest.raises(UnreadableCheckpoint, match=rf"builtins\.{name}"):
        SafeCheckpointer(Model()).load(str(path))


def test_only_the_harmless_use_of_codecs(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(b"c_codecs\nencode\n(Vabc\nVrot13\ntR.")
    with pytest.raises(UnreadableCheckpoint, match=r"_codecs\.encode with rot13"):
        SafeCheckpointer(Model()).load(str(path))


def truncate(path):
    path.write_bytes(path.read_bytes()[:20000])


def zip_without_tensors(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/b.txt", "hello")


LARGE = {"model": {"fc.weight": torch.rand(100, 100)}}


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: path.touch(), "is empty"),
        (lambda path: (write_torch(path, LARGE), truncate(path)), "truncated"),
        (lambda path: (write_old_torch(path, LARGE), truncate(path)), "cannot read checkpoint"),
        (lambda path: path.write_text("<!DOCTYPE html>404"), "is not a checkpoint: it starts with b'<!DOCTYPE html>"),
        (zip_without_tensors, "cannot read checkpoint"),
        (lambda path: torch.save([torch.ones(2)], path), "holds no tensors by name"),
        (lambda path: torch.save(torch.ones(2), path), "holds no tensors by name"),
        # of another framework
        (
            lambda path: torch.save({"state_dict": Model().state_dict(), "meta": {"epoch": 3}}, path),
            "its 'state_dict' is not a tensor but of type OrderedDict",
        ),
    ],
)
def test_damaged_and_foreign_pth(tmp_path, write, reason):
    path = tmp_path / "model.pth"
    write(path)
    model = Model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    checkpointer = SafeCheckpointer(model)
    with pytest.raises(UnreadableCheckpoint, match=reason) as error:
        checkpointer.load(str(path))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    checkpointer.load(save(Model(), tmp_path))  # a failed load leaves nothing behind


@pytest.mark.parametrize("content", [b"", b"hello", pickle.dumps({"a": np.ones(3000)})[:5000], pickle.dumps([1])])
def test_damaged_and_foreign_pkl(tmp_path, content):
    path = tmp_path / "model.pkl"
    path.write_bytes(content)
    with pytest.raises(UnreadableCheckpoint, match=str(path)):
        SafeCheckpointer(Model()).load(str(path))


def test_missing_file_and_unreachable_address(tmp_path, monkeypatch):
    checkpointer = SafeCheckpointer(Model())
    with pytest.raises(UnreadableCheckpoint, match=r"no checkpoint \S*/none\.pth; check MODEL\.WEIGHTS"):
        checkpointer.load(str(tmp_path / "none.pth"))
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(
        UnreadableCheckpoint, match=r"cannot fetch checkpoint http://127\.0\.0\.1:9/model\.pth: .*MODEL\.WEIGHTS"
    ):
        checkpointer.load("http://127.0.0.1:9/model.pth")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("file", ["a.pth", "a.pkl"])
def test_a_checkpoint_that_diverged(tmp_path, file, value):
    path, model = tmp_path / file, Model()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["fc.weight"][2, 1] = value
    if file == "a.pkl":
        write_pickle(path, {"model": {n: t.numpy() for n, t in state.items()}, "__author__": "me"})
    else:
        torch.save({"model": state}, path)
    with pytest.raises(UnreadableCheckpoint, match=rf"{path} is of no use: its 'fc\.weight' holds NaN or infinity"):
        SafeCheckpointer(model).load(str(path))
    assert model.fc.weight.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.bfloat16])
def test_large_values_are_not_taken_for_infinity(dtype):
    large = torch.full((100,), torch.finfo(dtype).max, dtype=dtype)  # their sum overflows
    check_tensors("a.pth", {"large": large, "count": torch.tensor(7), "flags": np.array([True]), "none": large[:0]})
