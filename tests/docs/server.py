"""Runs Python commands in forks of a process that has the libraries loaded: importing them takes seconds each time.

    python server.py SOCKET

client.py sends arguments, working directory, environment, and its standard streams, and gets the exit status.
"""

import atexit
import contextlib
import gc
import importlib
import json
import multiprocessing.context
import os
import pkgutil
import runpy
import select
import signal
import socket
import sys
import threading
import traceback
from typing import Any, NoReturn

# None of them may start a thread, such as onnxruntime does: a fork would wait for it when it ends
PRELOADED = (
    "detectron2.engine detectron2.evaluation detectron2.model_zoo detectron2.utils.visualizer detectron2.data.datasets "
    "matplotlib.pyplot rich.table sklearn.manifold torch.utils.tensorboard torch._dynamo torch.export "
    "torch.distributed.run torch.onnx._internal.exporter._core onnxscript onnxscript.rewriter "
    "faster_coco_eval lvis cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling"
)


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    head, streams, _, _ = socket.recv_fds(connection, 8, 3)
    length, content = int.from_bytes(head, "big"), b""
    while len(content) < length:
        content += connection.recv(length - len(content))
    return json.loads(content), streams


def attend(worker: int, connection: socket.socket) -> None:
    """Tell the client how a worker ended; end the worker if the client goes away."""
    handle = os.pidfd_open(worker)
    ready, _, _ = select.select([handle, connection], [], [])
    if handle not in ready:
        os.killpg(worker, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
    with contextlib.suppress(OSError):
        connection.sendall(str(status).encode())


def next_command(server: socket.socket) -> dict[str, Any]:
    """Return, in a new process each time, what a client asks for; end when the tests have."""
    tests = os.getppid()
    server.settimeout(5)
    while True:
        try:
            connection, _ = server.accept()
        except TimeoutError:
            if os.getppid() != tests:
                sys.exit()
            continue
        if os.fork():
            connection.close()
            continue
        server.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        request, streams = receive(connection)
        worker = os.fork()
        if worker:
            for stream in streams:
                os.close(stream)
            attend(worker, connection)
            os._exit(0)
        connection.close()
        os.setpgid(0, 0)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        return request


def execute(argv: list[str]) -> None:
    """Do what an interpreter does with these arguments."""
    argv = [word for word in argv if word != "-u"]
    if argv[:1] == ["-m"]:
        sys.path.insert(0, os.getcwd())
        sys.argv = argv[1:]
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    elif argv[:1] in ([], ["-"], ["-c"]):
        sys.path.insert(0, "")
        code = argv[1] if argv[:1] == ["-c"] else sys.stdin.read()
        sys.argv = ["-c", *argv[2:]] if argv[:1] == ["-c"] else argv or [""]
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
    else:
        sys.path.insert(0, os.path.dirname(os.path.abspath(argv[0])))
        sys.argv = argv
        runpy.run_path(argv[0], run_name="__main__")


def status_of(argv: list[str]) -> int:
    try:
        execute(argv)
    except SystemExit as e:
        if e.code is None or isinstance(e.code, int):
            return e.code or 0
        sys.stderr.write(f"{e.code}\n")
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def end(status: int) -> NoReturn:
    """End this process without taking the libraries apart, which takes longer than most commands."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


if __name__ == "__main__":
    del sys.path[0]
    for name in PRELOADED.split():
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for package in map(importlib.import_module, ("pixelmask", "patchdct", "airm")):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    # A process that a command spawns would import everything anew; forks have it
    multiprocessing.context._concrete_contexts["spawn"] = multiprocessing.context._concrete_contexts["fork"]  # type: ignore
    gc.freeze()  # Forks share these objects as long as nobody touches them
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(sys.argv[1])
    listening.listen(16)
    command = next_command(listening)
    os.environ.clear()
    os.environ.update(command["env"])
    os.chdir(command["cwd"])
    sys.executable = os.environ["DOCS_CHECK_SHIM"]
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    end(status_of(command["argv"]))
