"""Certificates for tests, made by openssl(1)."""
import datetime
import os
import subprocess
import tempfile

#Of openssl - ca(1), which can tell when a certificate begins.
AUTHORITY = """
[ca]
default_ca = authority
[authority]
new_certs_dir = {directory}
database = {directory}/index
rand_serial = yes
default_md = sha256
policy = names
x509_extensions = host
[names]
commonName = supplied
[host]
subjectAltName = IP:127.0.0.1
"""


def openssl(*arguments):
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def make_certificate(path, name, begins_in_s=-60):
    """A certificate of its own authority, and its key, in one file."""
    begin = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=begins_in_s)
    with tempfile.TemporaryDirectory() as directory:
        with open(f"{directory}/config", "w", encoding="ascii") as file:
            file.write(AUTHORITY.format(directory=directory))
        with open(f"{directory}/index", "w", encoding="ascii"):
            pass
        openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
                "-keyout", f"{path}.key", "-out", f"{directory}/request")
        openssl("ca", "-batch", "-selfsign", "-notext", "-config", f"{directory}/config", "-keyfile", f"{path}.key", "-in",
                f"{directory}/request", "-out", f"{path}.crt", "-startdate", f"{begin:%Y%m%d%H%M%SZ}", "-days", "1")
    join(path)


class Authority:
    """Issues certificates of clients."""

    def __init__(self, directory):
        os.mkdir(directory)
        self.directory = directory
        self.certificate = f"{directory}/ca.crt"
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=authority",
                "-days", "1", "-keyout", f"{directory}/ca.key", "-out", self.certificate)

    def issue(self, name, names=""):
        """The path of a file with a certificate for the CN `name`, and its key. `names`: its subjectAltName, as in
        x509v3_config(5)."""
        path = tempfile.mkstemp(dir=self.directory, suffix=".pem")[1]
        openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
                "-keyout", f"{path}.key", "-out", f"{path}.request")
        with open(f"{path}.extensions", "w", encoding="ascii") as file:
            file.write(f"subjectAltName = {names}\n" if names else "keyUsage = digitalSignature\n")
        openssl("x509", "-req", "-in", f"{path}.request", "-CA", self.certificate, "-CAkey", f"{self.directory}/ca.key",
                "-CAcreateserial", "-days", "1", "-extfile", f"{path}.extensions", "-out", f"{path}.crt")
        join(path)
        return path


def join(path):
    """The key and the certificate beside it become one file."""
    with open(f"{path}.new", "w", encoding="ascii") as both:
        for part in (f"{path}.key", f"{path}.crt"):
            with open(part, encoding="ascii") as file:
                both.write(file.read())
    os.rename(f"{path}.new", path)
