import builtins
import logging
import multiprocessing
import os
import pickle
import signal
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from detectron2.modeling.backbone.resnet import BasicStem
from detectron2.solver import LRMultiplier
from fvcore.common.param_scheduler import ConstantParamScheduler
from torch import nn

from patchdct.checkpoint import SafeCheckpointer, UnreadableCheckpoint
from patchdct.checkpoint_files import check_tensors
from patchdct.errors import UserError


class Model(nn.Module):
    """A box predictor as Detectron2 names it, and a layer beside it."""

    def __init__(self, num_classes=3):
        super().__init__()
        self.box_predictor = nn.ModuleDict({"cls_score": nn.Linear(4, num_classes + 1)})
        self.fc = nn.Linear(4, 4)


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


def same_state(a, b):
    a, b = a.state_dict(), b.state_dict()
    return all(torch.equal(a[name], b[name]) for name in a)


def save(model, folder, name="model", **kwargs):
    SafeCheckpointer(model, str(folder)).save(name, **kwargs)
    return str(folder / f"{name}.pth")


def test_round_trip_with_training_state(tmp_path):
    def training():
        model = Model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        # A multiplier that is a numpy number leaves one in the state of the optimizer and of the schedule
        schedule = LRMultiplier(optimizer, ConstantParamScheduler(np.float64(0.5)), max_iter=10)
        return (
            model,
            optimizer,
            schedule,
            SafeCheckpointer(model, str(tmp_path), optimizer=optimizer, schedule=schedule),
        )

    model, optimizer, schedule, checkpointer = training()
    model.fc(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    schedule.step()
    checkpointer.save("model_0000001", iteration=np.int64(1), seen=np.arange(3))
    fresh, fresh_optimizer, fresh_schedule, fresh_checkpointer = training()
    rest = fresh_checkpointer.resume_or_load("", resume=True)
    assert same_state(fresh, model)
    assert fresh_optimizer.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    momenta = [o.state[o.param_groups[0]["params"][2]]["momentum_buffer"] for o in (optimizer, fresh_optimizer)]
    assert torch.equal(*momenta)
    assert fresh_schedule.last_epoch == 1
    assert rest["iteration"] == 1
    np.testing.assert_array_equal(rest["seen"], [0, 1, 2])
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_0000001.pth"]
    assert len(fresh_checkpointer.load_report.matched) == 4


def write_torch(path, data):
    torch.save(data, path)


def write_old_torch(path, data):
    torch.save(data, path, _use_new_zipfile_serialization=False)


def write_pickle(path, data):
    path.write_bytes(pickle.dumps(data, protocol=2))


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


def empty(path):
    path.write_bytes(b"")


def truncated(path):
    torch.save({"model": {"fc.weight": torch.rand(100, 100)}}, path)
    path.write_bytes(path.read_bytes()[:20000])


def truncated_old(path):
    write_old_torch(path, {"model": {"fc.weight": torch.rand(100, 100)}})
    path.write_bytes(path.read_bytes()[:20000])


def text(path):
    path.write_text("<!DOCTYPE html><title>404</title>")


def zip_without_tensors(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/b.txt", "hello")


def a_list(path):
    torch.save([torch.ones(2)], path)


def a_tensor(path):
    torch.save(torch.ones(2), path)


def of_another_framework(path):
    torch.save({"state_dict": Model().state_dict(), "meta": {"epoch": 3}}, path)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (empty, "is empty"),
        (truncated, "truncated"),
        (truncated_old, "cannot read checkpoint"),
        (text, "is not a checkpoint: it starts with b'<!DOCTYPE html>"),
        (zip_without_tensors, "cannot read checkpoint"),
        (a_list, "holds no tensors by name"),
        (a_tensor, "holds no tensors by name"),
        (of_another_framework, "its 'state_dict' is not a tensor but of type OrderedDict"),
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


def test_no_path_loads_nothing():
    assert SafeCheckpointer(Model()).load("") == {}


def test_nothing_fits(tmp_path):
    torch.save({"encoder.a": torch.ones(2), "encoder.b": torch.ones(2)}, tmp_path / "other.pth")
    with pytest.raises(
        UserError, match=r"no tensor of checkpoint \S*other\.pth fits .*encoder\.a, encoder\.b.*box_predictor"
    ):
        SafeCheckpointer(Model()).load(str(tmp_path / "other.pth"))


class Adapting(Model):
    """Knows checkpoints whose names are in upper case."""

    def adapt_checkpoint(self, state):
        if "EVIL" in state:
            raise UserError("it is evil")
        return {name.lower(): value for name, value in state.get("STATE", state).items()}


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_model_can_adapt_checkpoints(tmp_path, wrapped):
    trained, model = Model(), Adapting()
    state = {name.upper(): value for name, value in trained.state_dict().items()}
    torch.save({"STATE": state, "EPOCH": 3} if wrapped else state, tmp_path / "a.pth")
    checkpointer = SafeCheckpointer(model)
    checkpointer.load(str(tmp_path / "a.pth"))
    assert same_state(model, trained)
    assert len(checkpointer.load_report.matched) == 4
    torch.save({"EVIL": torch.ones(1)}, tmp_path / "b.pth")
    with pytest.raises(UserError, match=rf"^checkpoint {tmp_path}/b\.pth does not fit: it is evil$"):
        checkpointer.load(str(tmp_path / "b.pth"))


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


def test_resume_passes_over_a_checkpoint_that_diverged(tmp_path):
    good, bad = Model(), Model()
    bad.fc.bias.data[0] = torch.nan
    save(good, tmp_path, "model_1", iteration=1)
    save(bad, tmp_path, "model_2", iteration=2)
    model = Model()
    assert SafeCheckpointer(model, str(tmp_path)).resume_or_load("", resume=True)["iteration"] == 1
    assert same_state(model, good)


def test_class_count_mismatch_is_reported_and_skipped(tmp_path, caplog):
    trained, model = Model(num_classes=80), Model(num_classes=8)
    before = model.box_predictor["cls_score"].weight.clone()
    state = trained.state_dict()
    del state["fc.bias"]
    torch.save({"model": {**state, "teacher": torch.ones(1)}}, tmp_path / "coco.pth")
    checkpointer = SafeCheckpointer(model)
    for name in ("patchdct.checkpoint", "fvcore.common.checkpoint"):
        logging.getLogger(name).setLevel(logging.INFO)
    caplog.set_level(logging.INFO)
    checkpointer.load(str(tmp_path / "coco.pth"))
    assert torch.equal(model.fc.weight, trained.fc.weight)
    assert torch.equal(model.box_predictor["cls_score"].weight, before)
    report = checkpointer.load_report
    assert report.matched == ["fc.weight"]
    assert report.missing == ["fc.bias"]
    assert report.unexpected == ["teacher"]
    assert report.other_shape == [
        ("box_predictor.cls_score.weight", (81, 4), (9, 4)),
        ("box_predictor.cls_score.bias", (81,), (9,)),
    ]
    assert str(report) == (
        f"1 tensors loaded from {tmp_path}/coco.pth; 1 of the model are not in it, 1 in it are not the model's, "
        "2 have another shape (80 classes in the checkpoint, 8 in the model)"
    )


def test_weights_of_a_wrapped_model(tmp_path):
    trained, model = Model(), Model()
    torch.save({f"module.{name}": value for name, value in trained.state_dict().items()}, tmp_path / "a.pth")
    SafeCheckpointer(model).load(str(tmp_path / "a.pth"))
    assert same_state(model, trained)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_detectron2_pkl(tmp_path, protocol):
    trained, model = Model(), nn.ModuleDict({"head": Model()})
    state = OrderedDict((name, value.numpy()) for name, value in trained.state_dict().items())
    data = {"model": state, "__author__": "me", "matching_heuristics": True, "score": np.float32(1), "ids": {1, 2}}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(data, protocol=protocol))
    SafeCheckpointer(model).load(str(tmp_path / "a.pkl"))
    assert same_state(model["head"], trained)


def python2_pickle(arrays):
    """What Python 2 and numpy 1 wrote for a dict of float32 arrays: names and contents are byte strings."""

    def string(content):
        return b"T" + struct.pack("<i", len(content)) + content

    parts = [b"\x80\x02}("]
    for name, array in arrays.items():
        shape = b"(" + b"".join(b"J" + struct.pack("<i", side) for side in array.shape) + b"t"
        dtype = b"cnumpy\ndtype\n" + string(b"f4") + b"K\x00K\x01\x87R(K\x03" + string(b"<") + b"NNN"
        parts += [
            string(name.encode()),
            b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + string(b"b") + b"\x87R",
            b"(K\x01"
            + shape
            + dtype
            + b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
            + string(array.tobytes())
            + b"tb",
        ]
    return b"".join([*parts, b"u."])


@pytest.mark.parametrize("blobs", [False, True])
def test_caffe2_pkl_of_python2(tmp_path, blobs):
    rng = np.random.default_rng(0)
    weights = {
        "conv1_w": rng.random((64, 3, 7, 7), np.float32),
        "res_conv1_bn_s": rng.random(64, np.float32),
        "res_conv1_bn_b": rng.random(64, np.float32),
        "conv1_w_momentum": rng.random((64, 3, 7, 7), np.float32),
    }
    content = python2_pickle(weights)
    if blobs:
        content = b"\x80\x02}U\x05blobs" + content[2:-1] + b"s."
    (tmp_path / "R-50.pkl").write_bytes(content)
    model = nn.ModuleDict({"stem": BasicStem(norm="FrozenBN")})
    checkpointer = SafeCheckpointer(model)
    checkpointer.load(str(tmp_path / "R-50.pkl"))
    conv = model["stem"].conv1
    np.testing.assert_array_equal(conv.weight.detach().numpy(), weights["conv1_w"])
    np.testing.assert_array_equal(conv.norm.weight.numpy(), weights["res_conv1_bn_s"])
    np.testing.assert_array_equal(conv.norm.bias.numpy(), weights["res_conv1_bn_b"])
    assert len(checkpointer.load_report.matched) == 3


def test_pycls_pyth(tmp_path):
    trained, model = Model(), Model()
    state = {**trained.state_dict(), "bn.num_batches_tracked": torch.tensor(7)}
    torch.save({"epoch": 1, "model_state": state, "cfg": "MODEL: {}"}, tmp_path / "RegNet.pyth")
    checkpointer = SafeCheckpointer(model)
    checkpointer.load(str(tmp_path / "RegNet.pyth"))
    assert same_state(model, trained)
    torch.save({"epoch": 1}, tmp_path / "none.pyth")
    with pytest.raises(UnreadableCheckpoint, match="holds no tensors"):
        checkpointer.load(str(tmp_path / "none.pyth"))


def save_and_die(folder, name):
    def half_a_save(data, f):
        f.write(b"PK half a checkpoint")
        f.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    torch.save = half_a_save
    save(Model(), folder, name)


@pytest.mark.parametrize("name", ["model_0000001", "model_0000002"])
def test_killed_while_saving(tmp_path, name):
    trained, model = Model(), Model()
    save(trained, tmp_path, "model_0000001", iteration=1)
    process = multiprocessing.get_context("fork").Process(target=save_and_die, args=(tmp_path, name))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [file for file in os.listdir(tmp_path) if file.endswith(".pth")] == ["model_0000001.pth"]
    assert SafeCheckpointer(model, str(tmp_path)).resume_or_load("", resume=True)["iteration"] == 1
    assert same_state(model, trained)


def test_failure_while_saving_leaves_no_rubbish(tmp_path, monkeypatch):
    path = save(Model(), tmp_path)
    with open(path, "rb") as f:
        before = f.read()

    def fail(data, f):
        f.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        save(Model(), tmp_path)
    with open(path, "rb") as f:
        assert f.read() == before
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model.pth"]


@pytest.mark.parametrize("damage", [os.remove, lambda path: os.truncate(path, 500)])
def test_resume_falls_back_to_the_newest_readable(tmp_path, damage):
    models = [Model() for _ in range(3)]
    for iteration, trained in enumerate(models):
        path = save(trained, tmp_path, f"model_{iteration}", iteration=iteration)
        os.utime(path, (iteration, iteration))
    model = Model()
    checkpointer = SafeCheckpointer(model, str(tmp_path))
    for iteration in (2, 1):
        assert checkpointer.resume_or_load("", resume=True)["iteration"] == iteration
        assert same_state(model, models[iteration])
        damage(tmp_path / f"model_{iteration}.pth")
    damage(tmp_path / "model_0.pth")
    with pytest.raises(UserError, match=f"no checkpoint in {tmp_path} can be read"):
        checkpointer.resume_or_load("", resume=True)


def test_without_resume_the_given_weights_are_loaded(tmp_path):
    (tmp_path / "output").mkdir()
    given, last, model = Model(), Model(), Model()
    path = save(given, tmp_path, iteration=5)
    save(last, tmp_path / "output")
    checkpointer = SafeCheckpointer(model, str(tmp_path / "output"))
    checkpointer.resume_or_load(path, resume=False)
    assert same_state(model, given)
    checkpointer.resume_or_load(path, resume=True)
    assert same_state(model, last)
