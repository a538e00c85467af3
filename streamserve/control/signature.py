"""Who signed a command: HMAC-SHA256 over the record's value, byte for byte, in a header of the record.

Which keys may sign, and whether one must, is state. The secrets are the reader's own, handed in; one whose secret is
missing here makes the reader hold, for it can tell neither a true command from a forged one nor do as others do.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from streamserve.control.outcome import Hold, Refused, Rejection
from streamserve.control.state import Signing, State
from streamserve.headers import Header

HEADER = "streamserve.signature"
NO_SECRETS: Mapping[str, bytes] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Key:
    """A key to sign with; its secret is not shown."""

    id: str
    secret: bytes = field(repr=False)


def sign(value: bytes, key: Key) -> bytes:
    """The header's value: the key's id, a colon, 64 hexadecimal digits in lower case."""
    return f"{key.id}:{_digest(value, key.secret)}".encode()


def _digest(value: bytes, secret: bytes) -> str:
    return hmac.digest(secret, value, "sha256").hex()


def signer(
    state: State, offset: int, value: bytes, headers: Sequence[Header], secrets: Mapping[str, bytes]
) -> str | Refused | Hold | None:
    """The listed key that signed this value; None: nobody did, and nobody had to.

    Where signing is off, a signature by a listed key is checked all the same, and one that can't be read or names
    another key is let be: so keys are tried out before they are required.
    """
    required = state.signing is Signing.REQUIRED
    found = [text for name, text in headers if name == HEADER]
    if not found:
        return Refused(Rejection.UNSIGNED, "commands of this topology must be signed") if required else None
    key, colon, digest = (found[0] or b"").decode(errors="backslashreplace").rpartition(":")
    if len(found) > 1 or not colon:
        detail = f"header {HEADER}: one is wanted, of the form <key id>:<digits>"
        return Refused(Rejection.BAD_SIGNATURE, detail) if required else None
    if key not in state.keys:
        return Refused(Rejection.UNKNOWN_KEY, f"key {key[:100]!r} is not listed") if required else None
    if key not in secrets:
        return Hold(
            f"the command at offset {offset} is signed by key {key}, whose secret is missing here: "
            "give this reader the secret and start it anew"
        )
    if not hmac.compare_digest(_digest(value, secrets[key]).encode(), digest.encode(errors="backslashreplace")):
        return Refused(Rejection.BAD_SIGNATURE, f"it is not what key {key} makes of this value")
    return key
