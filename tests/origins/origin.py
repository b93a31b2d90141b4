"""A web server on Python's own http.server that prints every request line it reads. Its port is the first line; it ends
when its standard input has and the last connection is closed."""

import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30

    def parse_request(self):
        # Before anything is made of it. One write: `print` writes the end of the line by itself, and another thread may come
        # between the two.
        line = self.raw_requestline.decode("latin-1").rstrip("\r\n")
        os.write(1, (line + "\n").encode())
        return super().parse_request()

    def handle_expect_100(self):
        return True

    def __getattr__(self, name):
        if name.startswith("do_"):
            return self.answer
        raise AttributeError(name)

    def answer(self):
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline().split(b";")[0], 16):
                self.rfile.read(size + 2)
            while self.rfile.readline().strip():
                pass
        else:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(b"ok")

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = False  # so that server_close waits for them

    def handle_error(self, *_):
        pass  # a body that breaks off


with Server(("127.0.0.1", 0), Handler) as server:
    print(server.server_address[1], flush=True)
    threading.Thread(target=server.serve_forever).start()
    sys.stdin.read()
    server.shutdown()
