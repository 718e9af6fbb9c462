"""The formats in which published weights come."""

import pickle
import struct
from collections import OrderedDict

import numpy as np
import pytest
import torch
from detectron2.modeling.backbone.resnet import BasicStem
from torch import nn

from pixelmask.checkpoint.checkpointer import SafeCheckpointer, UnreadableCheckpoint
from pixelmask.errors import UserError
from tests.support.checkpoints import Model, same_state


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
            b"(K\x01" + shape + dtype,
            b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89" + string(array.tobytes()) + b"tb",
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


class Adapting(Model):
    """Knows checkpoints whose names are in upper case."""

    def adapt_checkpoint(self, state, prefix):
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
