"""X.509 as both sides need it: P-256 keys, signing requests, certificates, who a certificate is.

The agent imports `cryptography` through this module only when it enrolls or renews. Certificates travel
in DER and are stored in PEM. A P-256 key, ECDSA with SHA-256 and TLS 1.3 throughout.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shared.ids import parse_id, show_id
from shared.moment import SECOND

Key = ec.EllipticCurvePrivateKey

_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----\n?", re.DOTALL)

URI_SCHEME = "variantd://"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who an agent certificate is: project and agent uid, serial and end (microseconds)."""

    project_id: bytes
    agent_uid: bytes
    serial: int
    not_after: int


def new_key() -> Key:
    """A fresh P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_to_pem(key: Key) -> bytes:
    """The key as unencrypted PKCS#8 PEM; the file it goes to is 0600."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def key_from_pem(pem: bytes) -> Key:
    """The P-256 key of a PEM file. Raises ValueError for any other kind."""
    key = load_pem_private_key(pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("not an elliptic-curve key")
    return key


def keys_from_pem(pem: bytes) -> list[Key]:
    """Every private key of a PEM file, whatever else is in it."""
    return [key_from_pem(block) for block in _KEY.findall(pem)]


def new_signing_request(key: Key, name: str) -> bytes:
    """A PKCS#10 request (DER) that proves possession of `key`; it has of the name what fits into one, 64 bytes."""
    fitting = name.encode(errors="replace")[:64].decode(errors="ignore")
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, fitting)] if fitting else [])
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject)
        .sign(key, SHA256())
        .public_bytes(Encoding.DER)
    )


def sign(key: Key, message: bytes) -> bytes:
    """ECDSA-SHA256 over `message`."""
    return key.sign(message, ec.ECDSA(SHA256()))


def signed_by(certificate_der: bytes, signature: bytes, message: bytes) -> bool:
    """Whether `signature` over `message` is by the key of the certificate."""
    key = x509.load_der_x509_certificate(certificate_der).public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return False
    try:
        key.verify(signature, message, ec.ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True


def requested_by(certificate_der: bytes, signing_request: bytes) -> bool:
    """Whether the PKCS#10 request (DER) asks for the certificate's own key and is signed by it.

    Raises ValueError where either is malformed.
    """
    request, public = _request(signing_request)
    key = x509.load_der_x509_certificate(certificate_der).public_key()
    return public == key and request.is_signature_valid


def certificates(pem: bytes) -> list[bytes]:
    """Every certificate of a PEM file, in PEM of its own."""
    return [found.public_bytes(Encoding.PEM) for found in x509.load_pem_x509_certificates(pem)]


def belongs(key: Key, pem: bytes) -> bool:
    """Whether the key is that of the first certificate of a PEM file."""
    return x509.load_pem_x509_certificate(pem).public_key() == key.public_key()


def pem_to_der(pem: bytes) -> bytes:
    """The first certificate of a PEM file, in DER."""
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


def der_to_pem(der: bytes) -> bytes:
    """A DER certificate as PEM. Raises ValueError where it is not one."""
    return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)


def not_after(pem: bytes) -> int:
    """When the first certificate of a PEM file ends, microseconds."""
    return int(x509.load_pem_x509_certificate(pem).not_valid_after_utc.timestamp()) * SECOND


def not_before(pem: bytes) -> int:
    """When the first certificate of a PEM file began, microseconds."""
    return int(x509.load_pem_x509_certificate(pem).not_valid_before_utc.timestamp()) * SECOND


