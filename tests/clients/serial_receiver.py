"""A receiver of webhooks over TLS that serves one connection at a time, in one of the ways that customers run one.

Arguments: certificate, key, and `gunicorn` (its default worker), `flask` (app.run) or `http.server`. Says on stderr where
it listens, and answers each POST with its own body."""

import os
import ssl
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

if __name__ == "__main__":
    certificate, key, how = sys.argv[1:4]
else:
    how = "gunicorn"

if how != "http.server":
    from flask import Flask, request

    app = Flask(__name__)

    @app.post("/in")
    def receive():
        return request.get_data()


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__" and how == "gunicorn":
    options = ["--bind", "127.0.0.1:0", "--certfile", certificate, "--keyfile", key, "--worker-tmp-dir", "/dev/shm"]
    os.chdir(os.path.dirname(os.path.abspath(__file__)))
    os.execv(sys.executable, [sys.executable, "-m", "gunicorn", *options, "serial_receiver:app"])
elif __name__ == "__main__" and how == "flask":
    app.run(port=0, ssl_context=(certificate, key))
elif __name__ == "__main__":
    server = HTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    print(f"https://127.0.0.1:{server.server_port}", file=sys.stderr, flush=True)
    server.serve_forever()
