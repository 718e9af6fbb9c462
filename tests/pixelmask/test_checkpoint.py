"""Saving, loading and resuming; what was loaded is told."""

import logging
import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
from detectron2.solver import LRMultiplier
from fvcore.common.param_scheduler import ConstantParamScheduler

from pixelmask.checkpoint.checkpointer import SafeCheckpointer
from pixelmask.errors import UserError
from tests.support.checkpoints import Model, same_state, save


def test_round_trip_with_training_state(tmp_path):
    def training():
        model = Model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        # A multiplier that is a numpy number leaves one in the state of the optimizer and of the schedule
        schedule = LRMultiplier(optimizer, ConstantParamScheduler(np.float64(0.5)), max_iter=10)
        checkpointer = SafeCheckpointer(model, str(tmp_path), optimizer=optimizer, schedule=schedule)
        return model, optimizer, schedule, checkpointer

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


def test_nothing_fits(tmp_path):
    torch.save({"encoder.a": torch.ones(2), "encoder.b": torch.ones(2)}, tmp_path / "other.pth")
    with pytest.raises(
        UserError, match=r"no tensor of checkpoint \S*other\.pth fits .*encoder\.a, encoder\.b.*box_predictor"
    ):
        SafeCheckpointer(Model()).load(str(tmp_path / "other.pth"))


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
    for name in ("pixelmask.checkpoint", "fvcore.common.checkpoint"):
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
    assert SafeCheckpointer(Model()).load("") == {}


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\xfd", b"../other/model.pth", b"/model.pth", b"a\0b", b"m" * 300])
def test_what_last_checkpoint_cannot_name(tmp_path, content):
    trained, model = Model(), Model()
    save(trained, tmp_path, "model_0000001", iteration=1)
    (tmp_path / "last_checkpoint").write_bytes(content)
    checkpointer = SafeCheckpointer(model, str(tmp_path))
    with pytest.raises(UserError, match=rf"{tmp_path}/last_checkpoint does not name a file beside it; write"):
        checkpointer.get_checkpoint_file()
    assert checkpointer.resume_or_load("", resume=True)["iteration"] == 1
    assert same_state(model, trained)
