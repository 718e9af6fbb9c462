"""The benchmark: same inputs for every model, fixed numbers of detections, honest statistics."""

import json
import statistics
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import torch
from detectron2.modeling.roi_heads import StandardROIHeads

import measuring
from airm.encoder import AffinityEmpoweredEncoder
from measuring import Case, MaskNetwork, Settings, draw_instances, measure, prepare
from pixelmask.cli import run
from pixelmask.errors import UserError
from tests.support.models import load_tool, tiny_airm_cfg

SETTINGS = Settings(size=(96, 128), batch_size=2, warmup=1, repeats=3)
HEADS = ("mask_rcnn", "dct_mask", "patchdct")


@pytest.fixture(scope="module")
def tool():
    return load_tool("benchmark")


@pytest.fixture
def airm_file(tmp_path):
    path = tmp_path / "refiner.yaml"
    path.write_text(tiny_airm_cfg().dump())
    return str(path)


@pytest.mark.parametrize("head", HEADS)
def test_whole_model_has_the_same_proposals_and_detections_whatever_the_head(head, config_file, monkeypatch):
    proposals = []
    forward_box = StandardROIHeads._forward_box

    def record(self, features, instances):
        proposals.extend(len(x) for x in instances)
        return forward_box(self, features, instances)

    monkeypatch.setattr(StandardROIHeads, "_forward_box", record)
    call = prepare(Case(config_file(head), "model", 7), SETTINGS)
    with torch.no_grad():
        call()
        outputs = call()
    assert proposals == [20, 20, 20, 20]
    drawn = draw_instances(7, SETTINGS.size, num_classes=3)
    for output in outputs:
        assert torch.allclose(output["instances"].pred_boxes.tensor, drawn.pred_boxes.tensor)
        assert output["instances"].pred_masks.shape == (7, 96, 128)


@pytest.mark.parametrize(("head", "mask_size"), zip(HEADS, (28, 128, 112), strict=True))
def test_branch_and_head_alone_give_masks_of_every_instance(head, mask_size, config_file):
    path = config_file(head)
    with torch.no_grad():
        instances = prepare(Case(path, "branch", 5), SETTINGS)()
        masks = prepare(Case(path, "head", 5), SETTINGS)()
    assert [x.pred_masks.shape for x in instances] == [(5, 1, mask_size, mask_size)] * 2
    assert masks.shape == (10, mask_size, mask_size)


def test_drawn_boxes_are_inside_the_image_and_never_change():
    drawn, again = (draw_instances(200, (60, 90), num_classes=3) for _ in range(2))
    boxes = drawn.pred_boxes.tensor
    assert torch.equal(boxes, again.pred_boxes.tensor) and torch.equal(drawn.pred_classes, again.pred_classes)
    assert (boxes >= 0).all() and (boxes[:, 2] <= 90.001).all() and (boxes[:, 3] <= 60.001).all()
    assert (boxes[:, 2:] - boxes[:, :2]).min() >= 15.99
    assert set(drawn.pred_classes.tolist()) == {0, 1, 2}


def test_row_has_median_and_rate_of_its_runs_without_those_of_the_warmup(config_file, monkeypatch):
    row = measure(Case(config_file(), "head", 3), SETTINGS)
    assert len(row["milliseconds_of_each_run"]) == 3 and min(row["milliseconds_of_each_run"]) > 0
    assert row["milliseconds"] == statistics.median(row["milliseconds_of_each_run"])
    assert row["images_per_second"] == pytest.approx(2 * 1000 / row["milliseconds"])
    assert (row["config"], row["part"], row["instances"]) == ("patchdct", "head", 3)
    calls = []
    monkeypatch.setattr(measuring, "prepare", lambda *args: lambda: calls.append(1))
    row = measure(Case(config_file(), "head", 3), Settings(warmup=4, repeats=2))
    assert len(calls) == 6 and len(row["milliseconds_of_each_run"]) == 2
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no usable GPU"):
        measure(Case(config_file(), "head", 2), Settings(device="cuda"))


def test_dtype_memory_format_and_compile_reach_the_head(config_file, monkeypatch):
    seen = {}

    def forward(self, classes, x, fine):
        seen.update(
            dtype=torch.nn.functional.conv2d(x, self.head.mask_fcn1.weight).dtype,
            channels_last=x.is_contiguous(memory_format=torch.channels_last),
            weight_channels_last=self.head.mask_fcn1.weight.is_contiguous(memory_format=torch.channels_last),
            predict=self.head.predict,
        )

    monkeypatch.setattr(MaskNetwork, "forward", forward)
    monkeypatch.setattr(torch, "compile", lambda function: ("compiled", function.__name__))
    measure(Case(config_file(), "head", 2), Settings(precision="bf16", channels_last=True, compile=True, size=(96, 96)))
    assert seen == {
        "dtype": torch.bfloat16,
        "channels_last": True,
        "weight_channels_last": True,
        "predict": ("compiled", "predict"),
    }


