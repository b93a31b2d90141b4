"""urllib.request of the standard library, with a ProxyHandler. It closes its connection after every request."""

import ssl
import urllib.error
import urllib.request

from exchange import CA, PROXY, exchange

proxies = {"http": PROXY, "https": PROXY} if PROXY else {}
opener = urllib.request.build_opener(
    urllib.request.ProxyHandler(proxies),
    urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=CA)),
)


def send(method, url, headers, body):
    request = urllib.request.Request(url, data=body, headers=headers, method=method)
    try:
        with opener.open(request, timeout=20) as got:
            return got.status, got.headers.items(), got.read()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.headers.items(), refused.read()


exchange(send)
