"""aiohttp: a ClientSession with a proxy for each request."""

import asyncio
import ssl

import aiohttp
from exchange import CA, PROXY, answer, error, requests


async def main():
    tls = ssl.create_default_context(cafile=CA)
    timeout = aiohttp.ClientTimeout(total=20)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        for request in requests():
            method, url, headers, body = (request[name] for name in ("method", "url", "headers", "body"))
            try:
                async with session.request(
                    method, url, headers=headers, data=body and body.encode(), proxy=PROXY or None, ssl=tls
                ) as got:
                    answer(got.status, got.headers.items(), await got.read())
            except Exception as fault:  # whatever the client raises is what its user sees
                error(fault)


asyncio.run(main())
