"""From single runs to a table: medians, spread, ratios."""
import json
import os
import statistics
from typing import NamedTuple

# metric -> its title and its values: key, heading, decimals
VALUES = {
    "bulk": [("gbit_s", "Gbit/s (more is better)", 1), ("subject_s_gb", "subject CPU s/GB", 3),
             ("machine_s_gb", "machine CPU s/GB", 3)],
    "ping": [("per_s", "transactions/s (more is better)", 0), ("p50_us", "p50 us", 0), ("p99_us", "p99 us", 0),
             ("p999_us", "p99.9 us", 0), ("subject_us", "subject CPU us/transaction", 1), ("machine_us", "machine CPU us/transaction", 1)],
    "close": [("per_s", "connections/s (more is better)", 0), ("p99_us", "p99 us", 0),
              ("subject_us", "subject CPU us/connection", 1), ("machine_us", "machine CPU us/connection", 1),
              ("errors", "errors", 0)],
    "idle": [("held", "connections held", 0), ("rss_bytes", "user-space bytes/connection", 0), ("rss_mib", "RSS in all, MiB", 1),
             ("slab_bytes", "kernel bytes/connection, the load's ends included", 0)],
}
VALUES["isolation"] = [("p50_us", "p50 us", 0), ("p99_us", "p99 us", 0), ("worst_us", "worst us", 0)]
VALUES["mix"] = VALUES["ping"] + [("beside_gbit_s", "bulk beside it, Gbit/s", 1)]
MAIN_VALUE = {"bulk": "gbit_s", "ping": "per_s", "mix": "p99_us", "close": "per_s", "idle": "rss_bytes", "isolation": "worst_us"}

# What is aimed at, as ratios of Portway's medians in one run: metrics, value, to the best user-space peer, to nft DNAT.
AT_LEAST, AT_MOST = "at least", "at most"
TARGETS = [
    (("bulk1", "bulk8"), "gbit_s", (AT_LEAST, 1.2), (AT_LEAST, 0.85)),
    (("bulk1", "bulk8"), "machine_s_gb", (AT_MOST, 0.85), (AT_MOST, 1.2)),
    (("ping64x64",), "per_s", (AT_LEAST, 1.2), (AT_LEAST, 0.65)),
    (("ping64x64",), "machine_us", (AT_MOST, 0.85), (AT_MOST, 1.6)),
    (("ping64x64",), "p99_us", (AT_MOST, 0.85), None),
    (("ping64x4k", "ping64x16k"), "machine_us", (AT_MOST, 0.9), (AT_MOST, 1.45)),
    (("ping1x64",), "p50_us", (AT_MOST, 0.9), (AT_MOST, 1.1)),
    (("close",), "per_s", (AT_LEAST, 1.2), (AT_LEAST, 0.85)),
    (("close",), "machine_us", (AT_MOST, 0.85), None),
    (("mix",), "p99_us", (AT_MOST, 0.5), None),
]
# Of a bystander: the worst round trip beside a disturbance to this peer's, and p99 to the subject's own when it is quiet.
ISOLATION_PEER, ISOLATION_WORST, ISOLATION_P99 = "haproxy", (AT_MOST, 1), (AT_MOST, 2)
# Where a peer has no such disturbance, what comes closest.
CLOSEST = {"churn-transparent": "churn-plain"}
PEERS = ["haproxy-splice", "haproxy", "nginx", "socket-proxyd", "docker-proxy", "socat", "rootlesskit"]


class Titled(NamedTuple):
    kind: str
    title: str
    unit: str = ""  # of how much of it there was


def derive(kind, raw):
    """The values of a table from what the load generator printed."""
    if kind == "bulk":
        gigabytes = raw["bytes"] / 1e9
        return {"gbit_s": gigabytes * 8 / raw["seconds"], "subject_s_gb": raw["subject_cpu_s"] / gigabytes,
                "machine_s_gb": raw["machine_cpu_s"] / gigabytes}
    count = raw["transactions"] if kind in ("ping", "mix") else raw["connections"]
    if count == 0:
        raise ValueError("nothing was answered")
    values = {"per_s": count / raw["seconds"], "subject_us": raw["subject_cpu_s"] / count * 1e6,
              "machine_us": raw["machine_cpu_s"] / count * 1e6}
    if kind == "mix":
        values["beside_gbit_s"] = raw["bytes"] * 8 / 1e9 / raw["seconds"]
    return values | {key: raw[key] for key in ("p50_us", "p99_us", "p999_us", "errors") if key in raw}


