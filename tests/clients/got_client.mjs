// got with hpagent, which asks for a tunnel even to http:// targets.

import got from "got";
import { HttpProxyAgent, HttpsProxyAgent } from "hpagent";
import { ca, exchange, proxy } from "./exchange.mjs";

const agent = proxy
  ? { http: new HttpProxyAgent({ proxy, keepAlive: true }), https: new HttpsProxyAgent({ proxy, ca, keepAlive: true }) }
  : undefined;

await exchange(async (method, url, headers, body) => {
  const options = { method, headers, body, agent, retry: { limit: 0 }, throwHttpErrors: false, followRedirect: false };
  const answer = await got(url, { ...options, https: { certificateAuthority: ca }, timeout: { request: 20_000 } });
  return [answer.statusCode, answer.headers, answer.body];
});
agent?.http.destroy();
agent?.https.destroy();
