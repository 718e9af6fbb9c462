"""Pretrained encoder weights: file contents written out by hand, in all the forms in which they are published."""

import logging
import pickle
import sys

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from airm.backbone.weights import VARIANTS, adapt_checkpoint
from pixelmask.checkpoint.checkpointer import SafeCheckpointer
from pixelmask.checkpoint.files import UnreadableCheckpoint
from pixelmask.cli import run
from pixelmask.config import get_cfg
from pixelmask.errors import UserError
from tests.support.models import load_tool, tiny_airm_cfg

B1 = ([64, 128, 320, 512], [2, 2, 2, 2])
B2 = ([64, 128, 320, 512], [3, 4, 6, 3])
TINY = ([8, 16, 24, 32], [1, 1, 1, 2])
SR_RATIOS = (8, 4, 2, 1)


def with_bias(name, *shape):
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def published_shapes(dims, depths):
    """Names and shapes of a mit_b*.pth."""
    shapes = {}
    for i in range(4):
        c, s = dims[i], i + 1
        shapes |= with_bias(f"patch_embed{s}.proj", c, *((dims[i - 1], 3, 3) if i else (3, 7, 7)))
        shapes |= with_bias(f"patch_embed{s}.norm", c)
        for j in range(depths[i]):
            block = f"block{s}.{j}"
            shapes |= with_bias(f"{block}.norm1", c) | with_bias(f"{block}.norm2", c)
            shapes |= with_bias(f"{block}.attn.q", c, c) | with_bias(f"{block}.attn.kv", 2 * c, c)
            shapes |= with_bias(f"{block}.attn.proj", c, c)
            if SR_RATIOS[i] > 1:
                shapes |= with_bias(f"{block}.attn.sr", c, c, SR_RATIOS[i], SR_RATIOS[i])
                shapes |= with_bias(f"{block}.attn.norm", c)
            shapes |= with_bias(f"{block}.mlp.fc1", 4 * c, c) | with_bias(f"{block}.mlp.fc2", c, 4 * c)
            shapes |= with_bias(f"{block}.mlp.dwconv.dwconv", 4 * c, 1, 3, 3)
        shapes |= with_bias(f"norm{s}", c)
    return shapes | with_bias("head", 1000, dims[3])


def hugging_face_shapes(dims, depths, prefix="segformer.encoder."):
    """Names and shapes of a pytorch_model.bin of nvidia/mit-b*."""
    shapes = {}
    for i in range(4):
        c = dims[i]
        shapes |= with_bias(f"patch_embeddings.{i}.proj", c, *((dims[i - 1], 3, 3) if i else (3, 7, 7)))
        shapes |= with_bias(f"patch_embeddings.{i}.layer_norm", c)
        for j in range(depths[i]):
            block = f"block.{i}.{j}"
            shapes |= with_bias(f"{block}.layer_norm_1", c) | with_bias(f"{block}.layer_norm_2", c)
            for name in ("self.query", "self.key", "self.value", "output.dense"):
                shapes |= with_bias(f"{block}.attention.{name}", c, c)
            if SR_RATIOS[i] > 1:
                shapes |= with_bias(f"{block}.attention.self.sr", c, c, SR_RATIOS[i], SR_RATIOS[i])
                shapes |= with_bias(f"{block}.attention.self.layer_norm", c)
            shapes |= with_bias(f"{block}.mlp.dense1", 4 * c, c) | with_bias(f"{block}.mlp.dense2", c, 4 * c)
            shapes |= with_bias(f"{block}.mlp.dwconv.dwconv", 4 * c, 1, 3, 3)
        shapes |= with_bias(f"layer_norm.{i}", c)
    return {prefix + name: shape for name, shape in shapes.items()} | with_bias("classifier", 1000, dims[3])


