"""Twilio's own ValidationClient, which signs every request with the client's key. Its proxy comes from the environment,
its key lies beside the CA file."""

import os
from pathlib import Path

from exchange import CA, PROXY, exchange

os.environ.pop("NO_PROXY", None)
os.environ.pop("no_proxy", None)
if PROXY:
    os.environ["HTTP_PROXY"] = os.environ["HTTPS_PROXY"] = PROXY

from twilio.http.validation_client import ValidationClient  # noqa: E402 (after its environment)

key = Path(CA).with_name("twilio.pem").read_text()
client = ValidationClient("AC" + "0" * 32, "SK" + "0" * 32, "CR" + "0" * 32, key)
client.session.verify = CA
fields = {}  # its own answers carry none, its session's do
client.session.hooks["response"].append(lambda got, **_: fields.update(now=got.headers.items()))


def send(method, url, headers, body):
    got = client.request(method, url, data=body, headers=headers, auth=("SK" + "0" * 32, "secret"), timeout=20)
    return got.status_code, fields["now"], got.text.encode()


exchange(send)
