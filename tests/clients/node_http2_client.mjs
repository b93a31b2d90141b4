// node:http2 by prior knowledge: all requests are streams of one session.

import http2 from "node:http2";
import { exchange } from "./exchange.mjs";

let session;

await exchange(
  (method, url, headers, body) =>
    new Promise((resolve, reject) => {
      const { origin, pathname } = new URL(url);
      if (!session || session.closed) {
        session = http2.connect(origin);
        session.on("error", () => {}); // its streams say so, too
      }
      const request = session.request({ ":method": method, ":path": pathname, ...headers });
      let answer;
      let text = "";
      request.setEncoding("utf8");
      request.on("response", (fields) => (answer = fields));
      request.on("data", (piece) => (text += piece));
      request.on("error", reject);
      request.on("end", () => {
        const fields = Object.entries(answer ?? {}).filter(([name]) => !name.startsWith(":"));
        resolve([answer?.[":status"], Object.fromEntries(fields), text]);
      });
      request.end(body);
    }),
);
session?.close();
