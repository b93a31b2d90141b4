"""wget: one process for requests that differ in nothing but their URL, so that these may share a connection."""

import itertools
import json
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from exchange import CA, PROXY, requests


def run(group, folder):
    first = group[0]
    words = ["wget", "-nv", "-S", "-P", folder, "--tries=1", "--timeout=20", "--max-redirect=0"]
    words += ["--content-on-error", f"--ca-certificate={CA}", f"--method={first['method']}"]
    words += [f"--header={name}: {value}" for name, value in first["headers"].items()]
    if first["body"] is not None:
        sent = Path(folder, ".sent")
        sent.write_text(first["body"])
        words += [f"--body-file={sent}"]
    for scheme in ("http", "https"):
        words += ["-e", f"{scheme}_proxy={PROXY}"]
    words += ["-e", f"use_proxy={'on' if PROXY else 'off'}"]
    return subprocess.run(words + [one["url"] for one in group], capture_output=True, text=True, env={"LC_ALL": "C"})


def heads(log):
    """The answers' heads, which -S shows indented."""
    found = []
    for line in log.splitlines():
        if line.startswith("  HTTP/"):
            found.append({"status": int(line.split()[1]), "headers": {}})
        elif line.startswith("  ") and ": " in line and found:
            name, value = line.strip().split(": ", 1)
            found[-1]["headers"][name.lower()] = value
    return found


for _, group in itertools.groupby(requests(), key=lambda one: (one["method"], one["headers"], one["body"])):
    group = list(group)
    with tempfile.TemporaryDirectory() as folder:
        done = run(group, folder)
        answers = heads(done.stderr)
        for number, request in enumerate(group):
            body = Path(folder, Path(urlsplit(request["url"]).path).name)
            if number < len(answers):
                answer = answers[number] | {"body": body.read_text() if body.exists() else ""}
            else:
                answer = {"error": done.stderr.strip()}
            print(json.dumps(answer))
