"""Certificates made for a test, valid around the real now."""
import datetime
import ipaddress

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def _alternative_name(host):
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def make_certificate(folder, hosts=('127.0.0.1', 'localhost'), name='server', days=(-1, 30)):
    """Writes a self-signed certificate and its key; returns their paths (text). days: validity around today."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, 'bullet-qmt test')])
    today = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None)
    builder = x509.CertificateBuilder(
        subject_name=subject, issuer_name=subject, public_key=key.public_key(),
        serial_number=x509.random_serial_number(), not_valid_before=today + datetime.timedelta(days=days[0]),
        not_valid_after=today + datetime.timedelta(days=days[1]))
    names = x509.SubjectAlternativeName([_alternative_name(host) for host in hosts])
    builder = builder.add_extension(names, critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    certificate = builder.sign(key, hashes.SHA256())
    cert_path, key_path = str(folder / (name + '.pem')), str(folder / (name + '.key'))
    with open(cert_path, 'wb') as file:
        file.write(certificate.public_bytes(serialization.Encoding.PEM))
    with open(key_path, 'wb') as file:
        file.write(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL,
                                     serialization.NoEncryption()))
    return cert_path, key_path
