#!/usr/bin/python3
"""Kernel DNAT is the specification: the same scenarios through an nft rule and through the daemon on each io back end,
and what client and guest observe, side by side. The table is docs/dnat-fidelity.md; a difference that it does not have,
or has without a reason, fails. PORTWAY_UPDATE_REFERENCE=1 writes it anew.
"""
import os
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import network  # noqa: E402
import scenarios  # noqa: E402
import subjects  # noqa: E402

DOCUMENT = os.path.join(os.environ["PORTWAY_SOURCE_DIRECTORY"], "docs/dnat-fidelity.md")
BEGIN, END = "<!-- begin: tests/conformance -->\n", "<!-- end -->\n"


def observe(make):
    subject = make()
    seen = []
    try:
        for title, _, run in scenarios.ALL:
            try:
                seen.append(run(subject))
            except Exception as error:
                raise AssertionError(f"{subject.name}: {title}: {error!r}") from error
    finally:
        subject.close()
    return seen


def table(dnat, portway):
    rows = ["| what happens | nft DNAT | Portway | why it differs |", "|---|---|---|---|"]
    for (title, why, _), expected, seen in zip(scenarios.ALL, dnat, portway):
        rows.append(f"| {title} | {expected} | {'the same' if seen == expected else seen} | "
                    f"{'' if seen == expected else why or 'NO REASON'} |")
    return "\n".join(rows) + "\n"


class Conformance(unittest.TestCase):
    maxDiff = None

    def test_what_is_observed_is_what_the_document_says(self):
        network.require()
        dnat = observe(subjects.Dnat)
        uring = observe(lambda: subjects.Portway("uring"))
        epoll = observe(lambda: subjects.Portway("epoll"))
        titles = [title for title, _, _ in scenarios.ALL]
        self.assertEqual(list(zip(titles, uring)), list(zip(titles, epoll)), "the back ends differ")
        made = table(dnat, uring)
        print(made)
        self.assertNotIn("NO REASON", made)
        with open(DOCUMENT, encoding="utf-8") as file:
            document = file.read()
        before, rest = document.split(BEGIN)
        written, after = rest.split(END)
        if os.environ.get("PORTWAY_UPDATE_REFERENCE"):
            with open(DOCUMENT, "w", encoding="utf-8") as file:
                file.write(before + BEGIN + made + END + after)
        else:
            self.assertEqual(written, made, "docs/dnat-fidelity.md; PORTWAY_UPDATE_REFERENCE=1 writes it anew")


if __name__ == "__main__":
    unittest.main(verbosity=2, warnings="ignore")
