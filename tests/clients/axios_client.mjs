// axios: its own `proxy` setting.

import https from "node:https";
import axios from "axios";
import { ca, exchange, proxy } from "./exchange.mjs";

const at = proxy ? new URL(proxy) : null;
const client = axios.create({
  proxy: at && {
    protocol: "http",
    host: at.hostname,
    port: Number(at.port),
    ...(at.username && { auth: { username: at.username, password: at.password } }),
  },
  httpsAgent: new https.Agent({ ca }),
  responseType: "text",
  transformResponse: (text) => text,
  validateStatus: () => true,
  maxRedirects: 0,
});

await exchange(async (method, url, headers, data) => {
  const got = await client.request({ method, url, headers, data });
  return [got.status, got.headers, got.data];
});
