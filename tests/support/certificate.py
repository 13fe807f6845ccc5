"""Certificates for tests, made by openssl(1)."""
import datetime
import os
import subprocess
import tempfile

DAY_S = 86400

# Of openssl-ca(1), which can be told when a certificate begins and ends.
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


def sign(request, certificate, begins_in_s, ends_in_s, *options):
    """By openssl-ca(1), in whose options the authority is."""
    begin, end = (datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=each)
                  for each in (begins_in_s, ends_in_s))
    with tempfile.TemporaryDirectory() as directory:
        with open(f"{directory}/config", "w", encoding="ascii") as file:
            file.write(AUTHORITY.format(directory=directory))
        with open(f"{directory}/index", "w", encoding="ascii"):
            pass
        openssl("ca", "-batch", "-notext", "-config", f"{directory}/config", "-in", request, "-out", certificate,
                "-startdate", f"{begin:%Y%m%d%H%M%SZ}", "-enddate", f"{end:%Y%m%d%H%M%SZ}", *options)


def make_certificate(path, name, begins_in_s=-60):
    """A certificate of its own authority, and its key, in one file."""
    openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
            "-keyout", f"{path}.key", "-out", f"{path}.request")
    sign(f"{path}.request", f"{path}.crt", begins_in_s, begins_in_s + DAY_S, "-selfsign", "-keyfile", f"{path}.key")
    join(path)


class Authority:
    """Issues certificates of clients."""

    def __init__(self, directory):
        os.mkdir(directory)
        self.directory = directory
        self.certificate = f"{directory}/ca.crt"
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=authority",
                "-days", "1", "-keyout", f"{directory}/ca.key", "-out", self.certificate)

    def issue(self, name, names="", ends_in_s=DAY_S):
        """The path of a file with a certificate for the CN `name`, and its key. `names`: its subjectAltName, as in
        x509v3_config(5)."""
        path = tempfile.mkstemp(dir=self.directory, suffix=".pem")[1]
        openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
                "-keyout", f"{path}.key", "-out", f"{path}.request")
        with open(f"{path}.extensions", "w", encoding="ascii") as file:
            file.write(f"subjectAltName = {names}\n" if names else "keyUsage = digitalSignature\n")
        sign(f"{path}.request", f"{path}.crt", 0, ends_in_s, "-extfile", f"{path}.extensions", "-cert", self.certificate,
             "-keyfile", f"{self.directory}/ca.key")
        join(path)
        return path


def join(path):
    """The key and the certificate beside it become one file."""
    with open(f"{path}.new", "w", encoding="ascii") as both:
        for part in (f"{path}.key", f"{path}.crt"):
            with open(part, encoding="ascii") as file:
                both.write(file.read())
    os.rename(f"{path}.new", path)
