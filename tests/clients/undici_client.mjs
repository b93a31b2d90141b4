// undici: request() with a ProxyAgent. `proxyTunnel: false` is what sends http:// in absolute-form.

import { Agent, ProxyAgent, request } from "undici";
import { ca, exchange, proxy } from "./exchange.mjs";

const dispatcher = proxy ? new ProxyAgent({ uri: proxy, proxyTunnel: false, requestTls: { ca } }) : new Agent();

await exchange(async (method, url, headers, body) => {
  const got = await request(url, { method, headers, body, dispatcher });
  return [got.statusCode, got.headers, await got.body.text()];
});
await dispatcher.close();
