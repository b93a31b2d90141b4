"""httpx. OUTGATE_PROXY: the URL of the proxy with the client and its token, http://billing:TOKEN@HOST:4750.
TARGET: the URL of the receiver. OUTGATE_CA: a file of authorities to trust in place of httpx's own."""

import os
import ssl
import sys

import httpx

tls = ssl.create_default_context(cafile=os.environ.get("OUTGATE_CA"))
url = os.environ["OUTGATE_PROXY"]
proxy = httpx.Proxy(url, ssl_context=tls if url.startswith("https:") else None)
# The timeout is longer than outgate's own `timeouts.total`.
with httpx.Client(proxy=proxy, verify=tls, trust_env=False, timeout=130) as client:
    try:
        response = client.post(
            os.environ["TARGET"],
            json={"type": "ping"},
            # Outgate-TLS: if TARGET is an http:// URL, outgate uses https to the receiver.
            headers={"Outgate-TLS": "1", "Outgate-Tenant": "acme"},
        )
    except httpx.HTTPError as error:  # a refused CONNECT: the text has its status and reason
        sys.exit(f"not delivered: {error}")
print(response.status_code)
for name in ("Outgate-Error", "Outgate-Egress", "Outgate-Request-Id"):
    if name in response.headers:
        print(f"{name}: {response.headers[name]}")
