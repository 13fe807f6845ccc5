// The page polls the API once a second with the key that was typed in, and at once after an event. Text from tenants is
// inserted as text only, never as HTML.
"use strict";

const kSamples = 120; // of one second
const kForwardsShown = 50;
const kPagesMax = 20; // of 1,000

const $ = (id) => document.getElementById(id);
const blank = $("main").cloneNode(true); // before any login

/// The state of one login. Nothing of it is kept after the login.
class Login {
  constructor(key) {
    this.key = key;
    this.over = new AbortController();
    this.previous = new Map(); // forward id -> {at, sent, received}
    this.history = new Map(); // forward id -> bytes a second, both ways
    this.node = {sent: [], received: [], connections: []};
    this.refreshing = false;
    this.again = false;
  }
}
let login = null;

class Forgotten extends Error {}

/// Awaits a promise on behalf of a login, and throws if that login has ended meanwhile.
async function during(mine, promise) {
  const [outcome] = await Promise.allSettled([promise]);
  if (mine !== login) throw new Forgotten();
  if (outcome.status === "rejected") throw outcome.reason;
  return outcome.value;
}

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let unit = 0;
  while (count >= 999.5 && unit < units.length - 1) {
    count /= 1000;
    ++unit;
  }
  return `${unit === 0 ? Math.round(count) : count.toPrecision(3)} ${units[unit]}`;
}

const rate = (perSecond) => `${bytes(perSecond)}/s`;

function seconds(count) {
  if (count < 60) return `${count.toFixed(count < 10 ? 2 : 0)} s`;
  if (count < 3600) return `${Math.floor(count / 60)} min`;
  return `${Math.floor(count / 3600)} h ${Math.floor((count % 3600) / 60)} min`;
}

function remember(list, value) {
  list.push(value);
  if (list.length > kSamples) list.shift();
}

/// Draws the last two minutes as a line, with the newest value at the right edge.
function line(path, values, most, width, height) {
  const step = width / (kSamples - 1);
  const start = width - (values.length - 1) * step;
  path.setAttribute("d", values.map((value, i) =>
    `${i === 0 ? "M" : "L"}${(start + i * step).toFixed(1)} ${(height - 1 - (height - 2) * value / (most || 1)).toFixed(1)}`).join(""));
}

function sparkline(values) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 120 24");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("class", "sent");
  line(path, values, Math.max(...values), 120, 24);
  svg.append(path);
  return svg;
}

function row(cells) {
  const made = element("tr");
  for (const cell of cells) {
    if (cell instanceof Element) {
      const holder = element("td");
      holder.append(cell);
      made.append(holder);
    } else if (Array.isArray(cell)) {
      made.append(element("td", cell[0], cell[1]));
    } else {
      made.append(element("td", String(cell)));
    }
  }
  return made;
}

class Refused extends Error {}

function ask(mine, path) {
  return during(mine, fetch(path, {
    headers: {Authorization: `Bearer ${mine.key}`}, cache: "no-store", signal: mine.over.signal}));
}

async function get(mine, path) {
  const answer = await ask(mine, path);
  const body = await during(mine, answer.json());
  if (answer.status === 401) throw new Refused(body.detail);
  if (!answer.ok) throw Object.assign(new Error(body.detail), {status: answer.status});
  return body;
}

async function pages(mine, path, name) {
  const all = [];
  let cursor = "";
  let first = null;
  for (let i = 0; i < kPagesMax; ++i) {
    const page = await get(mine, `${path}?limit=1000${cursor}`);
    first = first ?? page;
    all.push(...page[name]);
    if (page.next_cursor === undefined) break;
    cursor = `&cursor=${encodeURIComponent(page.next_cursor)}`;
  }
  return [all, first];
}

function say(text, bad) {
  if ($("status").textContent !== text) $("status").textContent = text;
  $("status").className = bad ? "bad" : "";
}