def random_state(shapes):
    generator = torch.Generator().manual_seed(0)
    return {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def model_of(dims, depths):
    cfg = tiny_airm_cfg()
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
    cfg = get_cfg("AIRM")
    cfg.merge_from_file("configs/airm/airm_mit_b1.yaml")
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    torch.save(random_state(shapes(*B1)), tmp_path / "weights.pth")
    report = load(model, tmp_path / "weights.pth")
    encoder = {name for name in model.state_dict() if name.startswith("encoder.backbone.")}
    assert len(encoder) == len(published_shapes(*B1)) - 2  # all but the head
    assert set(report.matched) == encoder
    assert not report.unexpected
    assert not report.other_shape
    assert not encoder & set(report.missing)


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
    key, value = (state[f"segformer.encoder.block.0.0.attention.self.{x}.weight"] for x in ("key", "value"))
    assert torch.equal(own["block1.0.attn.kv.weight"][:8], key)
    assert torch.equal(own["block1.0.attn.kv.weight"][8:], value)
    key, value = (state[f"segformer.encoder.block.3.1.attention.self.{x}.bias"] for x in ("key", "value"))
    assert torch.equal(own["block4.1.attn.kv.bias"], torch.cat([key, value]))


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


def test_own_checkpoints_are_left_alone(tmp_path, tiny):
    fresh = model_of(*TINY)
    for name in ("own", "wrapped"):
        prefix = "module." if name == "wrapped" else ""
        state = {prefix + key: value for key, value in tiny.state_dict().items()}
        assert adapt_checkpoint(state, fresh.state_dict()) == state
        torch.save({"model": state}, tmp_path / f"{name}.pth")
        report = load(fresh, tmp_path / f"{name}.pth")
        assert len(report.matched) == len(state)
        assert not report.missing


@pytest.mark.parametrize(("given", "config"), [("mit_b2", B1), ("mit_b1", B2), ("mit_b0", B1)])
@pytest.mark.parametrize("shapes", [published_shapes, hugging_face_shapes])
def test_another_variant_is_refused(given, config, shapes):
    # meta tensors: nothing is to be read but names and shapes
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes(*VARIANTS[given]).items()}
    own = {f"encoder.backbone.{n}": torch.empty(s, device="meta") for n, s in published_shapes(*config).items()}
    wanted = "mit_b1" if config is B1 else "mit_b2"
    with pytest.raises(
        UserError, match=rf"the weights of {given} \(.*, but the model's encoder is {wanted} \(.*DEPTHS"
    ):
        adapt_checkpoint(state, own)


def test_incomplete_and_misshapen_weights_are_refused(tmp_path, tiny):
    state = random_state(published_shapes(*TINY))
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    torch.save({**state, "block1.0.attn.q.weight": torch.ones(8, 9)}, tmp_path / "shape.pth")
    with pytest.raises(
        UserError, match=r"shape\.pth does not fit: its block1\.0\.attn\.q\.weight has shape \(8, 9\), .* \(8, 8\)$"
    ):
        load(tiny, tmp_path / "shape.pth")
    del state["norm3.bias"]
    torch.save(state, tmp_path / "missing.pth")
    with pytest.raises(UserError, match=r"missing\.pth does not fit: 1 of the encoder's .*norm3\.bias first"):
        load(tiny, tmp_path / "missing.pth")
    assert all(torch.equal(value, before[name]) for name, value in tiny.state_dict().items())


def test_unknown_names_are_reported(tmp_path, tiny):
    torch.save({**random_state(published_shapes(*TINY)), "extra": torch.ones(1)}, tmp_path / "a.pth")
    assert load(tiny, tmp_path / "a.pth").unexpected == ["encoder.backbone.extra"]


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


def resnet():
    cfg = tiny_airm_cfg()
    cfg.merge_from_file("configs/airm/Base-AIRM-R.yaml")
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = "", "cpu"
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    return build_model(cfg)


def test_detectron2_resnet(tmp_path):
    model = resnet()
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


def test_transformer_weights_for_a_resnet(tmp_path):
    torch.save(random_state(published_shapes(*TINY)), tmp_path / "mit.pth")
    with pytest.raises(UserError, match=r"of a Mix Transformer; MODEL\.BACKBONE\.NAME is to be build_mit_backbone"):
        load(resnet(), tmp_path / "mit.pth")


def test_report_in_the_log(tmp_path, tiny, caplog):
    torch.save(random_state(hugging_face_shapes(*TINY)), tmp_path / "a.pth")
    logging.getLogger("airm.backbone.weights").setLevel(logging.INFO)
    with caplog.at_level(logging.INFO):
        load(tiny, tmp_path / "a.pth")
    count = len(published_shapes(*TINY)) - 2
    assert f"Hugging Face form: {count} tensors match, 2 are not the encoder's, 0 missing, 0 unexpected" in caplog.text


