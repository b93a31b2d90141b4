"""Calls the admin API as its OpenAPI document describes it: admin_api.py DOCUMENT URL ROLE.

The document must be valid. schemathesis then sends requests that the document permits and others that it does not, with
the token ROLE-token, and compares the responses with the document.
"""

import json
import pathlib
import subprocess
import sys

import openapi_spec_validator

# Bounds the time: 15 requests for each operation and kind of mistake take 20 seconds.
EXAMPLES_MAX = 15

document, url, role = sys.argv[1:]
openapi_spec_validator.validate(json.loads(pathlib.Path(document).read_text()))
command = [
    pathlib.Path(sys.executable).with_name("schemathesis"),
    "run",
    document,
    f"--url={url}",
    f"--header=Authorization: Bearer {role}-token",
    "--checks=all",
    f"--max-examples={EXAMPLES_MAX}",
    "--generation-deterministic",
    "--no-color",
]
sys.exit(subprocess.run(command, check=False).returncode)
