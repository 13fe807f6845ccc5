"""From single runs to a table: medians, spread, ratios."""
import statistics

# metric -> its title and its values: key, heading, decimals
VALUES = {
    "bulk": [("gbit_s", "Gbit/s (more is better)", 1), ("subject_s_gb", "subject CPU s/GB", 3),
             ("machine_s_gb", "machine CPU s/GB", 3)],
    "ping": [("per_s", "transactions/s (more is better)", 0), ("p50_us", "p50 us", 0), ("p99_us", "p99 us", 0),
             ("subject_us", "subject CPU us/transaction", 1), ("machine_us", "machine CPU us/transaction", 1)],
    "close": [("per_s", "connections/s (more is better)", 0), ("p99_us", "p99 us", 0),
              ("subject_us", "subject CPU us/connection", 1), ("machine_us", "machine CPU us/connection", 1),
              ("errors", "errors", 0)],
    "idle": [("rss_bytes", "user-space bytes/connection", 0), ("rss_mib", "RSS in all, MiB", 1)],
}


def derive(kind, raw):
    """The values of a table from what the load generator printed."""
    if kind == "bulk":
        gigabytes = raw["bytes"] / 1e9
        return {"gbit_s": gigabytes * 8 / raw["seconds"], "subject_s_gb": raw["subject_cpu_s"] / gigabytes,
                "machine_s_gb": raw["machine_cpu_s"] / gigabytes}
    count = raw["transactions"] if kind == "ping" else raw["connections"]
    values = {"per_s": count / raw["seconds"], "subject_us": raw["subject_cpu_s"] / count * 1e6,
              "machine_us": raw["machine_cpu_s"] / count * 1e6}
    return values | {key: raw[key] for key in ("p50_us", "p99_us", "p999_us", "errors") if key in raw}


def summarize(runs):
    """{metric: {subject: {value: {median, min, max}}}} of the runs that succeeded."""
    summary = {}
    for run in runs:
        if "values" in run:
            subjects = summary.setdefault(run["metric"], {})
            for key, value in run["values"].items():
                subjects.setdefault(run["subject"], {}).setdefault(key, []).append(value)
    return {metric: {subject: {key: {"median": statistics.median(series), "min": min(series), "max": max(series)}
                               for key, series in values.items()}
                     for subject, values in subjects.items()}
            for metric, subjects in summary.items()}


def cell(value, reference, decimals, has_process):
    if not has_process:
        return "-"
    text = f"{value['median']:,.{decimals}f}"
    if value["min"] != value["max"]:
        text += f" [{value['min']:,.{decimals}f}-{value['max']:,.{decimals}f}]"
    if reference and reference["median"] > 0:
        text += f" **{value['median'] / reference['median']:.2f}x**"
    return text


def table(kind, subjects, titles, baseline, processless):
    reference = subjects.get(baseline, {})
    lines = ["| subject | " + " | ".join(heading for _, heading, _ in VALUES[kind]) + " |",
             "|---|" + "---|" * len(VALUES[kind])]
    for name, values in subjects.items():
        cells = [cell(values[key], reference.get(key) if name != baseline else None, decimals,
                      name not in processless or not key.startswith("subject")) for key, _, decimals in VALUES[kind]]
        lines.append(f"| {titles[name]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def markdown(results, metrics, titles, processless):
    meta = results["meta"]
    baseline = meta["baseline"]
    parts = [
        "# Forwarders side by side",
        f"{meta['date']}, Linux {meta['kernel']}, {meta['processors']} x {meta['processor']}. Worker threads of each "
        f"subject: {meta['workers']}. veth namespaces, reno, {meta['rounds']} interleaved rounds of {meta['seconds']:g} "
        "s.",
        f"Median [lowest-highest] **ratio to {titles[baseline]}**. Machine CPU is all work on all processors, the load "
        f"generator's and softirqs included; before the first run other programs used {meta['background_cpu']:.0%} of "
        "one processor.",
        "Versions: " + "; ".join(f"{titles[name]}: {text}" for name, text in meta["versions"].items() if text) + ".",
    ]
    for name, metric in metrics.items():
        if name in results["summary"]:
            rows = table(metric.kind, results["summary"][name], titles, baseline, processless)
            parts += [f"## {metric.title}", rows]
    problems = [f"- {name}: {reason}" for name, reason in meta["skipped"].items()] + [
        f"- {run['subject']}, {run['metric']}, round {run['round']}: {run['error']}"
        for run in results["runs"] if "error" in run]
    if problems:
        parts += ["## Skipped and failed", "\n".join(problems)]
    return "\n\n".join(parts) + "\n"
