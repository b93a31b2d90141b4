// An HTTP/2 target on node:http2: http2_target.mjs CERTIFICATE KEY. It ends each response with an empty DATA frame. Its port
// is the first line; it ends when its standard input has.

import { readFileSync } from "node:fs";
import http2 from "node:http2";

const [cert, key] = process.argv.slice(2).map((path) => readFileSync(path));
const server = http2.createSecureServer({ cert, key }, (request, response) => {
  request.resume();
  request.on("end", () => response.end("ok"));
  request.on("error", () => {}); // a body that breaks off
});
server.listen(0, "127.0.0.1", () => process.stdout.write(`${server.address().port}\n`));
process.stdin.resume();
process.stdin.on("end", () => process.exit());
