"""Fair use of the API over real HTTP: an owner that floods is told when to come back, and neither another owner nor an
admin feels it; so does a source of wrong keys, and a good key from the same address is served.
"""
import os
import re
import sys
import unittest

sys.path.insert(0, os.environ["PORTWAY_SOURCE_DIRECTORY"])
from tests.support.portwayd import Portwayd, isolate, read_answer  # noqa: E402

INSTANCE = "/instances/vm-1"
CONFIG = """
[guests]
networks = ["198.18.0.0/15"]
[api]
rate_limit_per_second = {rate}
rate_limit_burst = {burst}
wrong_keys_per_minute = {wrong}
"""


def left(answer):
    return int(re.fullmatch(r'"default";r=(\d+);t=\d+', answer.headers["ratelimit"])[1])


class FairUse(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        isolate()

    def setUp(self):
        self.node = self.enterContext(Portwayd(start=False, config=CONFIG.format(rate=0, burst=1, wrong=5)))
        self.node.settings.remove("api.rate_limit_per_second=0")  # the configuration's is reloaded
        self.node.start()
        self.assertEqual(self.node.put_instance("vm-1", owner="alice").status, 201)
        self.alice = self.node.tenant_key("alice")
        self.mallory = self.node.tenant_key("mallory")

    def limit(self, rate, burst):
        self.node.write_config(CONFIG.format(rate=rate, burst=burst, wrong=5))
        self.node.reload()

    def get(self, key):
        return self.node.call("GET", INSTANCE, key=key)

    def metric(self, reason):
        text = self.node.call("GET", "/metrics").body.decode()
        return int(re.search(rf'^portway_api_requests_throttled_total{{reason="{reason}"}} (\d+)$', text, re.MULTILINE)[1])

    def test_an_owner_that_floods_is_the_only_one_to_wait(self):
        self.assertNotIn("ratelimit", self.get(self.alice).headers)
        self.limit(rate=1, burst=30)
        answers = [self.get(self.mallory) for _ in range(60)]
        self.assertEqual(answers[0].headers["ratelimit-policy"], '"default";q=30;w=30')
        self.assertEqual((answers[0].status, left(answers[0])), (404, 29))
        refused = [answer for answer in answers if answer.status == 429]
        self.assertGreater(len(refused), 10)
        for answer in refused:
            self.assertEqual(answer.headers["content-type"], "application/problem+json")
            self.assertEqual((answer.json()["code"], answer.json()["limit"]), ("rate_limited", 30))
            self.assertEqual((answer.headers["retry-after"], left(answer)), ("1", 0))
        self.assertEqual((self.get(self.alice).status, left(self.get(self.alice))), (200, 28))
        admins = self.get(self.node.admin_key())
        self.assertEqual(admins.status, 200)
        self.assertGreater(left(admins), 200)
        self.assertEqual(self.metric("owner"), len(refused))
        self.assertEqual(self.metric("admin"), 0)
        self.limit(rate=0, burst=30)
        self.assertEqual(self.get(self.mallory).status, 404)

    def test_what_an_owner_cannot_pay_is_refused_before_its_body_is_read(self):
        self.limit(rate=1, burst=5)
        path = f"{INSTANCE}/port-forwards"
        created = self.node.call("POST", path, {"guest_port": 3000}, key=self.alice)
        self.assertEqual((created.status, left(created)), (201, 0))
        head = (f"POST {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {self.alice}\r\n"
                "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n")
        with self.node.send(head.encode(), finish=False) as connection:
            answer = read_answer(connection)
        self.assertEqual((answer.status, answer.json()["code"]), (429, "rate_limited"))
        self.assertIn(int(answer.headers["retry-after"]), range(1, 6))
        self.assertTrue(answer.headers["ratelimit"].endswith(f";t={answer.headers['retry-after']}"))

    def test_a_good_key_is_served_beside_wrong_ones(self):
        statuses = [self.get("pwk_wrong").status for _ in range(8)]
        self.assertEqual(statuses, [401] * 5 + [429] * 3)
        answer = self.get("pwk_wrong")
        self.assertIn(int(answer.headers["retry-after"]), range(1, 13))
        self.assertNotIn("www-authenticate", answer.headers)
        self.assertEqual(self.get(self.alice).status, 200)
        self.assertEqual(self.get(self.mallory).status, 404)
        self.assertEqual(self.get(None).status, 401)
        self.assertEqual(self.metric("wrong_key"), 4)


if __name__ == "__main__":
    unittest.main()
