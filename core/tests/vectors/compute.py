"""Computes stored_formats.json, the frozen vectors of everything that Keyfold stores sealed.

An implementation of its own, from the description of the formats: HKDF (RFC 5869) written out over Python's hmac,
AES-256-GCM from the package `cryptography` (OpenSSL). Run it as `python3 compute.py > stored_formats.json`.
The formats are stored by installations: a change of any line of the output breaks their data.
"""

import base64
import hashlib
import hmac
import json
import struct
import uuid

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM


def main():
    root_id = root_key_id(ROOT)
    digest = metadata_digest("payments/db", 1_750_000_000_123_456, "jürgen@example.com")
    recovery_id = key_id(RECOVERY, b"keyfold/v1/recovery-key-id")
    places = associated_data(digest, root_id, recovery_id)
    fields = payload({"password": b"correct horse", "CA.crt": bytes([0, 255, 10]), "empty": b""})
    blobs = [
        ("payload", fields, DEK, DEK_ID, 1),
        ("payload", b"", DEK, DEK_ID, 1),
        ("dek", DEK, KEK, KEK_ID, KEK_VERSION),
        ("kek", KEK, RWK, RWK_ID, RWK_VERSION),
        ("rwk", RWK, ROOT, root_id, 1),
        ("rwk-recovery", RWK, RECOVERY, recovery_id, 1),
        ("recovery-key", RECOVERY, RWK, RWK_ID, RWK_VERSION),
    ]
    vectors = {
        "root_key_id": str(uuid.UUID(bytes=root_id)),
        "recovery_key_id": str(uuid.UUID(bytes=recovery_id)),
        "metadata_digest": digest.hex(),
        "associated_data": {place: data.hex() for place, data in places.items()},
        "payload_encoding": {"no_fields": payload({}).hex(), "three_fields": fields.hex()},
        "blobs": [blob_vector(places, 1, seed, *blob) for seed, blob in enumerate(blobs)],
        "blobs_of_suite_2": [blob_vector(places, 2, seed, *blob) for seed, blob in enumerate(blobs)],
        "row_mac": row_mac(),
        "certificate": certificate(),
    }
    print(json.dumps(vectors, indent=2))


def run(start, length=16):
    """Bytes that count up from start."""
    return bytes((start + i) % 256 for i in range(length))


INSTALLATION, KEYSPACE, SECRET = run(0x10), run(0x20), run(0x30)
DEK_ID, KEK_ID, RWK_ID = run(0x40), run(0x50), run(0x60)
VERSION, KEK_VERSION, RWK_VERSION = 0x01020304, 0x05060708, 0x090A0B0C
ROOT, RWK, KEK, DEK = run(0x00, 32), run(0x80, 32), run(0xA0, 32), run(0xC0, 32)
RECOVERY = run(0xE0, 32)


def associated_data(digest, root_id, recovery_id):
    version, kek_version, rwk_version = (struct.pack(">I", v) for v in (VERSION, KEK_VERSION, RWK_VERSION))
    secret = INSTALLATION + KEYSPACE + SECRET + version + DEK_ID
    return {
        "payload": string("keyfold/v1/payload") + secret + digest,
        "dek": string("keyfold/v1/dek") + secret + KEK_ID + kek_version,
        "kek": string("keyfold/v1/kek") + INSTALLATION + KEYSPACE + string("data") + KEK_ID + kek_version + root_id,
        "rwk": string("keyfold/v1/rwk") + INSTALLATION + RWK_ID + rwk_version + root_id,
        "rwk-recovery": string("keyfold/v1/rwk-recovery") + INSTALLATION + RWK_ID + rwk_version + recovery_id,
        "ca-key": string("keyfold/v1/ca-key") + INSTALLATION + version + KEK_ID + kek_version,
        "recovery-key": string("keyfold/v1/recovery-key") + INSTALLATION + RWK_ID + rwk_version + recovery_id,
    }


def blob_vector(places, suite, seed, place, plaintext, key, key_id, key_version):
    salt, nonce = run(seed, 32), run(0xF0 + seed, 12)
    return {
        "place": place,
        "key": key.hex(),
        "key_id": str(uuid.UUID(bytes=key_id)),
        "key_version": key_version,
        "salt_and_nonce": (salt + nonce).hex(),
        "plaintext": plaintext.hex(),
        "blob": seal(suite, key, key_id, key_version, places[place], plaintext, salt, nonce).hex(),
    }


