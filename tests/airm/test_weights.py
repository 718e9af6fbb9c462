"""Pretrained encoder weights: file contents written out by hand, in all the forms in which they are published."""

import logging
import pickle

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from safetensors.torch import save_file

from airm.backbone.weights import VARIANTS
from pixelmask.checkpoint.checkpointer import SafeCheckpointer
from pixelmask.config import load_cfg
from pixelmask.errors import UserError
from tests.support.mit_reference import B1, TINY, hugging_face_shapes, published_shapes, random_state
from tests.support.models import tiny_airm_cfg, untrained_airm

B2 = ([64, 128, 320, 512], [3, 4, 6, 3])


def model_of(dims, depths, device="cpu"):
    cfg = tiny_airm_cfg()
    cfg.MODEL.DEVICE = device
    cfg.MODEL.MIT.EMBED_DIMS, cfg.MODEL.MIT.DEPTHS = dims, depths
    return build_model(cfg).eval()


def load(model, path):
    checkpointer = SafeCheckpointer(model)
    checkpointer.load(str(path))
    return checkpointer.load_report


@pytest.fixture(scope="module")
def tiny():
    return model_of(*TINY)


@pytest.mark.parametrize("shapes", [published_shapes, hugging_face_shapes])
def test_b1_loads_completely(tmp_path, shapes):
    model = build_model(load_cfg("configs/airm/airm_mit_b1.yaml", ["MODEL.DEVICE", "cpu"]))
    torch.save(random_state(shapes(*B1)), tmp_path / "weights.pth")
    report = load(model, tmp_path / "weights.pth")
    encoder = {name for name in model.state_dict() if name.startswith("encoder.backbone.")}
    assert len(encoder) == len(published_shapes(*B1)) - 2  # all but the head
    assert set(report.matched) == encoder and not encoder & set(report.missing)
    assert not report.unexpected and not report.other_shape


# Tensor of the model: where its values are in a Hugging Face file
RENAMED = {
    "patch_embed2.proj.weight": "patch_embeddings.1.proj.weight",
    "patch_embed1.norm.bias": "patch_embeddings.0.layer_norm.bias",
    "block1.0.norm1.weight": "block.0.0.layer_norm_1.weight",
    "block1.0.norm2.weight": "block.0.0.layer_norm_2.weight",
    "block4.1.attn.q.weight": "block.3.1.attention.self.query.weight",
    "block3.0.attn.sr.bias": "block.2.0.attention.self.sr.bias",
    "block3.0.attn.norm.weight": "block.2.0.attention.self.layer_norm.weight",
    "block3.0.attn.proj.weight": "block.2.0.attention.output.dense.weight",
    "block2.0.mlp.fc1.bias": "block.1.0.mlp.dense1.bias",
    "block2.0.mlp.dwconv.dwconv.weight": "block.1.0.mlp.dwconv.dwconv.weight",
    "block2.0.mlp.fc2.weight": "block.1.0.mlp.dense2.weight",
    "norm1.weight": "layer_norm.0.weight",
    "norm4.bias": "layer_norm.3.bias",
}


def test_values_of_hugging_face_land_where_they_belong(tmp_path):
    model, state = model_of(*TINY), random_state(hugging_face_shapes(*TINY))
    torch.save(state, tmp_path / "pytorch_model.bin")
    load(model, tmp_path / "pytorch_model.bin")
    own = model.encoder.backbone.state_dict()
    for name, theirs in RENAMED.items():
        assert torch.equal(own[name], state[f"segformer.encoder.{theirs}"]), name
    for ours, theirs in (("block1.0.attn.kv.weight", "0.0.attention"), ("block4.1.attn.kv.bias", "3.1.attention")):
        kind = ours.split(".")[-1]
        key_and_value = [state[f"segformer.encoder.block.{theirs}.self.{x}.{kind}"] for x in ("key", "value")]
        assert torch.equal(own[ours], torch.cat(key_and_value))


