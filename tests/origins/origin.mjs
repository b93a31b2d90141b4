// A web server on node:http that prints every request line it reads. Its port is the first line; it ends when its
// standard input has and the last connection is closed.

import http from "node:http";

const say = (line) => process.stdout.write(`${line}\n`);
const saw = (request) => say(`${request.method} ${request.url} HTTP/${request.httpVersion}`);

function answer(request, response) {
  saw(request);
  request.resume();
  request.on("end", () => response.end("ok"));
  request.on("error", () => {}); // a body that breaks off
}

const server = http.createServer({ keepAliveTimeout: 30_000 }, answer);
server.on("checkContinue", answer);
server.on("checkExpectation", answer);
for (const event of ["connect", "upgrade"]) {
  server.on(event, (request, socket) => {
    saw(request);
    socket.end("HTTP/1.1 501 Not Implemented\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
  });
}
server.on("clientError", (fault, socket) => {
  // The end of a connection in the middle of a body is no request; anything else is one that it could not read.
  if (fault.code !== "ECONNRESET" && fault.code !== "HPE_INVALID_EOF_STATE") say(`unreadable: ${fault.code}`);
  socket.destroy();
});
server.listen(0, "127.0.0.1", () => say(server.address().port));
process.stdin.resume();
process.stdin.on("end", () => server.close());
