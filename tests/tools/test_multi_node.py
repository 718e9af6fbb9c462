"""Several processes, with gloo on the CPU: two of one machine, and two "machines" as docs/distributed.md has them."""

import socket
import subprocess
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.distributed as dist
from detectron2.utils import comm

from airm import RefinementTrainer
from airm.data.synthetic_dataset import make_synthetic
from airm.refine import __main__ as refine
from tests.support.models import load_tool, refinement_batch, tiny_airm_cfg
from tests.support.training import AIRM, PATCHDCT, in_two_processes, made_once, metrics_of, same

pytestmark = pytest.mark.usefixtures("data_root")


# Two processes, started once for all tests


@pytest.fixture(scope="module")
def two_processes(shared_folder, drawn_data, trained_patchdct, trained_airm) -> Path:
    """Of each model a training, in "patchdct" and "airm", and in these an evaluation alone; AIRM's gradients; and what
    the tools make of folders of images, in "shares"."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(drawn_data))
        work = partial(train_and_evaluate, {PATCHDCT: trained_patchdct, AIRM: trained_airm})
        return made_once(shared_folder / "two_processes", lambda folder: in_two_processes(partial(work, folder)))


def train_and_evaluate(trained, folder: Path) -> None:
    tool = load_tool("train_net")
    for model, of_one in trained.items():
        out = folder / model.name
        alone = ["OUTPUT_DIR", out / "evaluated", "MODEL.WEIGHTS", of_one / "model_final.pth"]
        for arguments in model.arguments("OUTPUT_DIR", out), model.arguments(*alone, options=["--eval-only"]):
            tool.main(tool.argument_parser().parse_args(arguments))
    for tool, arguments in work_on_folders(trained, folder / "shares"):
        tool.main(tool.argument_parser().parse_args(arguments))
    rank = comm.get_rank()
    torch.save(gradients(slice(2 * rank, 2 * rank + 2)), folder / f"gradients_{rank}.pth")


def work_on_folders(trained, folder: Path) -> list[tuple[ModuleType, list[str]]]:
    """Each tool that shares images out, and its arguments; of drawn photos with masks beside them."""
    photos = make_synthetic(AIRM.test_set)
    detector = ["--config-file", trained[PATCHDCT] / "config.yaml", "--weights", trained[PATCHDCT] / "model_final.pth"]
    refiner = ["--device", "cpu", "--refiner", trained[AIRM] / "model_final.pth"]
    commands = [
        (load_tool("demo"), [*detector, "--input", photos, "--output", folder / "demo", "--score-threshold", 0]),
        (load_tool("refine_instances"), [*refiner, *detector, "--images", photos, "--output", folder / "instances"]),
        (refine, [photos, photos, "-o", folder / "refined", "--device", "cpu", "--weights", *refiner[-1:]]),
    ]
    return [(tool, [str(argument) for argument in arguments]) for tool, arguments in commands]


def gradients(images: slice) -> dict[str, torch.Tensor]:
    """Of an AIRM's loss over some of four images, averaged over processes; and the statistics of its batch norms.

    They are in the backbone, the projections and the hypernetwork; nothing in it is drawn.
    """
    torch.manual_seed(0)
    model = RefinementTrainer.build_model(tiny_airm_cfg("resnet", AFFINITY=False)).double()
    sum(model.train()(refinement_batch(4)[images]).values()).backward()
    for parameter in model.parameters() if comm.get_world_size() > 1 else ():
        dist.all_reduce(parameter.grad)
        parameter.grad /= comm.get_world_size()
    return {name: parameter.grad for name, parameter in model.named_parameters()} | {
        name: buffer for name, buffer in model.named_buffers() if name.endswith("running_mean")
    }


@pytest.mark.parametrize("model", [PATCHDCT, AIRM], ids=lambda model: model.name)
def test_two_processes_evaluate_like_one(model, two_processes, request):
    of_one = metrics_of(request.getfixturevalue(f"trained_{model.name}"))
    assert same(metrics_of(two_processes / model.name / "evaluated"), of_one)
    assert "World size: 2" in (two_processes / model.name / "evaluated/log.txt.rank1").read_text()


@pytest.mark.parametrize("model", [PATCHDCT, AIRM], ids=lambda model: model.name)
def test_the_evaluation_of_a_training_is_that_of_its_checkpoint(model, two_processes, tmp_path):
    out = two_processes / model.name
    assert same(model.evaluate(tmp_path, out / "model_final.pth"), metrics_of(out))
    # So short a training of PatchDCT has an AP of 0, whatever it has found
    name = "per_image.csv" if model is AIRM else "coco_instances_results.json"
    alone, between = ((folder / "inference" / model.test_set / name).read_text() for folder in (tmp_path, out))
    assert alone == between


def test_airm_has_the_gradients_of_one_process_with_all_images(two_processes):
    of_one = gradients(slice(0, 4))
    for rank in (0, 1):
        of_two = torch.load(two_processes / f"gradients_{rank}.pth")
        assert of_two.keys() == of_one.keys() and "mapping.convs.0.norm.weight" in of_one
        for name, expected in of_one.items():
            torch.testing.assert_close(of_two[name], expected, msg=name)


def test_tools_that_share_images_give_the_bytes_of_one_process(two_processes, trained_patchdct, trained_airm, tmp_path):
    for tool, arguments in work_on_folders({PATCHDCT: trained_patchdct, AIRM: trained_airm}, tmp_path):
        tool.main(tool.argument_parser().parse_args(arguments))
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.*"))
    assert len(files) == 17 + 3 + 5
    assert files == sorted(path.relative_to(two_processes / "shares") for path in two_processes.rglob("shares/*/*"))
    assert all((tmp_path / file).read_bytes() == (two_processes / "shares" / file).read_bytes() for file in files)


# Two machines


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(machine: int, endpoint: str, output: Path, *opts: str) -> subprocess.Popen:
    """Start one machine's part of a training; its output goes to a file, as a full pipe would stop it."""
    launcher = ["--nnodes", "2", "--nproc_per_node", "1", "--rdzv_backend", "c10d"]
    launcher += ["--rdzv_id", "two_machines", "--rdzv_endpoint", endpoint]
    command = PATCHDCT.command("OUTPUT_DIR", output / "out", *opts, launcher=launcher)
    with open(output / f"machine_{machine}.txt", "w") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


@pytest.mark.slow
def test_two_machines_train_and_evaluate_as_one_does(tmp_path):
    endpoint = f"127.0.0.1:{free_port()}"
    machines = [start(machine, endpoint, tmp_path, "SOLVER.MAX_ITER", "2") for machine in (0, 1)]
    try:
        statuses = [machine.wait(timeout=120) for machine in machines]
    finally:
        for machine in machines:
            machine.terminate()  # torchrun then ends its processes, too; one that has ended is left alone
    assert statuses == [0, 0], (tmp_path / "machine_0.txt").read_text()[-3000:]
    out = tmp_path / "out"
    for rank, log in enumerate(("log.txt", "log.txt.rank1")):
        assert f"Rank of current process: {rank}. World size: 2" in (out / log).read_text()

    assert same(PATCHDCT.evaluate(tmp_path / "alone", out / "model_final.pth"), metrics_of(out))
