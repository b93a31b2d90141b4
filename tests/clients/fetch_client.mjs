// fetch: undici's with a ProxyAgent, and the one that Node brings where no proxy is needed. EnvHttpProxyAgent takes the
// proxy from the environment, and asks for a tunnel even to http:// targets.

import { EnvHttpProxyAgent, ProxyAgent, fetch as undiciFetch } from "undici";
import { ca, exchange, form, proxy } from "./exchange.mjs";

function agent() {
  if (form !== "upgradedtunnel") return new ProxyAgent({ uri: proxy, proxyTunnel: false, requestTls: { ca } });
  process.env.http_proxy = process.env.https_proxy = proxy;
  return new EnvHttpProxyAgent({ requestTls: { ca } });
}

const dispatcher = proxy ? agent() : undefined;
const send = proxy ? undiciFetch : fetch;

await exchange(async (method, url, headers, body) => {
  const got = await send(url, { method, headers, body, redirect: "manual", ...(dispatcher && { dispatcher }) });
  return [got.status, got.headers, await got.text()];
});
await dispatcher?.close();
