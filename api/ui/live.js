// What the page knows of the node, or of the fleet behind a gateway. Lists are read again and again, with at most one call a second; changes come as events.
import {Forgotten, Refused, sleep} from "./api.js";

const kBetweenCalls_ms = 1000;
const kBeforeNextTry_s = 6; // one second for each call with which a login begins
const kPeriods_s = {instances: 10, nodes: 10, closes: 6, info: 30, metrics: 30}; // the forwards get all other seconds
const kOfAdmins = ["closes", "metrics", "nodes"];
const kOfNode = ["closes", "metrics"];
const kOfFleet = ["nodes"];
const kClosesMax = 20;
const kSamples = 120; // of one second

/// Where an event is in its order: "EPOCH-NUMBER" of a node, "REVISION.CHANGE" of a gateway.
function orderOf(eventId) {
  const [revision, change] = eventId.split(".");
  if (change !== undefined) return {epoch: "", number: (BigInt(revision) << 32n) + BigInt(change)};
  const [epoch, number] = eventId.split("-");
  return {epoch, number: Number(number)};
}

/// Forwards, instances or nodes. Each is known as of an event, so that an older answer undoes no newer change.
class List {
  constructor(path, name) {
    this.path = path;
    this.name = name;
    this.items = new Map(); // by id
    this.asOf = new Map(); // number of an event, by id; also of what was deleted, until a list says so too
    this.epoch = ""; // of these numbers: a run of the daemon
    this.isComplete = false; // all pages have been read once
    this.doubt();
  }

  /// Whatever the next answer says is true.
  doubt() {
    this.asOf.clear();
    this.round = null; // of pages, if it is not at its end
  }

  numberOf(eventId) {
    const {epoch, number} = orderOf(eventId);
    if (epoch !== this.epoch) this.doubt();
    this.epoch = epoch;
    return number;
  }

  /// The item as it is after the event; undefined: it is gone.
  change(id, item, eventId) {
    const number = this.numberOf(eventId);
    if ((this.asOf.get(id) ?? -1) >= number) return;
    this.asOf.set(id, number);
    if (item === undefined) this.items.delete(id);
    else this.items.set(id, item);
  }

  /// Reads the next page. Returns what is on it.
  async read(mine) {
    const round = this.round;
    const cursor = round ? `&cursor=${encodeURIComponent(round.cursor)}` : "";
    const {body, headers} = await mine.call("GET", `${this.path}?limit=1000${cursor}`);
    this.lastEvent = headers.get("Portway-Event-Id");
    const number = this.numberOf(this.lastEvent);
    if (round !== this.round) return body; // a doubt has come: the next page is the first one
    this.round ??= {number, seen: new Set()};
    for (const item of body[this.name]) {
      this.round.seen.add(item.id);
      if ((this.asOf.get(item.id) ?? -1) > number) continue;
      this.items.set(item.id, item);
      this.asOf.set(item.id, number);
    }
    this.round.cursor = body.next_cursor;
    if (body.next_cursor === undefined) this.endRound();
    return body;
  }

  endRound() {
    const {number, seen} = this.round;
    for (const [id, known] of this.asOf) if (!seen.has(id) && known <= number) this.asOf.delete(id);
    for (const id of this.items.keys()) if (!this.asOf.has(id)) this.items.delete(id);
    this.round = null;
    this.isComplete = true;
  }
}

/// Bytes a second of each forward and of all, from counters.
class Traffic {
  constructor() {
    this.byForward = new Map();
    this.sent = [];
    this.received = [];
    this.connections = [];
    this.at = undefined;
  }

  of(id) { return this.byForward.get(id) ?? {sent: 0, received: 0, samples: []}; }

  measure(read, items) {
    const now = performance.now();
    for (const {id, sent_bytes = 0, received_bytes = 0} of read) {
      const before = this.byForward.get(id);
      const one = {at: now, sent_bytes, received_bytes, sent: 0, received: 0, samples: before?.samples ?? []};
      if (before) {
        const elapsed_s = (now - before.at) / 1000;
        one.sent = Math.max(0, sent_bytes - before.sent_bytes) / elapsed_s;
        one.received = Math.max(0, received_bytes - before.received_bytes) / elapsed_s;
        remember(one.samples, one.sent + one.received, elapsed_s);
      }
      this.byForward.set(id, one);
    }
    let sent = 0, received = 0, connections = 0;
    for (const id of this.byForward.keys()) if (!items.has(id)) this.byForward.delete(id);
    for (const [id, {connections_active = 0}] of items) {
      sent += this.of(id).sent;
      received += this.of(id).received;
      connections += connections_active;
    }
    const elapsed_s = this.at === undefined ? 1 : (now - this.at) / 1000;
    this.at = now;
    remember(this.sent, sent, elapsed_s);
    remember(this.received, received, elapsed_s);
    remember(this.connections, connections, elapsed_s);
  }
}

/// Once for each second that has passed.
function remember(samples, value, elapsed_s) {
  for (let i = Math.min(kSamples, Math.max(1, Math.round(elapsed_s))); i > 0; --i) samples.push(value);
  samples.splice(0, samples.length - kSamples);
}

/// The samples of a metric that has no labels, by name.
function parseMetrics(text) {
  return Object.fromEntries(text.split("\n").filter((one) => !one.startsWith("#")).map((one) => one.split(" ")));
}

