"""Bytes that only the process which asked for them can read, on their way through the database.

Whoever asks makes a key that never leaves its memory; whoever answers seals for it, with a key of its own for this one
answer. What is stored meanwhile, and in a backup taken meanwhile, is of use to nobody else.
"""

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_NONCE = bytes(12)  # each key seals one message


class Opener:
    """Opens what was sealed `for_whom`."""

    def __init__(self) -> None:
        self._key = X25519PrivateKey.generate()
        self.for_whom = self._key.public_key().public_bytes_raw()

    def open(self, sealed: bytes, *, about: bytes) -> bytes:
        """What was sealed about this. Raises ValueError where it was not, or not for this process."""
        sender, body = sealed[:32], sealed[32:]
        shared = self._key.exchange(X25519PublicKey.from_public_bytes(sender))
        try:
            return _cipher(shared, sender + self.for_whom).decrypt(_NONCE, body, about)
        except InvalidTag:
            raise ValueError("not sealed for this process") from None


def seal(body: bytes, *, for_whom: bytes, about: bytes) -> bytes:
    """`body`, for the holder of that key alone, and only as an answer to this."""
    key = X25519PrivateKey.generate()
    sender = key.public_key().public_bytes_raw()
    shared = key.exchange(X25519PublicKey.from_public_bytes(for_whom))
    return sender + _cipher(shared, sender + for_whom).encrypt(_NONCE, body, about)


def _cipher(shared: bytes, both: bytes) -> AESGCM:
    return AESGCM(HKDF(SHA256(), 32, salt=None, info=b"variantd question" + both).derive(shared))
