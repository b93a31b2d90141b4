// undici: request() with a ProxyAgent. `proxyTunnel: false` is what sends http:// in absolute-form; without it, undici asks
// for a tunnel to port 80.

import { Agent, ProxyAgent, request } from "undici";
import { ca, exchange, form, proxy } from "./exchange.mjs";

const plain = form === "upgradedtunnel" ? {} : { proxyTunnel: false };
const dispatcher = proxy ? new ProxyAgent({ uri: proxy, ...plain, requestTls: { ca } }) : new Agent();

await exchange(async (method, url, headers, body) => {
  const got = await request(url, { method, headers, body, dispatcher });
  return [got.statusCode, got.headers, await got.body.text()];
});
await dispatcher.close();
