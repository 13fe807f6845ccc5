// The page: asks for a key, shows the node or the fleet that it opens until it is forgotten, and keeps nothing of it then.
import {Forgotten, Login, endLogin} from "./api.js";
import {closeColumns, closeKey} from "./closes.js";
import {Confirm} from "./confirm.js";
import {Create} from "./create.js";
import {Detail} from "./detail.js";
import {ForwardsTable} from "./forwards.js";
import {Live} from "./live.js";
import {NodesTable} from "./nodes.js";
import {Table, drawLine, setHidden, write, writeFacts} from "./table.js";
import {nodeOf, placeOf, rate, targetOf} from "./words.js";

const $ = (id) => document.getElementById(id);
const blank = $("main").cloneNode(true); // before any login

function say(text, isBad = false) {
  write($("status"), text, isBad ? "bad" : "");
}

/// What one login sees.
class View {
  constructor(mine) {
    const main = $("main");
    this.live = new Live(mine, {
      onChange: (what) => this.paintSoon(what),
      onFresh: () => this.onFresh(),
      onTrouble: (error) => { this.isInTrouble = true; say(`Cannot refresh: ${error.message}`, true); },
    });
    this.mine = mine;
    this.dirty = new Set();
    this.forwards = new ForwardsTable(main, this.live, (id) => this.detail.open(id));
    this.instances = new Table($("instances"), {columns: this.instanceColumns(), caption: (shown, all) => `${shown} of ${all}, by name`});
    this.closes = new Table($("closes"), {
      key: closeKey, columns: closeColumns(), caption: () => "Recently closed connections, and why they closed"});
    this.confirm = new Confirm(main);
    this.nodes = new NodesTable(main, this.live, this.confirm, say);
    this.detail = new Detail(main, this.live, this.confirm, say);
    this.create = new Create(main, this.live, ({id, host_port, hostname}) => {
      say(`Created ${hostname}:${host_port}.`);
      this.created = id;
      this.paintSoon("forwards");
    });
  }

  instanceColumns() {
    return [
      {paint: ({id}) => id},
      {name: "node", paint: nodeOf},
      {paint: ({state, reason, node_state}) => node_state === "lost" ? [`${state}, but its node is lost`, "bad"] : state === "running" ? [state, "good"] : [`${state}: ${reason.replaceAll("_", " ")}`, "bad"]},
      {paint: (instance) => instance.tap_fault ? [`${placeOf(instance)}: ${instance.tap_fault}`, "bad"]
        : ["up", "none"].includes(instance.tap_state) ? placeOf(instance)
        : [`${placeOf(instance)}: ${instance.tap_state.replaceAll("_", " ")}`, "bad"]},
      {paint: (instance) => [...instance.guest_addresses, ...(instance.target ? [targetOf(instance)] : [])].join(", ")},
      {paint: ({owner}) => owner}, {paint: ({source_mode}) => source_mode},
      {paint: ({port_forwards}) => `${port_forwards.current} of ${port_forwards.limit}`},
    ];
  }

  onFresh() {
    if (this.isInTrouble || !this.isFresh) say("");
    this.isInTrouble = false;
    this.isFresh = true;
    write($("updated"), `Up to date at ${new Date().toLocaleTimeString()}.`);
    this.paintSoon();
  }

  /// However many events there are, once for each frame.
  paintSoon(what) {
    if (what !== undefined) this.dirty.add(what);
    if (this.isDue) return;
    this.isDue = true;
    requestAnimationFrame(() => {
      this.isDue = false;
      if (!this.mine.isOver && this.isFresh) this.paint();
    });
  }

  paint() {
    const {live, dirty} = this;
    if ($("main").hidden) {
      $("main").hidden = false;
      setHidden($("create-open"), !live.mayChange);
      setHidden($("closes-note"), live.isAdmin);
      setHidden($("charts"), live.isFleet);
      setHidden($("closes-of-node"), live.isFleet);
      setHidden($("nodes-of-fleet"), !live.isFleet || !live.isAdmin);
      $("main").classList.toggle("fleet", live.isFleet);
      if (live.isFleet) write($("node-title"), "Fleet");
    }
    if (dirty.has("forwards") || dirty.has("instances")) {
      this.forwards.show();
      this.detail.show();
    }
    if (dirty.has("instances")) this.instances.show([...live.instances.items.values()].sort((a, b) => a.id < b.id ? -1 : 1));
    if (live.isFleet && (dirty.has("nodes") || dirty.has("forwards"))) this.nodes.show();
    if (dirty.has("closes")) this.closes.show(live.closes);
    setHidden($("stale"), !live.isStale);
    if (live.isFleet) this.paintFleet();
    else this.paintNode();
    dirty.clear();
    if (live.forwards.items.has(this.created)) {
      this.forwards.reveal(this.created);
      this.created = undefined;
    }
  }

  paintFleet() {
    const {info, hostname, forwards, instances, nodes} = this.live;
    const count = (state) => [...nodes.items.values()].filter((node) => node.state === state).length;
    const ofNodes = ["up", "draining", "lost"].map((state) => `${count(state)} ${state}`).join(", ");
    write($("hostname"), hostname);
    writeFacts($("health"), [
      ["Nodes", nodes.isComplete ? ofNodes : ""], ["Instances", instances.items.size], ["Forwards", forwards.items.size],
      ["etcd", info.etcd_error], ["Version", info.version],
    ]);
  }

  paintNode() {
    const {info, metrics, traffic, hostname, forwards, instances} = this.live;
    write($("hostname"), hostname);
    writeFacts($("health"), [
      ["Back end", info.io_backend + (info.io_backend_reason ? ` (${info.io_backend_reason})` : "")],
      ["Source mode", info.source_mode + (info.source_mode_reason ? ` (${info.source_mode_reason})` : "")],
      ["Workers", info.workers], ["Instances", instances.items.size], ["Forwards", forwards.items.size],
      ["Host ports", `${info.ports.allocated} of ${info.ports.allocated + info.ports.available}`],
      ["Descriptors", metrics && `${metrics.process_open_fds} of ${metrics.process_max_fds}`], ["Version", info.version],
    ]);
    const {sent, received, connections} = traffic;
    const most = Math.max(...sent, ...received);
    drawLine($("throughput").querySelector(".sent"), sent, most, 240, 60);
    drawLine($("throughput").querySelector(".received"), received, most, 240, 60);
    write($("throughput-now"),
      `Throughput: ${rate(sent.at(-1))} to clients, ${rate(received.at(-1))} from clients; peak ${rate(most)}`);
    drawLine($("connections").querySelector(".sent"), connections, Math.max(...connections), 240, 60);
    write($("connections-now"), `Connections: ${connections.at(-1)}; peak ${Math.max(...connections)}`);
  }
}

/// Ends the login and clears everything that was shown.
function forget(why) {
  endLogin();
  $("main").replaceWith(blank.cloneNode(true));
  write($("hostname"), "");
  write($("updated"), "");
  setHidden($("forget"), true);
  $("key").value = "";
  say(why ?? "Key forgotten.", why !== undefined);
}

$("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  const typed = $("key").value.trim();
  forget("");
  const mine = new Login(typed);
  setHidden($("forget"), false);
  say("Loading…");
  try {
    await new View(mine).live.run();
  } catch (error) {
    if (!(error instanceof Forgotten)) forget(error.message);
  }
});
$("forget").addEventListener("click", () => forget());
