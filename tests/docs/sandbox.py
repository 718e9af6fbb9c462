"""A folder that looks like the repository, in which the documentation's commands run: small configs, drawn data.

A command may rely on the repository's own files (`configs/` is a small copy) and on

    photo.jpg, mask.png                    an image, 640 x 480, and a coarse mask of it
    photos/, masks/, clip.mp4              ten images, a coarse mask of each under the same name, a video
    annotations.json, results.json         of photos/: COCO annotations (polygons, three classes), COCO results
    datasets/                              a few drawn images of each published set, as datasets/README.md has them
    weights/mit_b1.pth, pytorch_model.bin, swin_base_patch4_window7_224_22k.pth       random numbers
    output/demo/, output/demo_airm/        as `make demo` and `make demo-airm` leave them
    output/patchdct_R_50_FPN_1x_coco/, output/airm_mit_b1/       as their trainings leave them

"python -m tests.docs.sandbox FOLDER" makes it; `Sandbox` does that.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.docs.blocks import ROOT, Block

COPIED = "tools docs README.md CONTRIBUTING.md MODEL_ZOO.md Makefile pyproject.toml constraints.txt"
TRAINED = ("configs/patchdct/patchdct_R_50_FPN_1x_coco.yaml", "configs/airm/airm_mit_b1.yaml")
TIMEOUT = 300
LARGE = 2**24  # bytes


class Sandbox:
    """A process that runs commands quickly, and folders for them: a template, of which each page gets a copy."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.template, self.copy = folder / "template", folder / "copy"
        self.template.mkdir()
        self._part = self.said = ""
        self._make_commands(folder / "bin")
        # Unix sockets have short names
        self._socket = f"/tmp/docs-check-{os.getpid()}"
        server = [sys.executable, str(Path(__file__).with_name("server.py")), self._socket]
        self._server = subprocess.Popen(
            server, cwd=ROOT, env=os.environ | self._settings(), stdin=subprocess.DEVNULL, start_new_session=True
        )
        while not os.path.exists(self._socket):
            assert self._server.poll() is None, "the process that runs commands did not start"
            time.sleep(0.05)
        try:
            self._run(f"python -m tests.docs.sandbox {self.template}", ROOT)
        except BaseException:
            self.close()
            raise

    def _make_commands(self, folder: Path) -> None:
        folder.mkdir()
        client = Path(__file__).with_name("client.py").read_text()
        commands = {
            "python": f"#!{sys.executable} -IS\n{client}",
            "torchrun": '#!/bin/sh\nexec python -m torch.distributed.run "$@"\n',
        }
        for name, text in commands.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)

    def _settings(self) -> dict[str, str]:
        return {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "PYTHONWARNINGS": "ignore"}

    def environment(self, folder: Path) -> dict[str, str]:
        """Return the environment of a command in a folder."""
        path = [str(self.folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
        modules = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        kept = {key: value for key, value in os.environ.items() if key != "DETECTRON2_DATASETS"}
        return {
            **kept,
            **self._settings(),
            "PATH": os.pathsep.join(path),
            "PYTHONPATH": os.pathsep.join(modules),
            "DOCS_CHECK_PYTHON": sys.executable,
            "DOCS_CHECK_SHIM": str(self.folder / "bin" / "python"),
            "DOCS_CHECK_SERVER": self._socket,
            # torchrun's; pages that are executed at the same time each need one
            "PET_MASTER_PORT": str(port),
            # Nothing may depend on a download
            "HTTP_PROXY": "http://127.0.0.1:9",
            "HTTPS_PROXY": "http://127.0.0.1:9",
            "FVCORE_CACHE": str(self.folder / "cache"),
        }

    def run(self, block: Block) -> None:
        """Run a block in its part's folder; AssertionError with what it said if it fails.

        ``copy`` is the folder in which the blocks of a part run one after the other, ``said`` what they have said.
        """
        if block.part != self._part:
            shutil.rmtree(self.copy, ignore_errors=True)
            shutil.copytree(self.template, self.copy, copy_function=_link_if_large)
            self._part, self.said = block.part, ""
        if block.language == "python":
            script = self.folder / f"block_{block.line}.py"
            script.write_text(block.to_run(), encoding="utf-8")
            self.said += self._run(f"python {script}", self.copy)
        else:
            self.said += self._run(block.to_run(), self.copy)

    def _run(self, command: str, folder: Path) -> str:
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-xc", command],
            cwd=folder,
            env=self.environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output = process.communicate()[0] + f"\nnot done after {TIMEOUT} s"
        assert process.returncode == 0, f"status {process.returncode} of\n\n{command}\n\n{output[-4000:]}"
        return output

    def close(self) -> None:
        self._server.kill()
        self._server.wait()
        os.unlink(self._socket)
        shutil.rmtree(self.folder)


def _link_if_large(source: str, target: str) -> None:
    """Copy a file, or link it where copies would take time; no command writes into a file that is there."""
    (os.link if os.path.getsize(source) > LARGE else shutil.copy2)(source, target)


def fill(folder: Path) -> None:
    """Make what commands may rely on: the repository's files, small configs, drawn data, models of two iterations."""
    from tests.docs.data import write_all
    from tests.docs.shrink import shrink_configs, shrink_tools

    ignored = shutil.ignore_patterns("__pycache__", "*.jpg")
    for name in COPIED.split():
        source = ROOT / name
        shutil.copytree(source, folder / name, ignore=ignored) if source.is_dir() else shutil.copy(source, folder)
    (folder / "datasets").mkdir()
    for script in (ROOT / "datasets").glob("*.py"):
        shutil.copy(script, folder / "datasets")
    shrink_configs(ROOT / "configs", folder / "configs")
    shrink_tools(folder / "tools")
    write_all(folder)
    environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{os.environ['PYTHONPATH']}"}
    for command in (
        *(["tools/train_net.py", "--config-file", config] for config in TRAINED),
        ["tools/train_demo.py", "--output", "output/demo"],
        ["tools/train_demo.py", "--model", "airm", "--output", "output/demo_airm", "--size", "320", "240"],
    ):
        subprocess.run(["python", *command], cwd=folder, env=environment, check=True)
    for name in ("patchdct_R_50_FPN_1x_coco", "demo"):
        _see_something(folder / "output" / name / "model_final.pth")


def _see_something(checkpoint: Path) -> None:
    """Make an untrained detector sure of what it finds, so that commands have masks to work on."""
    import torch

    content = torch.load(checkpoint, weights_only=False)
    content["model"]["roi_heads.box_predictor.cls_score.bias"][0] += 10
    torch.save(content, checkpoint)


if __name__ == "__main__":
    fill(Path(sys.argv[1]))