def summarize(runs):
    """{metric: {subject: {value: {median, min, max, rounds}}}} of the runs that succeeded."""
    summary = {}
    for run in runs:
        if "values" in run:
            subjects = summary.setdefault(run["metric"], {})
            for key, value in run["values"].items():
                if value is None:
                    continue
                subjects.setdefault(run["subject"], {}).setdefault(key, {})[run["round"]] = value
    return {metric: {subject: {key: {"median": statistics.median(rounds.values()), "min": min(rounds.values()),
                                     "max": max(rounds.values()), "rounds": rounds}
                               for key, rounds in values.items()}
                     for subject, values in subjects.items()}
            for metric, subjects in summary.items()}


def in_order(summary, metrics, subjects):
    """The same, as ordered as these names."""
    return {metric: {name: summary[metric][name] for name in subjects if name in summary[metric]}
            for metric in metrics if metric in summary}


def ratio(value, reference):
    """The median of the rounds' own ratios; None where there is none."""
    ratios = [value["rounds"][number] / other for number, other in reference["rounds"].items()
              if number in value["rounds"] and other > 0]
    return statistics.median(ratios) if ratios else None


def cell(value, reference, decimals, has_process):
    if not has_process:
        return "-"
    text = f"{value['median']:,.{decimals}f}"
    if value["min"] != value["max"]:
        text += f" [{value['min']:,.{decimals}f}-{value['max']:,.{decimals}f}]"
    if reference and (found := ratio(value, reference)) is not None:
        text += f" **{found:.2f}x**"
    return text


def table(kind, subjects, titles, baseline, unaccounted):
    reference = subjects.get(baseline, {})
    lines = ["| subject | " + " | ".join(heading for _, heading, _ in VALUES[kind]) + " |",
             "|---|" + "---|" * len(VALUES[kind])]
    for name, values in subjects.items():
        cells = [cell(values[key], reference.get(key) if name != baseline else None, decimals,
                      name not in unaccounted or not key.startswith("subject")) for key, _, decimals in VALUES[kind]]
        lines.append(f"| {titles[name]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def heading(kind, value):
    return next(text for key, text, _ in VALUES[kind] if key == value)


def compare_with(value, target, ours, reference):
    """The cells of a target: the ratio, and whether it is met."""
    if target is None or reference is None or (found := ratio(ours[value], reference[value])) is None:
        return "-"
    direction, wanted = target
    met = found >= wanted if direction == AT_LEAST else found <= wanted
    return f"{found:.2f}x ({direction} {wanted:g}x: {'met' if met else '**not met**'})"


def times(value, ours, reference, decimals):
    """The ratio as a cell; a dash where one of them is missing or they have no round in common."""
    found = ratio(ours[value], reference[value]) if ours and reference else None
    return "-" if found is None else f"{found:.{decimals}f}x"


def targets(summary, metrics, titles, subject):
    lines = ["| metric | value | best peer | to the best peer | the bare loop to it | to nft DNAT |", "|---|---|---|---|---|---|"]
    for names, value, peer_target, dnat_target in TARGETS:
        for name in names:
            measured = summary.get(name, {})
            if subject not in measured:
                continue
            peers = [peer for peer in PEERS if peer in measured]
            best = (max if peer_target[0] == AT_LEAST else min)(
                peers, key=lambda peer: measured[peer][value]["median"], default=None)
            lines.append(f"| {metrics[name].title} | {heading(metrics[name].kind, value).split(' (')[0]} | {titles.get(best, '-')} | "
                         f"{compare_with(value, peer_target, measured[subject], measured.get(best))} | "
                         f"{times(value, measured.get('bare'), measured.get(best), 2)} | "
                         f"{compare_with(value, dnat_target, measured[subject], measured.get('nft-dnat'))} |")
    return "\n".join(lines)


def forwards_rows(summary, metrics):
    """Each metric's main value with 1,000 and 10,000 idle forwards, as a ratio to that with none."""
    many = [("portway-1000", "1,000"), ("portway-10000", "10,000")]
    lines = []
    for name, measured in summary.items():
        value = MAIN_VALUE[metrics[name].kind]
        few = measured.get("portway-uring")
        if few and any(subject in measured for subject, _ in many):
            cells = [times(value, measured.get(subject), few, 3) for subject, _ in many]
            lines.append(f"| {metrics[name].title} | {heading(metrics[name].kind, value).split(' (')[0]} | " + " | ".join(cells) + " |")
    head = ["| metric | value | " + " | ".join(title for _, title in many) + " |", "|---|---|" + "---|" * len(many)]
    return "\n".join(head + lines) if lines else ""


def plot(results, metrics, titles):
    """Bars for each metric's main value, one below the other: an SVG without scripts or fonts of its own."""
    left, width = 256, 450  # of the bars
    parts, y = [], 40
    for name, subjects in results["summary"].items():
        value = MAIN_VALUE[metrics[name].kind]
        decimals = next(decimals for key, _, decimals in VALUES[metrics[name].kind] if key == value)
        parts.append(f'<text x="10" y="{y}" font-weight="bold">{metrics[name].title}: {heading(metrics[name].kind, value)}</text>')
        most = max(values[value]["max"] for values in subjects.values()) or 1
        for subject, values in subjects.items():
            y += 18
            spread = values[value]
            scale = width / most
            colour = "#2a7ae2" if subject.startswith("portway") else "#9aa5b1"
            parts.append(f'<text x="10" y="{y}">{titles[subject]}</text>'
                         f'<rect x="{left}" y="{y - 11}" width="{max(0, spread["median"]) * scale:.1f}" height="13" fill="{colour}"/>'
                         f'<line x1="{left + max(0, spread["min"]) * scale:.1f}" x2="{left + spread["max"] * scale:.1f}" '
                         f'y1="{y - 4.5}" y2="{y - 4.5}" stroke="#222"/>'
                         f'<text x="{left + 6 + spread["max"] * scale:.1f}" y="{y}">{spread["median"]:,.{decimals}f}</text>')
        y += 34
    meta = results["meta"]
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="800" height="{y}" font-family="sans-serif" font-size="12">'
            f'<rect width="800" height="{y}" fill="white"/><text x="10" y="14" fill="#555">{meta["date"]}, Linux '
            f'{meta["kernel"]}, {meta["processors"]} x {meta["processor"]}; median, and lowest to highest</text>'
            + "".join(parts) + "</svg>\n")


