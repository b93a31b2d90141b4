// fetch: undici's with a ProxyAgent, and the one that Node brings where no proxy is needed.

import { ProxyAgent, fetch as undiciFetch } from "undici";
import { ca, exchange, proxy } from "./exchange.mjs";

const dispatcher = proxy ? new ProxyAgent({ uri: proxy, proxyTunnel: false, requestTls: { ca } }) : undefined;
const send = proxy ? undiciFetch : fetch;

await exchange(async (method, url, headers, body) => {
  const got = await send(url, { method, headers, body, redirect: "manual", ...(dispatcher && { dispatcher }) });
  return [got.status, got.headers, await got.text()];
});
await dispatcher?.close();