def identity(pem: bytes) -> Identity | None:
    """Who an agent's certificate (PEM) is; None where it is no agent's."""
    certificate = x509.load_pem_x509_certificate(pem)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    for uri in names.get_values_for_type(x509.UniformResourceIdentifier):
        project, _, uid = uri.removeprefix(URI_SCHEME).partition("/")
        project_id, agent_uid = parse_id(project), parse_id(uid)
        if uri.startswith(URI_SCHEME) and project_id and agent_uid:
            return Identity(
                project_id=project_id,
                agent_uid=agent_uid,
                serial=certificate.serial_number,
                not_after=int(certificate.not_valid_after_utc.timestamp()) * SECOND,
            )
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """A certificate authority: its key and its certificate in PEM.

    Server and agent certificates carry exactly one extended key usage each, so neither can pose as the
    other.
    """

    key: Key
    certificate: bytes

    @property
    def der(self) -> bytes:
        """The certificate in DER."""
        return pem_to_der(self.certificate)

    def issued(self, certificate_der: bytes) -> bool:
        """Whether this authority signed the certificate. Raises ValueError where it is not one."""
        certificate = x509.load_der_x509_certificate(certificate_der)
        try:
            certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(self.certificate))
        except (InvalidSignature, TypeError, ValueError):
            return False
        return True

    def issue_server(self, names: list[str], *, now: int, days: int = 90) -> tuple[bytes, bytes]:
        """(certificate, key) in PEM for a listener reachable under `names` (DNS names or addresses)."""
        key = new_key()
        alternatives = x509.SubjectAlternativeName([_general_name(name) for name in names])
        pem = self._issue(
            key.public_key(), names[0], alternatives, ExtendedKeyUsageOID.SERVER_AUTH, now=now, days=days
        )
        return pem, key_to_pem(key)

    def issue_agent(
        self, signing_request: bytes, *, project_id: bytes, agent_uid: bytes, now: int, days: int = 30
    ) -> bytes:
        """A certificate (PEM) for the public key of `signing_request`; nothing else of it is used.

        Raises ValueError where the request is malformed, not P-256, or not signed by its own key.
        """
        request, public = _request(signing_request)
        if not request.is_signature_valid:
            raise ValueError("the signing request is not signed by its own key")
        uri = f"{URI_SCHEME}{show_id(project_id)}/{show_id(agent_uid)}"
        alternatives = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
        usage = ExtendedKeyUsageOID.CLIENT_AUTH
        return self._issue(public, show_id(agent_uid), alternatives, usage, now=now, days=days)

    def _issue(
        self,
        public: ec.EllipticCurvePublicKey,
        name: str,
        alternatives: x509.SubjectAlternativeName,
        usage: x509.ObjectIdentifier,
        *,
        now: int,
        days: int,
    ) -> bytes:
        issuer = x509.load_pem_x509_certificate(self.certificate)
        return (
            _builder(public, name, now=now, days=days)
            .issuer_name(issuer.subject)
            .add_extension(alternatives, critical=False)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .sign(self.key, SHA256())
            .public_bytes(Encoding.PEM)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorities:
    """The authorities of an installation: one, or two while the second takes the place of the first.

    Meanwhile listeners are certified by the first, which every agent trusts already, and agents by the second: each
    certificate that an agent renews makes it trust both and belong to the second.
    """

    first: Authority
    second: Authority | None = None

    @property
    def issuing(self) -> Authority:
        """Certifies agents."""
        return self.second or self.first

    @property
    def ders(self) -> list[bytes]:
        """What agents trust, in DER."""
        return [self.first.der, *([self.second.der] if self.second else [])]

    @property
    def bundle(self) -> bytes:
        """What everybody trusts, in PEM."""
        return self.first.certificate + (self.second.certificate if self.second else b"")

    def issued(self, certificate_der: bytes) -> bool:
        """Whether one of them signed the certificate. Raises ValueError where it is not one."""
        return self.issuing.issued(certificate_der) or self.first.issued(certificate_der)


def new_authority(name: str, *, now: int, years: int = 10) -> Authority:
    """A self-signed authority of its own."""
    key = new_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _builder(key.public_key(), name, now=now, days=365 * years)
        .issuer_name(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, SHA256())
    )
    return Authority(key=key, certificate=certificate.public_bytes(Encoding.PEM))


def _request(der: bytes) -> tuple[x509.CertificateSigningRequest, ec.EllipticCurvePublicKey]:
    """A PKCS#10 request and its P-256 key. Raises ValueError where malformed or for another kind of key."""
    request = x509.load_der_x509_csr(der)
    try:
        public = request.public_key()
    except UnsupportedAlgorithm:
        public = None
    if not isinstance(public, ec.EllipticCurvePublicKey) or public.curve.name != "secp256r1":
        raise ValueError("the signing request's key is not P-256")
    return request, public


def _builder(public: ec.EllipticCurvePublicKey, name: str, *, now: int, days: int) -> x509.CertificateBuilder:
    start = datetime.fromtimestamp(now // SECOND, UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])]))
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - timedelta(minutes=5))  # hosts' clocks differ
        .not_valid_after(start + timedelta(days=days))
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)