def seal(suite, key, key_id, key_version, place, plaintext, salt, nonce):
    hash = {1: hashlib.sha512, 2: hashlib.sha256}[suite]
    info = f"keyfold/v1/suite-{suite}/".encode()
    prk = hkdf_extract(salt, key, hash)
    commitment = hkdf_expand(prk, info + b"commitment", 32, hash)
    header = b"KF" + struct.pack(">H", suite) + key_id + struct.pack(">I", key_version) + salt + nonce + commitment
    encryption_key = hkdf_expand(prk, info + b"encryption-key", 32, hash)
    return header + AESGCM(encryption_key).encrypt(nonce, plaintext, header + place)


def payload(fields):
    out = bytes([1]) + struct.pack(">I", len(fields))
    for name, value in sorted(fields.items(), key=lambda field: field[0].encode()):
        out += string(name) + struct.pack(">I", len(value)) + value
    return out


def row_mac():
    row = string("keyfold/v1/row") + string("keks") + INSTALLATION
    row += b"u" + KEK_ID + b"n" + b"s" + string("data") + b"i" + struct.pack(">q", -7) + b"t" + b"f"
    row += b"b" + string("\0ü") + b"m" + struct.pack(">q", 1_750_000_000_123_456)
    prk = hmac.new(bytes(32), KEK, hashlib.sha256).digest()
    subkey = hmac.new(prk, b"keyfold/v1/row-mac" + b"\x01", hashlib.sha256).digest()
    return {"key": KEK.hex(), "tag": hmac.new(subkey, row, hashlib.sha256).hexdigest()}


def certificate():
    names = ["foreign-keys", "references", "blob-headers", "quarantine", "trigger"]
    body = {
        "v": 1,
        "installation": str(uuid.UUID(bytes=INSTALLATION)),
        "keyspace": "payments",
        "keyspace_id": str(uuid.UUID(bytes=KEYSPACE)),
        "purpose": "data",
        "kek": str(uuid.UUID(bytes=KEK_ID)),
        "version": 3,
        "created_at": "2026-01-02T03:04:05.000006Z",
        "deactivated_at": "2026-04-02T03:04:05Z",
        "destroyed_at": "2026-05-09T03:04:05.123456Z",
        "wrapped_sha256": hashlib.sha256(KEK).hexdigest(),
        "checks": [{"name": name, "found": f"{at} für {name}"} for at, name in enumerate(names)],
        "does_not_reach": "backups",
        "requested_by": "people/jürgen",
        "requested_at": "2026-05-02T03:04:05Z",
    }
    text = json.dumps(body, separators=(",", ":")).encode()
    pair = Ed25519PrivateKey.from_private_bytes(DEK)
    message = string("keyfold/v1/destruction-certificate") + KEK_ID + hashlib.sha256(text).digest()
    file = {
        "certificate": base64.b64encode(text).decode(),
        "keyId": str(uuid.UUID(bytes=KEK_ID)),
        "publicKey": base64.b64encode(pair.public_key().public_bytes_raw()).decode(),
        "signature": base64.b64encode(pair.sign(message)).decode(),
    }
    return {"seed": DEK.hex(), "body": text.decode(), "file": json.dumps(file, separators=(",", ":"))}


def metadata_digest(path, created_at_micros, created_by):
    encoded = string("keyfold/v1/metadata") + string(path) + struct.pack(">q", created_at_micros) + string(created_by)
    return hashlib.sha256(encoded).digest()


def root_key_id(root):
    return key_id(root, b"keyfold/v1/root-key-id")


def key_id(key, info):
    raw = hkdf_expand(hkdf_extract(b"", key), info, 16)
    return raw[:6] + bytes([raw[6] & 0x0F | 0x80]) + raw[7:8] + bytes([raw[8] & 0x3F | 0x80]) + raw[9:]


def string(text):
    return struct.pack(">I", len(text.encode())) + text.encode()


def hkdf_extract(salt, key, hash=hashlib.sha512):
    return hmac.new(salt or bytes(hash().digest_size), key, hash).digest()


def hkdf_expand(prk, info, length, hash=hashlib.sha512):
    out, block = b"", b""
    while len(out) < length:
        block = hmac.new(prk, block + info + bytes([len(out) // hash().digest_size + 1]), hash).digest()
        out += block
    return out[:length]


main()
