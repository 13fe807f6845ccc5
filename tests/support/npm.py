"""Programs from npm for tests: the packages that a folder's package-lock.json pins, installed below the build directory."""
import fcntl
import os
import shutil
import subprocess
import unittest

INSTALL_TIMEOUT_S = 240


def skip(reason):
    """A machine without npm, or without a way to its packages, skips; on CI that is a failure."""
    if "CI" in os.environ:
        raise AssertionError(reason)
    raise unittest.SkipTest(reason)


def read(path):
    with open(path, "rb") as file:
        return file.read()


class Packages:
    def __init__(self, pinned, directory):
        self.pinned = pinned
        self.directory = directory

    def run(self, *command, **options):
        """In the directory. Returns what it prints; fails with that if it fails."""
        done = subprocess.run(command, cwd=self.directory, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, check=False, **options)
        if done.returncode != 0:
            raise AssertionError(f"{' '.join(command)} ends with {done.returncode}:\n{done.stdout}")
        return done.stdout

    def tool(self, name):
        return f"{self.directory}/node_modules/.bin/{name}"

    def install(self):
        """Copies what is in `pinned` to the directory and installs what its package-lock.json says, unless that is there."""
        if not shutil.which("node") or not shutil.which("npm"):
            skip("nodejs and npm are needed: ./install-packages.sh test")
        os.makedirs(self.directory, exist_ok=True)
        with open(f"{self.directory}/lock", "w", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the tests run side by side
            for name in os.listdir(self.pinned):
                shutil.copyfile(f"{self.pinned}/{name}", f"{self.directory}/{name}")
            wanted = read(f"{self.pinned}/package-lock.json")
            installed = f"{self.directory}/installed"  # written last, so what it names is complete
            if os.path.exists(installed) and read(installed) == wanted:
                return
            try:
                self.run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", "--loglevel=error",
                         timeout=INSTALL_TIMEOUT_S)
            except (AssertionError, subprocess.TimeoutExpired) as error:
                skip(f"the packages of {self.pinned} cannot be installed: {error}")
            with open(installed, "wb") as file:
                file.write(wanted)
