"""requests: a Session with proxies."""

import requests
from exchange import CA, PROXY, exchange

session = requests.Session()
session.trust_env = False
session.verify = CA
if PROXY:
    session.proxies = {"http": PROXY, "https": PROXY}


def send(method, url, headers, body):
    got = session.request(method, url, headers=headers, data=body, timeout=20, allow_redirects=False)
    return got.status_code, got.headers.items(), got.content


exchange(send)