def markdown(results, metrics, titles, unaccounted):
    meta = results["meta"]
    baseline = meta["baseline"]
    parts = [
        "# Forwarders side by side",
        f"{meta['date']}, Linux {meta['kernel']}, {meta['processors']} x {meta['processor']}. Worker threads of each "
        f"subject: {meta['workers']}. Namespaces, a {meta['link']} to the guest, reno, {meta['rounds']} interleaved rounds of {meta['seconds']:g} "
        "s.",
        f"Median [lowest-highest] **ratio to {titles[baseline]}**. Machine CPU is all work on all processors, the load "
        f"generator's and softirqs included; before the first run other programs used {meta['background_cpu']:.0%} of "
        "one processor.",
        "Versions: " + "; ".join(f"{titles[name]}: {text}" for name, text in meta["versions"].items() if text) + ".",
    ]
    for subject in ("portway-uring", "portway-epoll"):
        if any(subject in measured for measured in results["summary"].values()):
            parts += [f"## Targets: {titles[subject]}", targets(results["summary"], metrics, titles, subject)]
    rows = forwards_rows(results["summary"], metrics)
    if rows:
        parts += ["## Cost of idle forwards: Portway, io_uring, ratio to 3 forwards (aim: within 3 %)", rows]
    for name, metric in metrics.items():
        if name in results["summary"]:
            rows = table(metric.kind, results["summary"][name], titles, baseline, unaccounted)
            parts += [f"## {metric.title}", rows]
    parts += problems(results)
    return "\n\n".join(parts) + "\n"


def problems(results):
    lines = [f"- {name}: {reason}" for name, reason in results["meta"]["skipped"].items()] + [
        f"- {run['subject']}, {run['metric']}, round {run['round']}: {run['error']}" for run in results["runs"] if "error" in run]
    return ["## Skipped and failed", "\n".join(lines)] if lines else []


