"""Stands for `python` in the sandbox: has a process with the libraries loaded run the command, see server.py.

It starts in milliseconds, without site-packages. What the server does not do is done by the real interpreter.
"""

import array
import json
import os
import socket
import sys

request = {"argv": sys.argv[1:], "cwd": os.getcwd(), "env": dict(os.environ)}
# Read when Detectron2 is imported
other_data = os.environ.get("DETECTRON2_DATASETS", "datasets") != "datasets"
words = [word for word in sys.argv[1:] if word != "-u"]
if other_data or (words and words[0].startswith("-") and words[0] not in ("-", "-m", "-c")):
    os.execv(os.environ["DOCS_CHECK_PYTHON"], [os.environ["DOCS_CHECK_PYTHON"], *sys.argv[1:]])

with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(os.environ["DOCS_CHECK_SERVER"])
    content = json.dumps(request).encode()
    streams = array.array("i", [0, 1, 2]).tobytes()
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)
    connection.sendmsg([len(content).to_bytes(8, "big")], [rights])
    connection.sendall(content)
    answer = connection.recv(16)
status = int(answer or b"-1")
sys.exit(128 - status if status < 0 else status)
