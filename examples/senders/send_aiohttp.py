"""aiohttp. OUTGATE_PROXY: the URL of the proxy with the client and its token, http://billing:TOKEN@HOST:4750.
TARGET: the URL of the receiver. OUTGATE_CA: a file of authorities to trust in place of the system's."""

import asyncio
import os
import ssl
import sys

import aiohttp


async def main():
    tls = ssl.create_default_context(cafile=os.environ.get("OUTGATE_CA"))
    # Longer than outgate's own `timeouts.total`.
    timeout = aiohttp.ClientTimeout(total=130)
    async with aiohttp.ClientSession(proxy=os.environ["OUTGATE_PROXY"], timeout=timeout) as session:
        try:
            async with session.post(
                os.environ["TARGET"],
                json={"type": "ping"},
                # Outgate-TLS: if TARGET is an http:// URL, outgate uses https to the receiver.
                headers={"Outgate-TLS": "1", "Outgate-Tenant": "acme"},
                allow_redirects=False,
                ssl=tls,
            ) as response:
                print(response.status)
                for name in ("Outgate-Error", "Outgate-Egress", "Outgate-Request-Id"):
                    if name in response.headers:
                        print(f"{name}: {response.headers[name]}")
        except aiohttp.ClientError as error:  # a refused CONNECT: the text has its status and reason
            sys.exit(f"not delivered: {error}")


asyncio.run(main())
