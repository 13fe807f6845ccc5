"""What becomes of the real daemon's promises when somebody deletes, replaces, links or damages its store's files: nothing
that was acknowledged is lost without a word.
"""
import os
import shutil
import sys
import unittest

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.support.portwayd import Ended, Portwayd, isolate, wait_until  # noqa: E402

SETTINGS = ["profiles.default.max_forwarded_ports=1000", "proxy.drain_timeout_s=0"]
PATH = "/instances/vm-1/port-forwards"


class StoreFiles(unittest.TestCase):
    def setUp(self):
        isolate()

    def create(self, node, status=201):
        answer = node.call("POST", PATH, {"guest_port": 3000})
        self.assertEqual(answer.status, status, answer)
        return answer

    def ports(self, node):
        return {forward["host_port"] for forward in node.call("GET", PATH + "?limit=1000").json()["port_forwards"]}

    def test_files_that_are_deleted_are_written_again(self):
        for delete in (lambda store: [os.unlink(store + suffix) for suffix in ("", "-wal", "-shm", ".lock")],
                       os.unlink, lambda store: os.unlink(store + "-wal"),
                       lambda store: shutil.rmtree(os.path.dirname(store))):
            for change in (True, False):  # else it is noticed without one
                with self.subTest(delete=delete, change=change), Portwayd(*SETTINGS, start=False) as node:
                    store = f"{node.directory}/store/portway.db"
                    node.settings.append(f"store.path={store}")
                    node.start()
                    node.put_instance("vm-1", tap="tap0")
                    for _ in range(10):
                        self.create(node)
                    delete(store)
                    if change:
                        self.create(node)
                    else:
                        self.assertTrue(wait_until(lambda node=node: "have been written again" in node.output()))
                    known = self.ports(node)
                    self.assertEqual(len(known), 10 + change)
                    self.assertEqual(node.call("GET", "/readyz").status, 200)
                    node.kill()
                    node.start()
                    self.assertEqual(self.ports(node), known)

    def test_a_file_that_was_replaced_is_left_alone_and_changes_are_refused(self):
        with Portwayd(*SETTINGS) as node:
            store = f"{node.directory}/portway.db"
            node.put_instance("vm-1", tap="tap0")
            self.create(node)
            shutil.copy(store, store + ".backup")
            os.rename(store + ".backup", store)
            answer = self.create(node, 503)
            self.assertEqual(answer.json()["code"], "store_unavailable")
            self.assertIn("portway.db is another file now", answer.json()["detail"])
            ready = node.call("GET", "/readyz")
            self.assertEqual((ready.status, ready.json()["code"]), (503, "store_unavailable"))
            self.assertTrue(wait_until(lambda: "portway.db is another file now" in node.output()))
            self.assertEqual(len(self.ports(node)), 1)

            os.rename(store, store + ".backup")
            self.assertTrue(wait_until(lambda: node.call("GET", "/readyz").status == 200))
            self.create(node)
            known = self.ports(node)
            node.kill()
            node.start()
            self.assertEqual(self.ports(node), known)

    def test_a_second_daemon_does_not_start_on_a_hard_link_of_it(self):
        with Portwayd(*SETTINGS) as first, Portwayd(*SETTINGS, start=False) as second:
            os.link(f"{first.directory}/portway.db", f"{second.directory}/portway.db")
            with self.assertRaisesRegex(Ended, "another portwayd has it open"):
                second.start()
            first.put_instance("vm-1", tap="tap0")
            self.create(first)

    def test_a_damaged_log_is_reported(self):
        with Portwayd(*SETTINGS) as node:
            node.put_instance("vm-1", tap="tap0")
            for _ in range(10):
                self.create(node)
            node.kill()
            with open(f"{node.directory}/portway.db-wal", "r+b") as log:
                log.seek(-3 * 4120, os.SEEK_END)
                log.write(b"\0" * 100)
            self.assertNotIn("is lost", node.output())
            # The first start after it may fail for another reason, and takes the evidence away.
            node.settings.append("proxy.io_backend=uring")
            with self.assertRaisesRegex(Ended, "RLIMIT_MEMLOCK"):
                node.start(wrapper=("setpriv", "--bounding-set=-ipc_lock,-sys_resource", "prlimit", "--memlock=0"))
            node.settings.pop()
            self.assertIn("is lost", node.output())
            node.start()
            self.assertLess(len(self.ports(node)), 10)
            node.kill()
            said = node.output().count("is lost")
            node.start()
            self.assertEqual(node.output().count("is lost"), said, "once")


if __name__ == "__main__":
    unittest.main()