def test_the_mask_has_no_say_at_first(tmp_path):
    model, state = model_of(*TINY), random_state(published_shapes(*TINY))
    torch.save(state, tmp_path / "mit.pth")
    load(model, tmp_path / "mit.pth")
    weight = model.encoder.backbone.patch_embed1.proj.weight
    assert torch.equal(weight[:, :3], state["patch_embed1.proj.weight"])
    assert torch.equal(weight[:, 3], torch.zeros(8, 7, 7))
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        a, b = (model.encoder.backbone(torch.cat([image, m], 1)) for m in (torch.ones(1, 1, 64, 64), image[:, :1]))
        other = model.encoder.backbone(torch.cat([image.flip(1), image[:, :1]], 1))
    for name in a:
        assert torch.equal(a[name], b[name])
        assert not torch.allclose(a[name], other[name], atol=1e-3)


def renamed(shapes, prefix):
    return {prefix + name: value for name, value in random_state(shapes).items()}


@pytest.mark.parametrize(
    "content",
    [
        {"model": random_state(published_shapes(*TINY))},
        {"state_dict": renamed(published_shapes(*TINY), "backbone."), "meta": {"epoch": 3}},
        {"state_dict": renamed(published_shapes(*TINY), "module.backbone.") | {"module.decode_head.x": torch.ones(2)}},
        renamed(published_shapes(*TINY), "encoder."),
        random_state(hugging_face_shapes(*TINY, prefix="encoder.")),
        random_state(hugging_face_shapes(*TINY, prefix="")),
        {name: value.half() for name, value in random_state(published_shapes(*TINY)).items()},
    ],
)
def test_other_wrappings(tmp_path, tiny, content):
    torch.save(content, tmp_path / "a.pth")
    report = load(tiny, tmp_path / "a.pth")
    assert len(report.matched) == len(published_shapes(*TINY)) - 2
    assert not report.unexpected


def test_names_have_the_prefix_that_the_model_has_in_another(tiny):
    state = random_state(published_shapes(*TINY))
    expected = {f"refiner.{name}" for name in tiny.adapt_checkpoint(state)}
    assert set(tiny.adapt_checkpoint(state, "refiner.")) == expected


def test_own_checkpoints_are_left_alone(tmp_path, tiny):
    fresh = model_of(*TINY)
    for name in ("own", "wrapped"):
        prefix = "module." if name == "wrapped" else ""
        state = {prefix + key: value for key, value in tiny.state_dict().items()}
        assert fresh.adapt_checkpoint(state) == state
        torch.save({"model": state}, tmp_path / f"{name}.pth")
        report = load(fresh, tmp_path / f"{name}.pth")
        assert len(report.matched) == len(state)
        assert not report.missing


@pytest.mark.parametrize(("given", "config"), [("mit_b2", B1), ("mit_b1", B2), ("mit_b0", B1)])
@pytest.mark.parametrize("shapes", [published_shapes, hugging_face_shapes])
def test_another_variant_is_refused(given, config, shapes):
    with torch.device("meta"):  # nothing is to be read but names and shapes
        state = {name: torch.empty(shape) for name, shape in shapes(*VARIANTS[given]).items()}
        model = model_of(*config, "meta")
    wanted = "mit_b1" if config is B1 else "mit_b2"
    message = rf"the weights of {given} \(.*, but the model's encoder is {wanted} \(.*DEPTHS"
    with pytest.raises(UserError, match=message):
        model.adapt_checkpoint(state)


