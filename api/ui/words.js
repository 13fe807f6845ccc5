// Numbers, times and what the API says, in words.

export function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let unit = 0;
  while (count >= 999.5 && unit < units.length - 1) {
    count /= 1000;
    ++unit;
  }
  return `${unit === 0 ? Math.round(count) : count.toPrecision(3)} ${units[unit]}`;
}

export const rate = (perSecond) => `${bytes(perSecond)}/s`;

export function seconds(count, digits = count < 10 ? 2 : 0) {
  if (count < 60) return `${count.toFixed(digits)} s`;
  if (count < 3600) return `${Math.floor(count / 60)} min`;
  return `${Math.floor(count / 3600)} h ${Math.floor((count % 3600) / 60)} min`;
}

/// Coarse, so that it seldom changes.
export function age(time) {
  const minutes = Math.max(0, (Date.now() - Date.parse(time)) / 60000);
  if (minutes < 1) return "< 1 min";
  if (minutes < 60) return `${Math.floor(minutes)} min`;
  return minutes < 48 * 60 ? `${Math.floor(minutes / 60)} h` : `${Math.floor(minutes / 1440)} d`;
}

/// A time of the API, for people.
export const moment = (time) => time && new Date(time).toLocaleString(undefined, {dateStyle: "medium", timeStyle: "short"});

export function targetOf({target, guest_port}) {
  return !target ? guest_port : target.port ? `${target.socket} port ${target.port}` : target.socket;
}

const spaced = (word) => word.replaceAll("_", " ");

/// The state of a forward, and why it is that one.
export function causeOf({state, cause, reason, node_state}) {
  const ofNode = node_state === "lost" ? "its node is lost" : "";
  return [cause === state ? "" : spaced(cause ?? ""), reason ?? "", ofNode].filter(Boolean).join(": ");
}

export const stateClass = ({state, node_state}) => node_state === "lost" ? "bad" : state === "listening" ? "good" : state === "disabled" ? "" : "bad";

/// What is watched of an instance, what leads to its guest, and in which network namespaces these are.
export function placeOf(instance) {
  const tap = instance.tap ?? `process ${instance.vmm_pid}`;
  const watched = instance.tap_netns ? `${tap} in ${instance.tap_netns}` : tap;
  const via = instance.device ? ` via ${instance.device}` : "";
  return watched + via + (instance.netns ? ` in ${instance.netns}` : "");
}

/// The node of something in a fleet, and what is wrong with it.
export function nodeOf({node = "", node_state = "up"}) {
  return node_state === "up" ? [node] : [`${node}: ${node_state}`, node_state === "lost" ? "bad" : ""];
}

export const metadataOf = ({metadata = {}}) => Object.entries(metadata).map(([key, value]) => `${key}=${value}`).join(", ");

const kLimits = [
  ["max_connections", "Connections", String],
  ["max_connections_per_source", "Connections of one client", String],
  ["max_new_connections_per_second", "New connections a second", String],
  ["max_bytes_per_second", "Each way", rate],
  ["idle_timeout_s", "Silence at most", seconds],
];

/// The names of a forward's limits, and what they are and who has set them.
export function limitsOf(forward) {
  const {limits_in_effect = {}, admin_limits = [], allowed_cidrs} = forward;
  const byAdmin = (name) => admin_limits.includes(name) ? "set by an admin" : "set on the forward";
  const facts = kLimits.filter(([name]) => limits_in_effect[name]).map(([name, title, format]) => {
    const {value, from} = limits_in_effect[name];
    if (from === "forward") return [title, `${format(value)}, ${byAdmin(name)}`];
    const asked = forward[name] === undefined ? "" : `; the forward asks for ${format(forward[name])}`;
    return [title, `${format(value)}, of the ${from === "profile" ? "instance's profile" : "node"}${asked}`];
  });
  if (allowed_cidrs) facts.push(["Clients from", `${allowed_cidrs.join(", ")}, ${byAdmin("allowed_cidrs")}`]);
  return facts;
}