function measure(mine, forwards) {
  const {previous, history, node} = mine;
  const now = performance.now();
  const seen = new Map();
  let sent = 0, received = 0, connections = 0;
  for (const forward of forwards) {
    const before = previous.get(forward.id);
    const elapsed = before ? (now - before.at) / 1000 : 0;
    const perSecond = (count, earlier) => elapsed > 0 ? Math.max(0, (count - earlier) / elapsed) : 0;
    forward.sentRate = before ? perSecond(forward.sent_bytes ?? 0, before.sent) : 0;
    forward.receivedRate = before ? perSecond(forward.received_bytes ?? 0, before.received) : 0;
    seen.set(forward.id, {at: now, sent: forward.sent_bytes ?? 0, received: forward.received_bytes ?? 0});
    if (!history.has(forward.id)) history.set(forward.id, []);
    remember(history.get(forward.id), forward.sentRate + forward.receivedRate);
    sent += forward.sentRate;
    received += forward.receivedRate;
    connections += forward.connections_active ?? 0;
  }
  for (const id of history.keys()) if (!seen.has(id)) history.delete(id);
  mine.previous = seen;
  remember(node.sent, sent);
  remember(node.received, received);
  remember(node.connections, connections);
}

function showNode({node}, info, metrics) {
  $("hostname").textContent = info.hostname;
  const facts = [
    ["Back end", info.io_backend + (info.io_backend_reason ? ` (${info.io_backend_reason})` : "")],
    ["Source mode", info.source_mode],
    ["Workers", info.workers],
    ["Instances", info.instances],
    ["Forwards", info.port_forwards],
    ["Host ports", `${info.ports.allocated} of ${info.ports.allocated + info.ports.available}`],
    ["Version", info.version],
  ];
  if (metrics) facts.splice(6, 0, ["Descriptors", `${metrics.process_open_fds} of ${metrics.process_max_fds}`]);
  $("health").replaceChildren(...facts.map(([name, value]) => {
    const group = element("div");
    group.append(element("dt", name), element("dd", String(value)));
    return group;
  }));
  const most = Math.max(...node.sent, ...node.received);
  line($("throughput").querySelector(".sent"), node.sent, most, 240, 60);
  line($("throughput").querySelector(".received"), node.received, most, 240, 60);
  $("throughput-now").textContent =
    `Throughput: ${rate(node.sent.at(-1))} to clients, ${rate(node.received.at(-1))} from clients; peak ${rate(most)}`;
  line($("connections").querySelector(".sent"), node.connections, Math.max(...node.connections), 240, 60);
  $("connections-now").textContent = `Connections: ${node.connections.at(-1)}; peak ${Math.max(...node.connections)}`;
}

function targetOf(forward) {
  const {target} = forward;
  return !target ? forward.guest_port : target.port ? `${target.socket} port ${target.port}` : target.socket;
}

function showForwards({history}, forwards) {
  const wanted = $("filter").value.trim().toLowerCase();
  const chosen = forwards.filter((forward) =>
    `${forward.instance_id} ${forward.label} ${forward.host_port} ${targetOf(forward)}`.toLowerCase().includes(wanted));
  chosen.sort((a, b) => b.sentRate + b.receivedRate - a.sentRate - a.receivedRate || (a.id < b.id ? 1 : -1));
  const shown = chosen.slice(0, kForwardsShown);
  $("forwards-count").textContent = `${shown.length} of ${forwards.length}, busiest first, then latest`;
  $("forwards").replaceChildren(...shown.map((forward) => row([
    forward.instance_id, forward.label, `${forward.hostname}:${forward.host_port}`, forward.bind_addresses.join(", "), targetOf(forward),
    forward.state === "listening" ? ["listening", "good"] : [`failed: ${forward.reason}`, "bad"],
    forward.connections_active ?? "", rate(forward.sentRate), rate(forward.receivedRate),
    sparkline(history.get(forward.id))])));
  return shown;
}

/** What is watched of an instance, what leads to its guest, and in which network namespaces these are. */
function placeOf(instance) {
  const tap = instance.tap ?? `process ${instance.vmm_pid}`;
  const watched = instance.tap_netns ? `${tap} in ${instance.tap_netns}` : tap;
  const via = instance.device ? ` via ${instance.device}` : "";
  return watched + via + (instance.netns ? ` in ${instance.netns}` : "");
}

function showInstances(instances) {
  $("instances").replaceChildren(...instances.slice(0, 200).map((instance) => row([
    instance.id,
    instance.state === "running" ? ["running", "good"] : [`${instance.state}: ${instance.reason}`, "bad"],
    ["up", "none"].includes(instance.tap_state) ? placeOf(instance) : [`${placeOf(instance)}: ${instance.tap_state}`, "bad"],
    [...instance.guest_addresses, ...(instance.target ? [targetOf(instance)] : [])].join(", "), instance.owner, instance.source_mode,
    `${instance.port_forwards.current} of ${instance.port_forwards.limit}`])));
}

