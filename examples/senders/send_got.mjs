// got, with hpagent, which opens a tunnel even for an http:// URL: write an https:// URL, and give the route
// `connect = "inspect"` if outgate signs. OUTGATE_PROXY: the URL of the proxy with the client and its token,
// http://billing:TOKEN@HOST:4750. TARGET: the URL of the receiver. OUTGATE_CA: a file of authorities to trust in place
// of Node's own.

import { readFileSync } from "node:fs";
import got from "got";
import { HttpsProxyAgent } from "hpagent";

const { OUTGATE_PROXY, OUTGATE_CA, TARGET } = process.env;
const ca = OUTGATE_CA && readFileSync(OUTGATE_CA);
const agent = new HttpsProxyAgent({ proxy: OUTGATE_PROXY, ca, keepAlive: true });
try {
  const response = await got.post(TARGET, {
    json: { type: "ping" },
    headers: { "Outgate-Tenant": "acme" },
    agent: { https: agent },
    https: { certificateAuthority: ca },
    followRedirect: false,
    throwHttpErrors: false,
    retry: { limit: 0 }, // a webhook may have arrived although its response did not
    timeout: { request: 130_000 }, // longer than outgate's own `timeouts.total`
  });
  console.log(response.statusCode);
  for (const name of ["Outgate-Error", "Outgate-Egress", "Outgate-Request-Id"]) {
    const value = response.headers[name.toLowerCase()];
    if (value) console.log(`${name}: ${value}`);
  }
} catch (error) {
  // A refused CONNECT: the message has its status.
  console.error(`not delivered: ${error.message}`);
  process.exitCode = 1;
}
agent.destroy();
