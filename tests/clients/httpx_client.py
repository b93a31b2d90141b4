"""httpx: a Client with a proxy."""

import ssl

import httpx
from exchange import CA, PROXY, exchange

verify = ssl.create_default_context(cafile=CA)
client = httpx.Client(proxy=PROXY or None, verify=verify, trust_env=False, timeout=20)


def send(method, url, headers, body):
    got = client.request(method, url, headers=headers, content=body)
    return got.status_code, got.headers.items(), got.content


exchange(send)
