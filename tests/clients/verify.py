"""The libraries that receivers verify webhooks with, as they are.

Each line of standard input is a request as it arrived, `{"library", "method", "url", "headers", "body", "key"}`; each
line of standard output says whether the library takes it, `{"valid", "error"}`. `headers` has names in lower case; what
a `key` is depends on the library.
"""

import base64
import json
import sys
from types import SimpleNamespace
from urllib.parse import parse_qsl


def standardwebhooks(request):
    from standardwebhooks import Webhook

    Webhook(request["key"]).verify(request["body"], request["headers"], json_parse=False)
    return True


def svix(request):
    from svix.webhooks import Webhook

    Webhook(request["key"]).verify(request["body"], request["headers"])
    return True


def stripe(request):
    from stripe import WebhookSignature

    header = request["headers"].get("stripe-signature", "")
    return WebhookSignature.verify_header(request["body"], header, request["key"], tolerance=300)


def slack_sdk(request):
    from slack_sdk.signature import SignatureVerifier

    return SignatureVerifier(request["key"]).is_valid_request(request["body"], request["headers"])


def sendgrid(request):
    from sendgrid.helpers.eventwebhook import EventWebhook, EventWebhookHeader

    headers = {name.lower(): value for name, value in request["headers"].items()}
    signature = headers.get(EventWebhookHeader.SIGNATURE.lower(), "")
    timestamp = headers.get(EventWebhookHeader.TIMESTAMP.lower(), "")
    # The text of the PEM without its armour, as the mail settings show it.
    key = "".join(line for line in request["key"].splitlines() if not line.startswith("-----"))
    return EventWebhook(key).verify_signature(request["body"], signature, timestamp)


def twilio(request):
    from twilio.request_validator import SIGNATURE_SETTINGS_HEADER, RequestValidator, get_signature_algorithm
    from werkzeug.datastructures import MultiDict

    headers, body = request["headers"], request["body"]
    is_form = headers.get("content-type", "").startswith("application/x-www-form-urlencoded")
    parameters = MultiDict(parse_qsl(body, keep_blank_values=True)) if is_form else body
    if not is_form and "bodySHA256=" not in request["url"]:
        raise ValueError("nothing covers the body")
    algorithm = get_signature_algorithm(headers.get(SIGNATURE_SETTINGS_HEADER.lower()))
    validator = RequestValidator(request["key"])
    return validator.validate(request["url"], parameters, headers.get("x-twilio-signature", ""), algorithm)


def http_message_signatures(request):
    """The key is `{"algorithm", "keys": {keyid: PEM or base64}, "label"}`; a label is asked for, or all of ours.

    Of another profile it has the `tag` and the `components` too."""
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from http_message_signatures import HTTPMessageVerifier, HTTPSignatureKeyResolver, algorithms

    known = {
        "ed25519": algorithms.ED25519,
        "ecdsa-p256-sha256": algorithms.ECDSA_P256_SHA256,
        "rsa-pss-sha512": algorithms.RSA_PSS_SHA512,
        "hmac-sha256": algorithms.HMAC_SHA256,
    }
    keys = request["key"]["keys"]

    class Resolver(HTTPSignatureKeyResolver):
        def resolve_public_key(self, key_id):
            key = keys[key_id]
            return load_pem_public_key(key.encode()) if key.startswith("-----") else base64.b64decode(key)

    verifier = HTTPMessageVerifier(
        signature_algorithm=known[request["key"]["algorithm"]], key_resolver=Resolver()
    )
    message = SimpleNamespace(method=request["method"], url=request["url"], headers=request["headers"])
    components = ["@method", "@authority", "@path", "@query", "content-digest", "content-type"]
    components = request["key"].get("components", components)
    results = verifier.verify(
        message,
        expect_tag=request["key"].get("tag", "webhook"),
        expect_label=request["key"].get("label"),
        require_components=components,
        body=request["body"].encode() if "content-digest" in components else None,
    )
    return len(results) > 0


for line in sys.stdin:
    request = json.loads(line)
    try:
        answer = {"valid": bool(globals()[request["library"]](request))}
    except Exception as fault:  # how most of them say no
        answer = {"valid": False, "error": f"{type(fault).__name__}: {fault}"}
    print(json.dumps(answer), flush=True)