@pytest.fixture(scope="module")
def tool():
    return load_tool("convert_mit_weights")


def convert(tool, *args):
    return run(tool.main, tool.argument_parser().parse_args([str(arg) for arg in args]))


@pytest.fixture(scope="module")
def b0_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("b0") / "pytorch_model.bin"
    torch.save(random_state(hugging_face_shapes(*VARIANTS["mit_b0"])), path)
    return path


def test_tool_writes_published_names(tmp_path, tool, b0_file, capsys):
    output = tmp_path / "weights" / "mit_b0.pth"
    convert(tool, b0_file, output)
    assert "mit_b0" in capsys.readouterr().out
    written = torch.load(output, weights_only=True)["model"]
    expected = published_shapes(*VARIANTS["mit_b0"])
    assert {name: tuple(value.shape) for name, value in written.items()} == {
        name: shape for name, shape in expected.items() if not name.startswith("head.")
    }
    own = {f"encoder.backbone.{name}": value for name, value in written.items()}
    own["encoder.backbone.patch_embed1.proj.weight"] = torch.empty(32, 4, 7, 7)
    adapted, direct = adapt_checkpoint(written, own), adapt_checkpoint(torch.load(b0_file, weights_only=True), own)
    assert all(torch.equal(adapted[name], direct[name]) for name in own)
    assert [path.name for path in output.parent.iterdir()] == ["mit_b0.pth"]


def drop(name):
    return lambda state: state.pop(f"segformer.encoder.{name}")


def spoil(state):
    state["segformer.encoder.layer_norm.3.bias"][5] = torch.inf


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            drop("block.1.1.mlp.dense2.bias"),
            r"1 of the encoder's tensors are not in it, block2\.1\.mlp\.fc2\.bias first",
        ),
        (drop("patch_embeddings.2.proj.weight"), r"is incomplete or of no published variant: .*EMBED_DIMS \[32, 64\]"),
        (spoil, r"its 'norm4\.bias' holds NaN or infinity"),
        (dict.clear, "holds no Mix Transformer in a known form"),
    ],
)
def test_tool_refuses_broken_files(tmp_path, tool, b0_file, capsys, change, message):
    state = torch.load(b0_file, weights_only=True)
    change(state)
    torch.save(state, tmp_path / "in.bin")
    with pytest.raises(UserError, match=message):
        tool.main(tool.argument_parser().parse_args([str(tmp_path / "in.bin"), str(tmp_path / "out.pth")]))
    with pytest.raises(SystemExit) as exit_code:
        convert(tool, tmp_path / "in.bin", tmp_path / "out.pth")
    assert exit_code.value.code == 1
    assert str(tmp_path / "in.bin") in capsys.readouterr().err
    assert not (tmp_path / "out.pth").exists()


def test_tool_overwrites_nothing_unasked(tmp_path, tool, b0_file):
    output = tmp_path / "out.pth"
    output.write_bytes(b"mine")
    parse = tool.argument_parser().parse_args
    with pytest.raises(UserError, match="exists already; pass --overwrite"):
        tool.main(parse([str(b0_file), str(output)]))
    assert output.read_bytes() == b"mine"
    tool.main(parse([str(b0_file), str(output), "--overwrite"]))
    assert output.stat().st_size > 10_000_000
    with pytest.raises(UserError, match=r"is to end in \.pth"):
        tool.main(parse([str(b0_file), str(tmp_path / "out.bin")]))
    with pytest.raises(UserError, match="no file"):
        tool.main(parse(["none.bin", str(tmp_path / "new.pth")]))


def test_safetensors_need_their_package(tmp_path, tool, tiny, monkeypatch):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(UserError, match="pip install safetensors; or take the pytorch_model.bin"):
        tool.main(tool.argument_parser().parse_args([str(path), str(tmp_path / "out.pth")]))
    with pytest.raises(UnreadableCheckpoint, match=r"take the pytorch_model\.bin beside it, or convert it"):
        load(tiny, path)
