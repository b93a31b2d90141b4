# A collector of traces, which decodes with OpenTelemetry's own package: `otlp_receiver.py http|grpc [PORT [CHAIN KEY]]`.
# Prints its port, and then one line of JSON for each request. Commands on stdin, one a line: `status N` answers with this
# status of HTTP or gRPC, `delay SECONDS` answers later, `reject N` takes all but N spans, `ok` ends them. It prints `null` for
# a command that holds from now on.
import http.server
import json
import ssl
import sys
import threading
import time
from concurrent import futures

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service_grpc

state = {}
lock = threading.Lock()


def value(any_value):
    kind = any_value.WhichOneof("value")
    return getattr(any_value, kind) if kind else None


def attributes(pairs):
    return {pair.key: value(pair.value) for pair in pairs}


def span(sent):
    return {
        "trace_id": sent.trace_id.hex(),
        "span_id": sent.span_id.hex(),
        "parent": sent.parent_span_id.hex(),
        "name": sent.name,
        "kind": sent.kind,
        "start": sent.start_time_unix_nano,
        "end": sent.end_time_unix_nano,
        "attributes": attributes(sent.attributes),
        "status": [sent.status.code, sent.status.message],
    }


def report(request, headers):
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            line = {
                "headers": headers,
                "resource": attributes(resource.resource.attributes),
                "scope": [scope.scope.name, scope.scope.version],
                "spans": [span(sent) for sent in scope.spans],
            }
            with lock:
                print(json.dumps(line), flush=True)


def answer():
    time.sleep(float(state.get("delay", 0)))
    response = service.ExportTraceServiceResponse()
    if "reject" in state:
        response.partial_success.rejected_spans = int(state["reject"])
        response.partial_success.error_message = "too many"
    return response


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        status = int(state.get("status", 200))
        encoded = answer().SerializeToString()
        if status == 200:
            headers = {name.lower(): text for name, text in self.headers.items()}
            headers[":path"] = self.path
            report(service.ExportTraceServiceRequest.FromString(body), headers)
        self.send_response(status)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)

    def log_message(self, *_):
        pass


class Service(service_grpc.TraceServiceServicer):
    def Export(self, request, context):
        response = answer()
        if "status" in state:
            codes = {code.value[0]: code for code in grpc.StatusCode}
            context.abort(codes[int(state["status"])], "as told")
        report(request, dict(context.invocation_metadata()))
        return response


protocol, port, *identity = [*sys.argv[1:], "0"][:2] + sys.argv[3:]
if protocol == "http":
    server = http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Handler)
    if identity:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*identity)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    bound = server.server_address[1]
    threading.Thread(target=server.serve_forever, daemon=True).start()
else:
    server = grpc.server(futures.ThreadPoolExecutor(64))  # a delayed answer occupies one
    service_grpc.add_TraceServiceServicer_to_server(Service(), server)
    if identity:
        chain, key = (open(path, "rb").read() for path in identity)
        bound = server.add_secure_port(f"127.0.0.1:{port}", grpc.ssl_server_credentials([(key, chain)]))
    else:
        bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
print(bound, flush=True)
for line in sys.stdin:
    command, *arguments = line.split()
    if command == "ok":
        state.clear()
    else:
        state[command] = arguments[0]
    with lock:
        print("null", flush=True)
