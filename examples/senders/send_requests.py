"""requests. OUTGATE_PROXY: the URL of the proxy with the client and its token, http://billing:TOKEN@HOST:4750.
TARGET: the URL of the receiver. OUTGATE_CA: a file of authorities to trust in place of requests' own."""

import os
import sys

import requests

session = requests.Session()
session.trust_env = False
session.proxies = {scheme: os.environ["OUTGATE_PROXY"] for scheme in ("http", "https")}
session.verify = os.environ.get("OUTGATE_CA", True)
try:
    response = session.post(
        os.environ["TARGET"],
        json={"type": "ping"},
        # Outgate-TLS: if TARGET is an http:// URL, outgate uses https to the receiver.
        headers={"Outgate-TLS": "1", "Outgate-Tenant": "acme"},
        allow_redirects=False,
        timeout=130,  # longer than outgate's own `timeouts.total`
    )
except requests.RequestException as error:  # a refused CONNECT: the text has its status and reason
    sys.exit(f"not delivered: {error}")
print(response.status_code)
for name in ("Outgate-Error", "Outgate-Egress", "Outgate-Request-Id"):
    if name in response.headers:
        print(f"{name}: {response.headers[name]}")
