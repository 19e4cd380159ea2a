"""The certificates and keys of one local cluster: made fresh at its first start, kept with its data.

Four authorities: the cluster's (API server and all its clients), the front proxy's (aggregation; it must be another
one, or any client certificate could impersonate), KubeVirt's (virt-api's webhooks and aggregated API), and etcd's:
guests reach the host's loopback through QEMU's user networking, and etcd holds everything, so it lets nobody in but
the API server.
All keys are ECDSA P-256, but for service-account tokens, which kube-apiserver signs with RSA.

Beside them lies what controller and gateway sign with: the three SSH authorities, and the key of the gateway's links.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from machine_operator.kubevirt.authority import Authority

__all__ = ["CLIENTS", "KeyPair", "create_certificates", "key_pair"]

_SSH_AUTHORITIES = ("user", "host", "session")
_TOKEN_KEY_BYTES = 32

_LIFE = datetime.timedelta(days=3650)

_SERVICE_ACCOUNT = "system:serviceaccount"

CLIENTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "admin": ("admin", ("system:masters",)),
    "controller-manager": ("system:kube-controller-manager", ()),
    "scheduler": ("system:kube-scheduler", ()),
    "virt-api": (f"{_SERVICE_ACCOUNT}:kubevirt:kubevirt-apiserver", ()),
    "virt-controller": (f"{_SERVICE_ACCOUNT}:kubevirt:kubevirt-controller", ()),
    "virt-handler": (f"{_SERVICE_ACCOUNT}:kubevirt:kubevirt-handler", ()),
    "kubelet": ("system:node:hollow-0", ("system:nodes",)),
    "provisioner": (f"{_SERVICE_ACCOUNT}:kube-system:local-provisioner", ()),
    "operator": (f"{_SERVICE_ACCOUNT}:machine-operator:machine-operator", ()),
    "gateway": (f"{_SERVICE_ACCOUNT}:machine-operator:machine-operator-gateway", ()),
}
"""Identity -> (user name, groups), each a client certificate of the cluster's authority.

KubeVirt's webhooks trust its service accounts by exactly these names.
"""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate file and its key file."""

    certificate: Path
    key: Path


def key_pair(pki: Path, name: str) -> KeyPair:
    """Where the certificate and key called `name` lie."""
    return KeyPair(certificate=pki / f"{name}.crt", key=pki / f"{name}.key")


@dataclass(frozen=True, slots=True)
class _Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def create_certificates(pki: Path) -> None:
    """Make everything that is not there already.

    The directory appears in one step: a start that is killed in the middle leaves nothing that looks finished.
    SSH authorities and the token key hang on nothing else, so a cluster that was made before there were some gets
    just those.
    """
    if pki.exists():
        _credentials(pki)
        return
    draft = pki.with_name(f"{pki.name}.{os.getpid()}.new")
    draft.mkdir(parents=True, mode=0o700)
    cluster = _authority(draft, "cluster-ca", "local-cluster")
    front_proxy = _authority(draft, "front-proxy-ca", "front-proxy")
    kubevirt = _authority(draft, "kubevirt-ca", "kubevirt.io")
    etcd = _authority(draft, "etcd-ca", "etcd")
    local = ("localhost", "127.0.0.1")
    kubernetes = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "10.96.0.1")
    _issue(draft, "kube-apiserver", cluster, "kube-apiserver", names=(*kubernetes, *local))
    _issue(draft, "front-proxy", front_proxy, "front-proxy-client")
    _issue(draft, "etcd", etcd, "etcd", names=local, client=True)
    _issue(draft, "etcd-client", etcd, "kube-apiserver")
    for name, (user, groups) in CLIENTS.items():
        _issue(draft, name, cluster, user, groups=groups)
    service = ("virt-api.kubevirt.svc", *local)
    _issue(draft, "virt-api-serving", kubevirt, "virt-api.kubevirt.svc", names=service)
    _issue(draft, "handler-client", kubevirt, "kubevirt.io:system:client:virt-handler")
    _issue(draft, "virt-controller-serving", kubevirt, "virt-controller", names=local)
    _service_account_keys(draft)
    _credentials(draft)
    draft.rename(pki)


def _authority(pki: Path, file: str, name: str) -> _Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        _builder(subject, subject, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(authority=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    _write_pair(pki, file, certificate, key)
    return _Authority(certificate=certificate, key=key)


def _issue(
    pki: Path,
    file: str,
    authority: _Authority,
    name: str,
    *,
    groups: Iterable[str] = (),
    names: Iterable[str] = (),
    client: bool = False,
) -> None:
    """A certificate for serving where `names` are given, for being a client otherwise, for both with `client` too."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [
            *(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )
    served = list(names)
    usages = [ExtendedKeyUsageOID.SERVER_AUTH] if served else []
    if client or not served:
        usages.append(ExtendedKeyUsageOID.CLIENT_AUTH)
    builder = (
        _builder(subject, authority.certificate.subject, key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    )
    if served:
        alternatives = x509.SubjectAlternativeName([_general_name(item) for item in served])
        builder = builder.add_extension(alternatives, critical=False)
    _write_pair(pki, file, builder.sign(authority.key, hashes.SHA256()), key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        # An hour back: the clock of a laptop that just woke may be a little behind.
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + _LIFE)
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=not authority,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _write_pair(
    pki: Path, file: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
) -> None:
    pair = key_pair(pki, file)
    pair.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    _write_secret(pair.key, _private_pem(key))


def _private_pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )


def _service_account_keys(pki: Path) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    _write_secret(pki / "service-account.key", _private_pem(key))
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (pki / "service-account.pub").write_bytes(public)


def _credentials(pki: Path) -> None:
    for use in _SSH_AUTHORITIES:
        private, public = pki / f"ssh-{use}-ca", pki / f"ssh-{use}-ca.pub"
        if not private.exists():
            _write_secret(private, Authority.generate().private_bytes())
        authority = Authority.load(private.read_bytes())
        public.write_text(f"{authority.public} machine-operator {use} CA\n")
    token_key = pki / "token-key"
    if not token_key.exists():
        _write_secret(token_key, secrets.token_bytes(_TOKEN_KEY_BYTES))


def _write_secret(path: Path, content: bytes) -> None:
    """In one step, as what is there counts as finished."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    draft.rename(path)
