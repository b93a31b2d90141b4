// What every Node client program does around its client; see exchange.py for the arguments and lines.

import { readFileSync } from "node:fs";
import { text } from "node:stream/consumers";

export const [proxy, caFile, form] = process.argv.slice(2);
export const ca = readFileSync(caFile, "utf8");

// `send(method, url, headers, body)` gives [status, headers (an object or pairs), body as text].
export async function exchange(send) {
  // Not readFileSync: on a pipe that is not filled yet it fails with EAGAIN.
  for (const line of (await text(process.stdin)).split("\n").filter(Boolean)) {
    const { method, url, headers, body } = JSON.parse(line);
    let answer;
    try {
      const [status, fields, content] = await send(method, url, headers, body ?? undefined);
      const pairs = typeof fields.entries === "function" ? [...fields.entries()] : Object.entries(fields);
      answer = { status, headers: Object.fromEntries(pairs.map(([n, v]) => [n.toLowerCase(), String(v)])), body: content };
    } catch (fault) {
      const causes = [];
      for (let at = fault; at; at = at.cause) causes.push(String(at));
      answer = { error: causes.join("; ") };
    }
    process.stdout.write(JSON.stringify(answer) + "\n");
  }
}