def test_command_line_measures_in_another_process_and_writes_json(tool, config_file, tmp_path, capsys):
    path = tmp_path / "out.json"
    options = ["--parts", "head", "--instances", "2", "--repeats", "2", "--threads", "1", "--device", "cpu"]
    args = ["--config-file", config_file(), *options, "--json", str(path), "MODEL.FPN.OUT_CHANNELS", "8"]
    run(tool.main, tool.argument_parser().parse_args(args))
    content = json.loads(path.read_text())
    assert content["torch"] == torch.__version__ and content["threads"] == 1 and content["device_name"]
    assert content["repeats"] == 2 and content["opts"] == ["MODEL.FPN.OUT_CHANNELS", "8"]
    (row,) = content["rows"]
    # Python with torch, and little else
    assert 100 < row["memory_before_mb"] <= row["peak_memory_mb"] < 3000
    table = capsys.readouterr().out
    assert "patchdct" in table and f"{row['peak_memory_mb']:,.0f} MB" in table


def test_row_that_fails_leaves_the_others(tool, monkeypatch, tmp_path, fails):
    class Pool(ThreadPoolExecutor):
        def __init__(self, workers, **kwargs):
            super().__init__(workers)

        def submit(self, function, case, settings):
            if case.num_instances == 100:
                raise BrokenProcessPool("killed")
            measured = {"milliseconds": 2.0, "images_per_second": 500.0, "peak_memory_mb": 1.0}
            return super().submit(lambda: case.row() | measured)

    monkeypatch.setattr(tool, "ProcessPoolExecutor", Pool)
    path = tmp_path / "out.json"
    with fails("3 of 6 rows could not be measured"):
        run(tool.main, tool.argument_parser().parse_args(["--parts", "model", "--json", str(path)]))
    rows = json.loads(path.read_text())["rows"]
    assert [(row["instances"], "error" in row) for row in rows] == [(20, False)] * 3 + [(100, True)] * 3


def test_airm_encodes_only_tiles_on_the_edge_of_a_disc(airm_file, monkeypatch):
    sizes = []
    forward = AffinityEmpoweredEncoder.forward

    def record(self, x):
        sizes.extend([tuple(x.shape[2:])] * len(x))
        return forward(self, x)

    monkeypatch.setattr(AffinityEmpoweredEncoder, "forward", record)
    keys = {"RATIOS": "[0.5, 1.0]", "MIN_SIZE_TEST": "0", "PADDING": "0", "TILE_HALO": "0", "TILE_SIZE": "64"}
    opts = tuple(x for key, value in keys.items() for x in (f"MODEL.AIRM.{key}", value))
    settings = Settings(size=(256, 256), batch_size=2, opts=opts)
    masks = prepare(Case(airm_file, "refine", 1), settings)()
    assert [mask.shape for mask in masks] == [(1, 1, 256, 256)] * 2
    # A disc of radius 90: all 4 tiles at ratio 0.5; at ratio 1, of 16, three bands of 3, 2 and 3 tiles around it.
    # And at both the whole, shrunk to a tile, from which the weights of the mapping are predicted
    assert sizes == [(64, 64)] * 2 * (1 + 4 + 1 + 8)


def test_airm_is_measured_whole_and_in_tiles(tool, airm_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        tool, "ProcessPoolExecutor", lambda workers, mp_context, **kwargs: ThreadPoolExecutor(workers, **kwargs)
    )
    path = tmp_path / "out.json"
    options = ["--size", "96", "160", "--tile-sizes", "0", "64", "--repeats", "1", "--warmup", "0", "--device", "cpu"]
    args = ["--config-file", airm_file, *options, "--json", str(path)]
    run(tool.main, tool.argument_parser().parse_args(args))
    rows = json.loads(path.read_text())["rows"]
    assert [(row["config"], row["part"], row["instances"]) for row in rows] == [("refiner", "refine", 1)] * 2
    assert [row["tile_size"] for row in rows] == [0, 64]
    assert all(row["milliseconds"] > 0 and row["peak_memory_mb"] > 100 for row in rows)
    assert "Tile size" in capsys.readouterr().out


def test_compile_and_dtype_reach_the_encoder_of_airm(airm_file, monkeypatch):
    compiled, dtypes = [], []
    monkeypatch.setattr(AffinityEmpoweredEncoder, "compile", lambda self: compiled.append(True))
    fuse = AffinityEmpoweredEncoder._fuse

    def record(self, stages):
        features = fuse(self, stages)
        dtypes.append(features.dtype)
        return features

    monkeypatch.setattr(AffinityEmpoweredEncoder, "_fuse", record)
    settings = Settings(size=(64, 64), precision="bf16", compile=True, warmup=0, repeats=1)
    measure(Case(airm_file, "refine", 1), settings)
    assert compiled == [True] and set(dtypes) == {torch.bfloat16}


def test_each_config_has_the_parts_of_its_kind(tool, config_file, airm_file):
    parse = tool.argument_parser().parse_args
    files = [config_file(), airm_file]
    cases = tool.choose_cases(files, parse(["--parts", "head", "refine", "--instances", "5", "--tile-sizes", "0"]))
    assert cases == [(files[0], "head", 5, None), (files[1], "refine", 1, 0)]
    with pytest.raises(UserError, match=r"refiner.yaml has none of the --parts head; it has refine"):
        tool.choose_cases(files, parse(["--parts", "head"]))
    with pytest.raises(UserError, match="no part 'head' to measure; it has refine"):
        measure(Case(airm_file, "head", 1), SETTINGS)
    four = tool.choose_cases(tool.AIRM_CONFIGS, parse(["--airm"]))
    assert [Path(case.config_file).stem for case in four[:4]] == [
        "sirmf_R_50",
        "airm_R_50",
        "sirmf_mit_b1",
        "airm_mit_b1",
    ]
    assert [case.tile_size for case in four] == [0] * 4 + [512] * 4