def isolation_verdicts(name, subject, summary):
    """Two cells: p99 to that when nothing disturbs, the worst to HAProxy's."""
    values = summary[name][subject]
    quiet = summary.get("quiet", {}).get(subject) if name != "quiet" else None
    peer = summary[name].get(ISOLATION_PEER) or summary.get(CLOSEST.get(name), {}).get(ISOLATION_PEER)
    return [compare_with("p99_us", ISOLATION_P99, values, quiet),
            "-" if subject == ISOLATION_PEER else compare_with("worst_us", ISOLATION_WORST, values, peer)]


def isolation_table(name, summary, titles, unit):
    """A row for each subject: its round trips, and what they are to the aims."""
    lines = [f"| subject | p50 us | p99 us | worst us | {unit} | p99 to the quiet one | worst to HAProxy's |", "|---|" + "---|" * 6]
    for subject, values in summary[name].items():
        cells = [cell(values[key], None, decimals, True) for key, _, decimals in VALUES["isolation"]]
        cells.append(f"{values['amount']['median']:,.0f}" if "amount" in values else "-")
        lines.append(f"| {titles[subject]} | " + " | ".join(cells + isolation_verdicts(name, subject, summary)) + " |")
    return "\n".join(lines)


def isolation_overview(summary, titles, title_of):
    """p99 and the worst, in ms, of each subject beside each disturbance."""
    subjects = [subject for subject in titles if any(subject in measured for measured in summary.values())]
    lines = ["| beside | " + " | ".join(titles[subject] for subject in subjects) + " |", "|---|" + "---|" * len(subjects)]
    for name, measured in summary.items():
        cells = [f"{measured[subject]['p99_us']['median'] / 1e3:,.1f} / {measured[subject]['worst_us']['median'] / 1e3:,.1f}"
                 if subject in measured else "-" for subject in subjects]
        lines.append(f"| {title_of[name].title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def isolation_targets(summary, subject, title_of):
    lines = ["| beside | p99 to the quiet one | worst to HAProxy's |", "|---|---|---|"]
    for name, measured in summary.items():
        if subject in measured and not name.startswith("quiet"):
            lines.append(f"| {title_of[name].title} | " + " | ".join(isolation_verdicts(name, subject, summary)) + " |")
    return "\n".join(lines)


def isolation_markdown(results, metrics, titles):
    meta, summary = results["meta"], results["summary"]
    measured = [run["values"] for run in results["runs"] if "values" in run]
    pauses = [values["paused_us"] for values in measured]
    parts = [
        "# A bystander beside disturbances",
        f"{meta['date']}, Linux {meta['kernel']}, {meta['processors']} x {meta['processor']}. Worker threads of each subject: "
        f"{meta['workers']}. {meta['rounds']} rounds, {meta['seconds']:g} s of a message a millisecond; {meta['forwards']:,} idle "
        f"forwards where there are some; RLIMIT_NOFILE {meta['descriptors']:,}. Median [lowest-highest] of the rounds; a ratio is the median of the rounds' own.",
        f"Before the first run other programs used {meta['background_cpu']:.0%} of one processor. The longest time for which a "
        f"thread of real-time priority could not run was {statistics.median(pauses):,.0f} us in the median run and {max(pauses):,.0f} us "
        f"in the worst; {sum(values['tries'] - 1 for values in measured)} runs were made again for that." if measured else "",
        "Versions: " + "; ".join(f"{titles[name]}: {text}" for name, text in meta["versions"].items() if text) + ".",
    ]
    parts += ["## p99 / worst, in ms", isolation_overview(summary, titles, metrics)]
    for subject in titles:
        if subject not in PEERS and not subject.startswith("nft") and any(subject in measured for measured in summary.values()):
            parts += [f"## Targets: {titles[subject]}", isolation_targets(summary, subject, metrics)]
    for name in summary:
        parts += [f"## {name}: {metrics[name].title}", isolation_table(name, summary, titles, metrics[name].unit)]
    parts += problems(results)
    return "\n\n".join(filter(None, parts)) + "\n"


def write(directory, name, results, text, picture):
    os.makedirs(directory, exist_ok=True)
    for suffix, content in (("md", text), ("json", json.dumps(results, indent=1)), ("svg", picture)):
        with open(os.path.join(directory, f"{name}.{suffix}"), "w", encoding="utf-8") as file:
            file.write(content)