def test_incomplete_and_misshapen_weights_are_refused(tmp_path, tiny):
    state = random_state(published_shapes(*TINY))
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    torch.save({**state, "block1.0.attn.q.weight": torch.ones(8, 9)}, tmp_path / "shape.pth")
    message = r"shape\.pth does not fit: its block1\.0\.attn\.q\.weight has shape \(8, 9\), .* \(8, 8\)$"
    with pytest.raises(UserError, match=message):
        load(tiny, tmp_path / "shape.pth")
    del state["norm3.bias"]
    torch.save(state, tmp_path / "missing.pth")
    with pytest.raises(UserError, match=r"missing\.pth does not fit: 1 of the backbone's .*norm3\.bias first"):
        load(tiny, tmp_path / "missing.pth")
    assert all(torch.equal(value, before[name]) for name, value in tiny.state_dict().items())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"stem.conv1.weight": torch.ones(64, 3, 7, 7), "res2.0.conv1.weight": torch.ones(2)}, "no tensor of .* fits"),
        ({"conv1_w": torch.ones(64, 3, 7, 7)}, "ResNet of Caffe2 takes BGR"),
        ({"state_dict": {0: torch.ones(1)}}, "'state_dict' is not a tensor"),
        ({"patch_embed1.proj.weight": torch.ones(8, 3, 7, 7), "lr": 0.1}, "'lr' is not a tensor"),
        (
            random_state(published_shapes(*TINY)) | {"norm4.bias": torch.full((32,), torch.nan)},
            r"norm4\.bias' holds NaN",
        ),
    ],
)
def test_other_files_are_refused(tmp_path, tiny, content, message):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(UserError, match=message) as error:
        load(tiny, tmp_path / "a.pth")
    assert "a.pth" in str(error.value)


def test_detectron2_resnet(tmp_path):
    model = untrained_airm("resnet")
    # The file of a ResNet has all tensors of the backbone, for an RGB input, and a classifier
    state = {name: value.numpy() for name, value in model.encoder.backbone.state_dict().items()}
    stem = np.random.default_rng(0).standard_normal((64, 3, 7, 7)).astype(np.float32)
    state |= {"stem.conv1.weight": stem, "stem.fc.weight": np.ones((1000, 512), np.float32)}
    content = {"model": state, "__author__": "torchvision", "matching_heuristics": True}
    (tmp_path / "R-18.pkl").write_bytes(pickle.dumps(content))
    report = load(model, tmp_path / "R-18.pkl")
    assert len(report.matched) == len(state) - 1
    weight = model.encoder.backbone.stem.conv1.weight.detach()
    np.testing.assert_array_equal(weight[:, :3], stem)
    assert torch.equal(weight[:, 3], torch.zeros(64, 7, 7))
    torch.save(random_state(published_shapes(*TINY)), tmp_path / "mit.pth")
    with pytest.raises(UserError, match=r"of a Mix Transformer; MODEL\.BACKBONE\.NAME is to be build_mit_backbone"):
        load(model, tmp_path / "mit.pth")


def test_what_was_loaded_is_reported(tmp_path, tiny, caplog):
    torch.save({**random_state(published_shapes(*TINY)), "extra": torch.ones(1)}, tmp_path / "a.pth")
    assert load(tiny, tmp_path / "a.pth").unexpected == ["encoder.backbone.extra"]
    torch.save(random_state(hugging_face_shapes(*TINY)), tmp_path / "a.pth")
    with caplog.at_level(logging.INFO, logger="pixelmask.checkpoint.pretrained"):
        load(tiny, tmp_path / "a.pth")
    count = len(published_shapes(*TINY)) - 2
    assert f"Hugging Face form: {count} tensors loaded, 2 dropped, 0 missing, 0 unexpected, 0 of another" in caplog.text


def test_safetensors_are_loaded(tmp_path):
    state = random_state(published_shapes(*TINY))
    torch.save(state, tmp_path / "a.pth")
    save_file(state, tmp_path / "a.safetensors")
    models = [model_of(*TINY) for _ in range(2)]
    for model, suffix in zip(models, (".pth", ".safetensors"), strict=True):
        assert len(load(model, tmp_path / f"a{suffix}").matched) == len(published_shapes(*TINY)) - 2
    a, b = (model.encoder.backbone.state_dict() for model in models)
    assert all(torch.equal(a[name], b[name]) for name in a)
