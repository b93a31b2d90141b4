// fetch, with undici's ProxyAgent. OUTGATE_PROXY: the URL of the proxy with the client and its token,
// http://billing:TOKEN@HOST:4750. TARGET: the URL of the receiver. OUTGATE_CA: a file of authorities to trust in place
// of Node's own.

import { readFileSync } from "node:fs";
import { ProxyAgent, fetch } from "undici";

const { OUTGATE_PROXY, OUTGATE_CA, TARGET } = process.env;
const tls = OUTGATE_CA ? { ca: readFileSync(OUTGATE_CA) } : {};
// Without `proxyTunnel: false` undici opens a tunnel even for an http:// URL. Over TLS to outgate it always does.
const dispatcher = new ProxyAgent({ uri: OUTGATE_PROXY, proxyTunnel: false, requestTls: tls, proxyTls: tls });
try {
  const response = await fetch(TARGET, {
    method: "POST",
    // Outgate-TLS: if TARGET is an http:// URL, outgate uses https to the receiver.
    headers: { "Outgate-TLS": "1", "Outgate-Tenant": "acme", "Content-Type": "application/json" },
    body: JSON.stringify({ type: "ping" }),
    redirect: "manual",
    signal: AbortSignal.timeout(130_000), // longer than outgate's own `timeouts.total`
    dispatcher,
  });
  console.log(response.status);
  for (const name of ["Outgate-Error", "Outgate-Egress", "Outgate-Request-Id"]) {
    if (response.headers.has(name)) console.log(`${name}: ${response.headers.get(name)}`);
  }
  await response.body?.cancel();
} catch (error) {
  // A refused CONNECT: the innermost cause has its status.
  let cause = error;
  while (cause.cause) cause = cause.cause;
  console.error(`not delivered: ${cause.message}`);
  process.exitCode = 1;
}
await dispatcher.destroy();
