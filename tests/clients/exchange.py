"""What every Python client program does around its client.

Arguments: the proxy's URL (empty: none), a CA file, the form. Each line of standard input is a request
`{"method", "url", "headers", "body"}`; each line of standard output is its answer `{"status", "headers", "body"}`,
or `{"error"}` where there is none. All requests of a run go through one session of the client.
"""

import json
import sys

PROXY, CA, FORM = sys.argv[1:4]


def requests():
    return [json.loads(line) for line in sys.stdin]


def answer(status, headers, body):
    """`headers` is pairs; `body` is bytes."""
    fields = {name.lower(): value for name, value in headers}
    print(json.dumps({"status": status, "headers": fields, "body": body.decode()}), flush=True)


def error(fault):
    # The cause is often one or two exceptions further down.
    causes = []
    while fault is not None:
        causes.append(f"{type(fault).__name__}: {fault}")
        fault = fault.__cause__ or fault.__context__
    print(json.dumps({"error": "; ".join(causes)}), flush=True)


def exchange(send):
    """`send(method, url, headers, body)` gives what `answer` takes; `body` is bytes or None."""
    for request in requests():
        body = request["body"]
        try:
            answer(*send(request["method"], request["url"], request["headers"], body and body.encode()))
        except Exception as fault:  # whatever the client raises is what its user sees
            error(fault)
