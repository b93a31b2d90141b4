// node:http by hand: the proxy as the host, the whole target as the path, for http and https alike.

import http from "node:http";
import { exchange, proxy } from "./exchange.mjs";

const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });

function options(url, headers) {
  if (!proxy) {
    const { hostname, port, pathname } = new URL(url);
    return { hostname, port, path: pathname, headers };
  }
  const { hostname, port, username, password } = new URL(proxy);
  const credentials = Buffer.from(`${username}:${password}`).toString("base64");
  const more = { Host: new URL(url).host, "Proxy-Authorization": `Basic ${credentials}` };
  return { hostname, port, path: url, headers: { ...headers, ...more } };
}

await exchange(
  (method, url, headers, body) =>
    new Promise((resolve, reject) => {
      const request = http.request({ ...options(url, headers), method, agent }, (answer) => {
        let text = "";
        answer.setEncoding("utf8");
        answer.on("data", (piece) => (text += piece));
        answer.on("end", () => resolve([answer.statusCode, answer.headers, text]));
      });
      request.on("error", reject);
      request.end(body);
    }),
);
agent.destroy();
