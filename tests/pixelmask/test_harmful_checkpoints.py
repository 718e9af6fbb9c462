"""Checkpoint files that hold code, are damaged, of something else, or of a training that diverged."""

import builtins
import json
import pickle
import zipfile

import numpy as np
import pytest
import torch

from pixelmask.checkpoint.checkpointer import SafeCheckpointer, UnreadableCheckpoint
from pixelmask.checkpoint.files import by_name, check_tensors, read_pickle, read_torch
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


def read(path, content):
    path.write_bytes(content)
    return (read_pickle if path.suffix == ".pkl" else read_torch)(str(path))


# dtype("f8"), and a state by which its eight bytes are the address of an object
POINTERS = b"cnumpy\ndtype\n(X\x02\x00\x00\x00f8I00\nI01\ntR(K\x03X\x01\x00\x00\x00<NX\x01\x00\x00\x00a\x85"
POINTERS += b"}X\x01\x00\x00\x00acnumpy\ndtype\n(X\x02\x00\x00\x00O8I00\nI01\ntRK\x00\x86sK\x08K\x08K?tb"
OBJECTS = b"cnumpy\ndtype\n(X\x02\x00\x00\x00O8I00\nI01\ntR"


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
@pytest.mark.parametrize(("dtype", "called"), [(POINTERS, r"numpy\.dtype\('O8'\)"), (OBJECTS, r"numpy\.dtype\('O8'\)")])
def test_no_bytes_become_pointers(tmp_path, suffix, dtype, called):
    array = b"cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
    state = b"(K\x01K\x01\x85" + dtype + b"I00\nC\x08" + b"\x41" * 8 + b"tb"
    content = b"\x80\x02}X\x01\x00\x00\x00w" + array + state + b"s."
    path = tmp_path / f"a{suffix}"
    if suffix == ".pth":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", content)
        content = path.read_bytes()
    with pytest.raises(UnreadableCheckpoint, match=called):
        read(path, content)


def test_a_state_cannot_stand_in_for_what_a_dict_does(tmp_path):
    """``state.items()`` would call what the file says."""
    loaded = read(tmp_path / "a.pkl", b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsK\x05sb.")
    assert by_name("a.pkl", loaded) == {} and list(loaded.items()) == []


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04Nr\xff\xff\xff\xff",  # the four thousand millionth entry of the memo
        b"\x80\x05\x96" + (2**45).to_bytes(8, "little") + b".",  # a bytearray of 32 TiB
        b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.",  # one of 2 GiB
        b"\x80\x04\x8e" + (2**45).to_bytes(8, "little") + b".",
        b"\x80\x02}()" + b"\x85" * 1_000_000 + b"K\x00u.",  # tuples in tuples, whose hash is asked for
        # 100 kB, 2,000 times
        b"\x80\x03B" + (10**5).to_bytes(4, "little") + b"x" * 10**5 + b"q\x000"
        + b"cbuiltins\nbytearray\nq\x01h\x00\x85R" + b"h\x01h\x00\x85R" * 2000 + b".",
        b"\x80\x02(cbuiltins\nset\nNo.",  # made as an object, and uncounted
        b"\x80\x02cbuiltins\nbytearray\nC\x04abcd\x85RK\x00K\x00s.",  # filled as if it were a dict
        b"\x80\x04}(K\x01\x90.",  # as if it were a set
    ],
    ids=["memo", "bytearray", "called", "bytes", "tuples", "copies", "object", "item", "items"],
)  # fmt: skip
def test_a_pickle_takes_no_more_than_its_file_has(tmp_path, content):
    with pytest.raises(UnreadableCheckpoint, match=rf"cannot read checkpoint {tmp_path}/a\.pkl") as error:
        read(tmp_path / "a.pkl", content)
    assert "MemoryError" not in str(error.value)


def with_another_pickle(path, edit):
    """Replace the pickle in a file of PyTorch."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, edit(content) if name.endswith("data.pkl") else content)


def test_tensors_and_storages_that_are_larger_than_the_file(tmp_path):
    path = tmp_path / "a.pth"
    million = (10**6).to_bytes(4, "little")
    torch.save({"w": torch.ones(2, 2)}, path)
    assert torch.equal(read_torch(str(path))["w"], torch.ones(2, 2))
    with_another_pickle(path, lambda pickled: pickled.replace(b"K\x04t", b"J" + million + b"t"))  # the storage
    with pytest.raises(UnreadableCheckpoint, match="cannot read checkpoint .*a.pth"):
        read_torch(str(path))
    torch.save({"w": torch.ones(1).expand(2**20, 2**20)}, path)  # 4 TiB of one number
    with pytest.raises(UnreadableCheckpoint, match=r"a tensor of \[1048576, 1048576\] in a storage of 1 numbers"):
        read_torch(str(path))
    storage = torch.ones(10**5)
    torch.save({f"w{i}": storage.view(-1) for i in range(20)}, path)  # each is scanned
    with pytest.raises(UnreadableCheckpoint, match="more than 16 times as large as the file"):
        read_torch(str(path))
    write_old_torch(path, {"w": torch.ones(2, 2)})
    path.write_bytes(path.read_bytes().replace(b"K\x04Nt", b"J" + million + b"Nt"))
    with pytest.raises(UnreadableCheckpoint, match="its storages are more than its"):
        read_torch(str(path))


def test_a_file_that_unpacks_to_more_than_it_is(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"w": torch.zeros(10**6)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(UnreadableCheckpoint, match="is compressed, or its parts are larger"):
        read_torch(str(path))
    torch.save({"w": torch.zeros(10)}, path)
    sizes = (10 * 4).to_bytes(
        4, "little"
    ) * 2  # of the tensor, compressed and not, as the directory at the end has them
    before, _, after = path.read_bytes().rpartition(sizes)
    path.write_bytes(before + b"\xff\xff\xff\x7f" + sizes[4:] + after)
    with pytest.raises(UnreadableCheckpoint, match="its parts are larger than it is"):
        read_torch(str(path))


def safetensors_file(header, content=b""):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(header).to_bytes(8, "little") + header + content


def tensor_entry(dtype, shape, *offsets):
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        safetensors_file(b"[" * 100_000),
        safetensors_file({"w": 1}),
        safetensors_file(tensor_entry("F32", [2**40], 0, 2**42)),
        safetensors_file(tensor_entry("F32", [2**62, 16], 0, 0)),
        safetensors_file(tensor_entry("F32", [-1], 0, 4), bytes(4)),
        safetensors_file(tensor_entry("F32", [1], 4, 8), bytes(8)),
        safetensors_file(tensor_entry("O8", [1], 0, 8), bytes(8)),
        safetensors_file({**tensor_entry("F32", [1], 0, 4), "v": tensor_entry("F32", [1], 0, 4)["w"]}),
    ],
)  # fmt: skip
def test_harmful_safetensors(tmp_path, content):
    with pytest.raises(UnreadableCheckpoint, match=rf"cannot read checkpoint {tmp_path}/a\.safetensors"):
        read(tmp_path / "a.safetensors", content)
    sound = safetensors_file(tensor_entry("F32", [2], 0, 8), np.float32([1, 2]).tobytes())
    assert read(tmp_path / "a.safetensors", sound)["w"].tolist() == [1, 2]


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
            "its 'state_dict' is not a tensor but of type dict",
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


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"hello", pickle.dumps({"a": np.ones(3000)})[:5000], pickle.dumps([1])),
        *(pickle.dumps({"model": {}, "__author__": "x", "matching_heuristics": True}), pickle.dumps({"blobs": 5})),
    ],
)
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
