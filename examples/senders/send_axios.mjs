// axios, with its own `proxy` setting. OUTGATE_PROXY: the URL of the proxy with the client and its token,
// http://billing:TOKEN@HOST:4750. TARGET: the URL of the receiver. OUTGATE_CA: a file of authorities to trust in place
// of Node's own.

import { readFileSync } from "node:fs";
import https from "node:https";
import axios from "axios";

const { OUTGATE_PROXY, OUTGATE_CA, TARGET } = process.env;
const at = new URL(OUTGATE_PROXY);
const client = axios.create({
  proxy: {
    protocol: at.protocol,
    host: at.hostname,
    port: Number(at.port),
    auth: { username: at.username, password: at.password },
  },
  httpsAgent: new https.Agent(OUTGATE_CA ? { ca: readFileSync(OUTGATE_CA) } : {}),
  // Outgate-TLS: if TARGET is an http:// URL, outgate uses https to the receiver.
  headers: { "Outgate-TLS": "1", "Outgate-Tenant": "acme" },
  maxRedirects: 0,
  validateStatus: () => true,
  timeout: 130_000, // longer than outgate's own `timeouts.total`
});
try {
  // A refused CONNECT: the response is that of outgate.
  const response = await client.post(TARGET, { type: "ping" });
  console.log(response.status);
  for (const name of ["Outgate-Error", "Outgate-Egress", "Outgate-Request-Id"]) {
    const value = response.headers[name.toLowerCase()];
    if (value) console.log(`${name}: ${value}`);
  }
} catch (error) {
  console.error(`not delivered: ${error.message}`);
  process.exitCode = 1;
}
