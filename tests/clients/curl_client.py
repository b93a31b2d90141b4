"""curl: one process for all requests, so that they may share a connection. A request may bring more `options`."""

import base64
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from exchange import CA, FORM, PROXY, requests


def arguments(request, to):
    words = ["-sS", "--max-time", "20", "--cacert", CA, "-o", f"{to}.body", "-D", f"{to}.head"]
    words += ["-w", "%{http_code} %{errormsg} (CONNECT: %{http_connect})\\n"]
    for name, value in request["headers"].items():
        words += ["-H", f"{name}: {value}"]
    if request["body"] is not None:
        Path(f"{to}.sent").write_text(request["body"])
        words += ["--data-binary", f"@{to}.sent"]
    words += ["-X", request["method"], *request["options"]]
    if FORM == "absolute":
        # As if the proxy were the server, but the target as it is (curl has no option for https through a plain proxy
        # other than CONNECT).
        proxy = urlsplit(PROXY)
        credentials = base64.b64encode(f"{proxy.username}:{proxy.password}".encode()).decode()
        words += ["-H", f"Host: {urlsplit(request['url']).netloc}", "-H", f"Proxy-Authorization: Basic {credentials}"]
        words += ["--request-target", request["url"], f"http://{proxy.hostname}:{proxy.port}/"]
    else:
        words += (["-x", PROXY] if PROXY else []) + [request["url"]]
    return words


def text(path):
    return path.read_text() if path.exists() else ""


def last_head(path):
    """What went before it was a challenge, or said 100 Continue."""
    lines = text(path).strip().split("\n\n")[-1].splitlines()
    fields = {}
    for name, value in (line.split(": ", 1) for line in lines[1:]):
        fields.setdefault(name.lower(), []).append(value)
    return {name: ", ".join(values) for name, values in fields.items()}


with tempfile.TemporaryDirectory() as folder:
    words = ["curl"]
    for number, request in enumerate(requests()):
        words += (["--next"] if number else []) + arguments(request, f"{folder}/{number}")
    done = subprocess.run(words, capture_output=True, text=True)
    for number, line in enumerate(done.stdout.splitlines()):
        status, error = line.split(" ", 1)
        if status == "000":
            print(json.dumps({"error": error}))
        else:
            head, body = Path(folder, f"{number}.head"), Path(folder, f"{number}.body")
            print(json.dumps({"status": int(status), "headers": last_head(head), "body": text(body)}))
    sys.stderr.write(done.stderr)
