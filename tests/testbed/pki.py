"""Certificates and kubeconfigs of the test bed's cluster: one authority and one pair per component.

All secrets stay in the state folder. Every component is its own user, so that the audit log shows who sent a request.
"""

import base64
import datetime
import ipaddress
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.testbed.layout import (
    API_SERVICE_ADDRESS,
    API_URL,
    CLUSTER_DOMAIN,
    LINK_ADDRESS,
    MOST_NODES,
    NODE_ADDRESS,
    Layout,
    RealNodeNames,
    write,
)

VALID = datetime.timedelta(days=3650)
API_NAMES = (
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    f"kubernetes.default.svc.{CLUSTER_DOMAIN}",
)
API_ADDRESSES = ("127.0.0.1", NODE_ADDRESS, API_SERVICE_ADDRESS, LINK_ADDRESS)


@dataclass(frozen=True, slots=True)
class Subject:
    """The subject of a certificate. With names or addresses it is for a server and client, without for a client."""

    user: str
    group: str = ""
    names: Sequence[str] = ()
    addresses: Sequence[str] = ()


NODES = [RealNodeNames(number) for number in range(1, MOST_NODES + 1)]
SUBJECTS = {
    "apiserver": Subject("kube-apiserver", names=API_NAMES, addresses=API_ADDRESSES),
    "apiserver-kubelet-client": Subject("kube-apiserver-kubelet-client", "system:masters"),
    "front-proxy-client": Subject("front-proxy-client"),
    "admin": Subject("testbed-admin", "system:masters"),
    "controller-manager": Subject("system:kube-controller-manager"),
    "scheduler": Subject("system:kube-scheduler"),
    **{
        node.user: Subject(
            f"system:node:{node.name}",
            "system:nodes",
            names=(node.name, "localhost"),
            addresses=(node.address, "127.0.0.1"),
        )
        for node in NODES
    },
    "kube-proxy": Subject("system:kube-proxy"),
    "coredns": Subject("testbed-coredns", "system:masters"),
    "kwok": Subject("testbed-kwok", "system:masters"),
    "kube-router": Subject("testbed-kube-router", "system:masters"),
    "testbed": Subject("testbed", "system:masters"),
}
KUBECONFIGS = (
    "controller-manager",
    "scheduler",
    *(node.user for node in NODES),
    "kube-proxy",
    "coredns",
    "kwok",
    "kube-router",
    "testbed",
)


def ensure_pki(at: Layout) -> None:
    """Creates all keys and certificates together, unless they exist, and writes the kubeconfigs."""
    if not at.pki.is_dir():
        fresh = at.root / ".pki.partial"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        make_pki(fresh)
        fresh.rename(at.pki)
    for user in KUBECONFIGS:
        write(at.kubeconfig_of(user), kubeconfig(at, user), mode=0o600)
    write(at.kubeconfig, kubeconfig(at, "admin"), mode=0o600)


def pki_is_stale(at: Layout) -> bool:
    """Whether keys exist, but not all that are needed. Their authority is gone, so the cluster has to start anew."""
    return at.pki.is_dir() and not all(at.key(name).exists() for name in SUBJECTS)


def make_pki(folder: Path) -> None:
    """Fills `folder` with ca.crt, a .crt and a .key for each subject, and the service accounts' key pair."""
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = _authority(authority_key)
    write(folder / "ca.crt", _pem(authority))
    for name, subject in SUBJECTS.items():
        own = ec.generate_private_key(ec.SECP256R1())
        write(folder / f"{name}.crt", _pem(_certificate(subject, own, authority, authority_key)))
        write(folder / f"{name}.key", _private(own), mode=0o600)
    tokens = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = tokens.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    write(folder / "service-accounts.key", _private(tokens), mode=0o600)
    write(folder / "service-accounts.pub", public.decode())


def kubeconfig(at: Layout, user: str) -> str:
    """A kubeconfig that contains its certificates, so that a copy of it works anywhere."""
    name = SUBJECTS[user].user
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "testbed",
                "cluster": {"server": API_URL, "certificate-authority-data": _base64(at.pki / "ca.crt")},
            }
        ],
        "users": [
            {
                "name": name,
                "user": {
                    "client-certificate-data": _base64(at.certificate(user)),
                    "client-key-data": _base64(at.key(user)),
                },
            }
        ],
        "contexts": [{"name": "testbed", "context": {"cluster": "testbed", "user": name}}],
        "current-context": "testbed",
    }
    return yaml.safe_dump(document, sort_keys=False)


def _authority(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "qwen-testbed-ca")])
    builder = _builder(name, name, key.public_key())
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    return builder.sign(key, hashes.SHA256())


def _certificate(
    subject: Subject, key: ec.EllipticCurvePrivateKey, authority: x509.Certificate, signer: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, subject.user)]
    if subject.group:
        attributes.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, subject.group))
    builder = _builder(x509.Name(attributes), authority.subject, key.public_key())
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    builder = builder.add_extension(issuer, critical=False)
    uses = [ExtendedKeyUsageOID.CLIENT_AUTH]
    places: list[x509.GeneralName] = [x509.DNSName(name) for name in subject.names]
    places += [x509.IPAddress(ipaddress.ip_address(address)) for address in subject.addresses]
    if places:
        uses.append(ExtendedKeyUsageOID.SERVER_AUTH)
        builder = builder.add_extension(x509.SubjectAlternativeName(places), critical=False)
    builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    return builder.sign(signer, hashes.SHA256())


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    # One hour earlier, because the machine's clock may be changed between two uses of the test bed.
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=key,
        serial_number=x509.random_serial_number(),
        not_valid_before=start,
        not_valid_after=start + VALID,
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _private(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
