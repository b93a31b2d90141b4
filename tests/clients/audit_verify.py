"""Verifies an audit log and a checkpoint of it, by RFC 6962 and c2sp.org/signed-note, without code of outgate.

    audit_verify.py VERIFIER CHECKPOINT FILE...     the files in the order of their records, from the first one

Prints the number of records, or the fault.
"""

import base64
import hashlib
import json
import sys

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


def sha256(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def root(leaves):
    """The Merkle tree hash of RFC 6962 §2.1, word for word."""
    if not leaves:
        return sha256()
    if len(leaves) == 1:
        return sha256(b"\0", leaves[0])
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return sha256(b"\1", root(leaves[:split]), root(leaves[split:]))


def opened(verifier, note):
    """The size and the root of a signed checkpoint."""
    name, key_id, key = verifier.split("+", 2)
    kind = base64.b64decode(key)
    assert kind[:1] == b"\1", "the key is not Ed25519"
    assert sha256(name.encode(), b"\n", kind)[:4].hex() == key_id, "the key does not have its id"
    text, signatures = note.rsplit("\n\n", 1)
    for line in signatures.splitlines():
        dash, signer, signature = line.split(" ")
        signature = base64.b64decode(signature)
        if dash == "\u2014" and signer == name and signature[:4].hex() == key_id:
            Ed25519PublicKey.from_public_bytes(kind[1:]).verify(signature[4:], (text + "\n").encode())
            origin, size, tree_root = text.splitlines()[:3]
            assert origin == name, "the checkpoint is of another log"
            return int(size), base64.b64decode(tree_root)
    raise AssertionError("the checkpoint is not signed by this key")


def main(verifier, checkpoint, *files):
    lines = [line for file in files for line in open(file, "rb").read().split(b"\n")[:-1]]
    previous = bytes(32)
    for number, line in enumerate(lines):
        record = json.loads(line)
        assert record["seq"] == number, f"record {number} has the number {record['seq']}"
        assert record["prev"] == previous.hex(), f"record {number} does not follow the record before"
        previous = sha256(line)
    size, expected = opened(verifier, open(checkpoint, encoding="utf-8").read())
    assert size <= len(lines), f"the checkpoint has {size} records, the log {len(lines)}"
    assert root(lines[:size]) == expected, "the log does not have the root of the checkpoint"
    print(f"{len(lines)} records verify")


try:
    main(*sys.argv[1:])
except (AssertionError, InvalidSignature) as fault:
    sys.exit(f"broken: {fault or type(fault).__name__}")