export class Live {
  /// `onChange` is told what has changed: "forwards", "instances", "nodes", "closes", "info" or "metrics".
  constructor(mine, {onChange, onFresh, onTrouble}) {
    Object.assign(this, {mine, onChange, onFresh, onTrouble});
    this.forwards = new List("/port-forwards", "port_forwards");
    this.instances = new List("/instances", "instances");
    this.nodes = new List("/nodes", "nodes");
    this.places = new Map(); // what lists say of nodes, by id: tenants cannot read the nodes
    this.isStale = false; // the gateway cannot reach etcd
    this.traffic = new Traffic();
    this.closes = [];
    this.due = new Map(); // when each list is to be read again
    this.turn = "";
  }

  get isAdmin() { return this.whoami.role === "admin"; }
  get mayChange() { return this.whoami.scope === "full"; }
  get isFleet() { return this.info.role === "gateway"; }
  hostOf(forward) { return forward.hostname ?? this.hostname; }
  ownerOf(forward) { return this.instances.items.get(forward.instance_id)?.owner ?? ""; }

  /// Until the login ends. Throws when it does, and when the key is refused.
  async run() {
    while (!await this.attempt(() => this.begin(), kBeforeNextTry_s)) {}
    await Promise.all([this.poll(), this.mine.follow(this.forwards.lastEvent, (event) => this.apply(event))]);
  }

  /// One call of each kind at once, so that the first view is complete.
  async begin() {
    this.whoami = (await this.mine.get("/whoami")).whoami;
    if (this.whoami.scope === "metrics") throw new Refused("This key is for metrics only.");
    await this.read("info");
    await this.read("forwards");
    await Promise.all(this.kinds().filter((kind) => kind !== "info").map((kind) => this.read(kind)));
  }

  kinds() {
    const elsewhere = this.isFleet ? kOfNode : kOfFleet;
    return Object.keys(kPeriods_s).filter((kind) => !elsewhere.includes(kind) && (this.isAdmin || !kOfAdmins.includes(kind)));
  }

  async poll() {
    for (let began = performance.now();;) {
      await this.mine.during(sleep(began + kBetweenCalls_ms - performance.now()));
      await this.mine.untilSeen();
      began = performance.now();
      await this.attempt(() => this.read(this.next()), 0);
    }
  }

  /// True if it could be done; false after the time that the node wants to be left alone, and `wait_s` at least.
  async attempt(what, wait_s) {
    try {
      await what();
      this.onFresh();
      return true;
    } catch (error) {
      if (error instanceof Forgotten || error instanceof Refused) throw error;
      this.onTrouble(error);
      await this.mine.during(sleep(1000 * Math.max(wait_s, error.retryAfter_s ?? 0)));
      return false;
    }
  }

  /// The forwards, and in every other second at most what is due longest.
  next() {
    const now = performance.now();
    const due = this.kinds().filter((kind) => this.due.get(kind) <= now).sort((a, b) => this.due.get(a) - this.due.get(b));
    this.turn = this.turn === "forwards" && due.length > 0 ? due[0] : "forwards";
    return this.turn;
  }

  async read(kind) {
    this.due.set(kind, performance.now() + 1000 * (kPeriods_s[kind] ?? 0));
    if (kind === "forwards") {
      const page = await this.forwards.read(this.mine);
      this.hostname = page.hostname ?? this.info.hostname;
      this.isStale = page.stale === true;
      for (const {node, hostname, node_state} of page.port_forwards) if (node) this.places.set(node, {hostname, node_state});
      this.traffic.measure(page.port_forwards, this.forwards.items);
    } else if (kind === "instances") {
      await this.instances.read(this.mine);
      if (this.instances.round) this.due.set(kind, performance.now()); // for the next page
    } else if (kind === "nodes") {
      const page = await this.nodes.read(this.mine);
      for (const {id, hostname, state} of page.nodes) this.places.set(id, {hostname, node_state: state});
      if (this.nodes.round) this.due.set(kind, performance.now());
    } else if (kind === "closes") {
      this.closes = (await this.mine.get(`/connections/recent?limit=${kClosesMax}`)).connections;
    } else if (kind === "info") {
      this.info = await this.mine.get("/v1/info");
    } else {
      this.metrics = parseMetrics(await this.mine.get("/metrics?scope=node"));
    }
    this.onChange(kind);
  }

  /// What an event says of an item, and what a gateway's lists say beside that.
  placed(item, {node}, known) {
    if (!this.isFleet || item === undefined) return item;
    const whole = {...item, ...this.places.get(node), node};
    if (item.port_forwards) whole.port_forwards = {current: 0, ...known?.port_forwards, ...item.port_forwards};
    return whole;
  }

  apply({id, type, data}) {
    const {instance_id, forward_id} = data;
    if (type === "reset") {
      this.forwards.doubt();
      this.instances.doubt();
      this.nodes.doubt();
      for (const kind of ["instances", "nodes"]) this.due.set(kind, performance.now());
    } else if (type.startsWith("node.")) {
      for (const kind of ["nodes", "instances"]) this.due.set(kind, performance.now());
    } else if (type.startsWith("instance.")) {
      const isLost = data.lost === true;
      const known = this.instances.items.get(instance_id);
      this.instances.change(instance_id, isLost ? undefined : this.placed(data.instance, data, known), id);
      this.due.set("instances", performance.now());
      this.onChange("instances");
      if (!isLost && type !== "instance.stopped" && type !== "instance.deleted") return;
      for (const forward of this.forwards.items.values()) {
        if (forward.instance_id === instance_id) this.forwards.change(forward.id, undefined, id);
      }
      this.onChange("forwards");
    } else if (type.startsWith("forward.")) {
      this.forwards.change(forward_id, this.placed(data.port_forward, data), id);
      this.onChange("forwards");
    }
  }
}
