"""httpx: a Client that speaks HTTP/2 by prior knowledge."""

import httpx
from exchange import exchange

client = httpx.Client(http1=False, http2=True, trust_env=False, timeout=20)


def send(method, url, headers, body):
    got = client.request(method, url, headers=headers, content=body)
    return got.status_code, got.headers.items(), got.content


exchange(send)