async function showTalkers(mine, busiest) {
  if (!busiest || !busiest.connections_active) {
    $("talkers").replaceChildren();
    return;
  }
  const path = `/instances/${encodeURIComponent(busiest.instance_id)}/port-forwards/${busiest.id}/connections?limit=1000`;
  const {connections} = await get(mine, path);
  connections.sort((a, b) => b.sent_bytes + b.received_bytes - a.sent_bytes - a.received_bytes);
  $("talkers").replaceChildren(...connections.slice(0, 10).map((one) => row([
    one.client, `${busiest.instance_id}:${targetOf(busiest)}`, one.state, seconds(one.age_s), bytes(one.sent_bytes),
    bytes(one.received_bytes)])));
}

async function showCloses(mine) {
  const {connections} = await get(mine, "/connections/recent?limit=20");
  $("closes").replaceChildren(...connections.map((one) => row([
    one.time.slice(11, 19), seconds(one.duration_s), one.client, one.instance, one.side,
    [one.how, one.how === "fin" ? "" : "bad"], bytes(one.sent_bytes), bytes(one.received_bytes)])));
}

/// The node's metrics that have no labels. Null without an admin key.
async function nodeMetrics(mine) {
  const answer = await ask(mine, "/metrics?scope=node");
  if (!answer.ok) return null;
  const found = {};
  for (const text of (await during(mine, answer.text())).split("\n")) {
    const [name, value] = text.split(" ");
    if (!text.startsWith("#") && value !== undefined) found[name] = value;
  }
  return found;
}

async function refresh(mine) {
  const info = await get(mine, "/v1/info");
  const [instances] = await pages(mine, "/instances", "instances");
  const forwards = [];
  for (const instance of instances) {
    if (instance.port_forwards.current === 0) continue;
    const path = `/instances/${encodeURIComponent(instance.id)}/port-forwards`;
    const [list, first] = await pages(mine, path, "port_forwards");
    for (const forward of list) forwards.push({...forward, hostname: first.hostname});
  }
  const metrics = await nodeMetrics(mine);
  $("closes-note").hidden = metrics !== null;
  measure(mine, forwards);
  showNode(mine, info, metrics);
  const shown = showForwards(mine, forwards);
  showInstances(instances);
  await showTalkers(mine, shown[0]).catch((error) => { if (error.status !== 404) throw error; });
  if (metrics !== null) await showCloses(mine);
  $("main").hidden = false;
  say(`Up to date at ${new Date().toLocaleTimeString()}.`, false);
}

/// Runs one refresh at a time. Calls during a refresh cause one more afterwards.
async function refreshNow() {
  const mine = login;
  if (mine === null) return;
  if (mine.refreshing) {
    mine.again = true;
    return;
  }
  mine.refreshing = true;
  try {
    await refresh(mine);
  } catch (error) {
    if (error instanceof Refused) forget(error.message);
    else if (!(error instanceof Forgotten)) say(`Cannot refresh: ${error.message}`, true);
  } finally {
    mine.refreshing = false;
    if (mine.again) {
      mine.again = false;
      setTimeout(refreshNow, 0);
    }
  }
}

async function follow(mine) {
  while (mine === login) {
    try {
      const answer = await ask(mine, "/events");
      if (!answer.ok) return; // the page still polls every second
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      for (;;) {
        const {value, done} = await during(mine, reader.read());
        if (done) break;
        if (value.includes("event:")) refreshNow();
      }
    } catch {
      // The daemon is down or restarting: retry in a second. Or this login has ended.
    }
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

/// Ends the login and clears everything that was shown.
function forget(why) {
  if (login !== null) login.over.abort();
  login = null;
  $("main").replaceWith(blank.cloneNode(true));
  $("hostname").textContent = "";
  $("forget").hidden = true;
  $("key").value = "";
  say(why ?? "Key forgotten.", why !== undefined);
}

$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  const typed = $("key").value.trim();
  forget("");
  login = new Login(typed);
  $("forget").hidden = false;
  say("Loading…", false);
  refreshNow();
  follow(login);
});
$("forget").addEventListener("click", () => forget());
document.addEventListener("input", (event) => { if (event.target.id === "filter") refreshNow(); });
setInterval(refreshNow, 1000);
