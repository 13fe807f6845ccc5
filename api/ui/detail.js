// What there is to know about one forward, and what can be done with it.
import {Forgotten, sleep} from "./api.js";
import {closeColumns, closeKey} from "./closes.js";
import {busy} from "./confirm.js";
import {Table, element, setHidden, write, writeFacts} from "./table.js";
import {bytes, causeOf, limitsOf, metadataOf, moment, nodeOf, seconds, stateClass, targetOf} from "./words.js";

const kBetweenLooks_ms = 2000;
const kLiveMax = 100;
const kClosesMax = 20;

const pathOf = (forward) => `/instances/${encodeURIComponent(forward.instance_id)}/port-forwards/${forward.id}`;
const nameOf = ({label, host_port}) => label ? `${label} (host port ${host_port})` : `host port ${host_port}`;
const openOf = ({connections_active: count = 0}) => `${count === 0 ? "No" : count} connection${count === 1 ? " is" : "s are"} open.`;

export class Detail {
  constructor(main, live, confirm, say) {
    Object.assign(this, {live, mine: live.mine, confirm, say});
    this.dialog = main.querySelector("#detail");
    for (const name of ["title", "state", "said", "facts", "limits", "usage"]) this[name] = main.querySelector(`#detail-${name}`);
    for (const name of ["check", "switch", "delete"]) this[name] = main.querySelector(`#${name}`);
    this.steps = main.querySelector("#check-steps");
    this.connections = new Table(main.querySelector("#live"), {
      columns: this.liveColumns(),
      caption: (shown, all) => all < kLiveMax ? `${all} open` : `The first ${kLiveMax} of those that are open`});
    this.closes = new Table(main.querySelector("#ended"), {
      key: closeKey, columns: closeColumns().filter(({name}) => name !== "instance"),
      caption: (shown) => shown === 0 ? "None since the node remembers" : "Latest first, and why they closed"});
    main.querySelector("#detail-close").addEventListener("click", () => this.dialog.close());
    this.dialog.addEventListener("close", () => {
      this.opened = null;
      if (document.activeElement === document.body) main.querySelector(".tall").focus(); // the row that it was opened from is gone
    });
    this.check.addEventListener("click", () => this.on(this.check, () => this.runCheck()));
    this.switch.addEventListener("click", () => this.on(this.switch, () => this.turn()));
    this.delete.addEventListener("click", () => this.on(this.delete, () => this.remove()));
    this.opened = null;
  }

  on(button, act) { return busy(button, this.said, act); }

  liveColumns() {
    return [
      {paint: ({client}) => client}, {paint: ({state}) => state.replaceAll("_", " ")}, {paint: ({age_s}) => seconds(age_s, 0)},
      {paint: ({idle_s}) => seconds(idle_s, 0)}, {paint: ({sent_bytes}) => bytes(sent_bytes)},
      {paint: ({received_bytes}) => bytes(received_bytes)}, {paint: ({client_rtt_us}) => `${(client_rtt_us / 1000).toFixed(1)} ms`},
      {name: "end", make: (cell, connection) => {
        if (!this.live.mayChange) return;
        const button = element("button", "End…");
        button.type = "button";
        button.addEventListener("click", () => this.end(connection));
        cell.append(button);
      }},
    ];
  }

  open(id) {
    this.forward = this.live.forwards.items.get(id);
    if (!this.forward) return;
    this.opened = {};
    this.counted = undefined;
    write(this.said, "");
    setHidden(this.steps, true);
    this.steps.replaceChildren();
    this.connections.show([]);
    this.closes.show([]);
    this.show();
    this.dialog.showModal();
    this.dialog.scrollTop = 0;
    this.watch(this.opened);
  }

  /// As the node has it now.
  show() {
    if (this.opened === null) return;
    const {live} = this;
    const now = live.forwards.items.get(this.forward.id);
    const isGone = now === undefined;
    const forward = this.forward = now ?? this.forward;
    const instance = live.instances.items.get(forward.instance_id);
    write(this.title, `${live.hostOf(forward)}:${forward.host_port}${forward.label ? ` · ${forward.label}` : ""}`);
    const why = causeOf(forward);
    write(this.state, isGone ? "This forward is gone." : why ? `${forward.state} – ${why}` : forward.state,
      isGone ? "bad" : stateClass(forward));
    for (const button of [this.switch, this.delete]) setHidden(button, isGone || !live.mayChange);
    setHidden(this.check, isGone);
    write(this.switch, forward.state === "disabled" ? "Enable" : "Disable…");
    writeFacts(this.facts, [
      ["Instance", forward.instance_id], ["Node", nodeOf(forward)[0]], ["Owner", live.ownerOf(forward)], ["Profile", instance?.profile],
      ["Listens on", forward.bind_addresses.map((address) => address.includes(":") ? `[${address}]:${forward.host_port}`
        : `${address}:${forward.host_port}`).join(", ")],
      ["Leads to", forward.target ? targetOf(forward) : `${instance?.guest_addresses.join(", ") ?? "guest"} port ${forward.guest_port}`],
      ["Source mode", forward.source_mode + (forward.source_fallback ? ` (${forward.source_fallback.replaceAll("_", " ")})` : "")],
      ["Created", moment(forward.created_at)], ["Ends", moment(forward.expires_at) ?? "not by itself"], ["Id", forward.id],
      ["Metadata", metadataOf(forward)],
    ]);
    const limits = limitsOf(forward);
    writeFacts(this.limits, limits.length > 0 ? limits : [["None", "Any client may connect, as often as it likes."]]);
    const counted = this.counted ?? forward;
    writeFacts(this.usage, [
      ["Connections now", counted.connections_active], ["Connections", counted.connections_total],
      ["To clients", bytes(counted.sent_bytes ?? 0)], ["From clients", bytes(counted.received_bytes ?? 0)],
      ["Last connection", moment(counted.last_connection_at)], ["Last byte", moment(counted.last_byte_at)],
      ["Counted since", moment(counted.usage_since)],
    ]);
  }

  /// Looks at the connections until the dialog is closed.
  async watch(opened) {
    try {
      for (let look = 0; this.opened === opened; ++look) {
        await this.look(opened, look % 2 === 0);
        await this.mine.during(sleep(kBetweenLooks_ms));
        await this.mine.untilSeen();
      }
    } catch (error) {
      if (!(error instanceof Forgotten)) throw error;
    }
  }

  async look(opened, alsoCloses) {
    const path = `${pathOf(this.forward)}/connections`;
    try {
      if (this.live.isFleet && alsoCloses) await this.count(opened);
      const {connections} = await this.mine.get(`${path}?limit=${kLiveMax}`);
      if (this.opened === opened) this.connections.show(connections);
      if (!alsoCloses) return;
      const closed = (await this.mine.get(`${path}?state=closed&limit=${kClosesMax}`)).connections;
      if (this.opened === opened) this.closes.show(closed);
    } catch (error) {
      if (error instanceof Forgotten) throw error;
      if (error.status === 404 && this.opened === opened) this.connections.show([]); // the forward is gone, as show() says
    }
  }

  /// A gateway's list has no usage: the node of the forward does.
  async count(opened) {
    const {port_forward} = await this.mine.get(pathOf(this.forward));
    if (this.opened !== opened) return;
    this.counted = port_forward;
    this.show();
  }

  async runCheck() {
    const {opened} = this;
    write(this.said, "Checking each step, which takes two seconds at most…");
    const {check} = await this.mine.get(`${pathOf(this.forward)}/check`);
    if (this.opened !== opened) return;
    write(this.said, check.ok ? "A client would be served." : "A client would not be served.");
    this.steps.replaceChildren(...check.steps.map(({step, ok, detail}) =>
      element("li", `${step} ${ok ? "is good" : "fails"}: ${detail}`, ok ? "" : "bad")));
    setHidden(this.steps, false);
  }

  async turn() {
    const change = (enabled) => this.mine.call("PATCH", pathOf(this.forward), {body: {enabled}});
    const {forward} = this;
    if (forward.state === "disabled") {
      await change(true);
      write(this.said, "Enabled.");
      return;
    }
    this.confirm.ask({
      title: `Disable ${nameOf(forward)}?`, verb: "Disable",
      text: `Its host port is kept, and nobody is served. Connections are reset: ${openOf(this.counted ?? forward)}`,
      act: async () => {
        await change(false);
        write(this.said, "Disabled.");
      }});
  }

  async remove() {
    const gone = (forward) => this.leave(`${nameOf(forward)} was gone already.`);
    let now;
    try {
      now = await this.mine.call("GET", pathOf(this.forward)); // what the user decides about
    } catch (error) {
      if (error.status !== 404) throw error;
      gone(this.forward);
      return;
    }
    const forward = now.body.port_forward;
    this.confirm.ask({
      title: `Delete ${nameOf(forward)}?`, verb: "Delete", choice: forward.connections_active > 0,
      text: `${this.live.hostOf(this.forward)}:${forward.host_port} no longer leads to ${forward.instance_id}. ${openOf(forward)}`,
      act: async (connections) => {
        try {
          await this.mine.call("DELETE", `${pathOf(forward)}?connections=${connections}`, {headers: {"If-Match": now.headers.get("ETag")}});
          this.leave(`Deleted ${nameOf(forward)}.`);
        } catch (error) {
          if (error.status !== 404) throw error;
          gone(forward);
        }
      }});
  }

  leave(said) {
    this.confirm.dialog.close();
    this.dialog.close();
    this.say(said);
  }

  end({id, client}) {
    const {opened} = this;
    this.confirm.ask({
      title: `End the connection of ${client}?`, text: "It is reset at once.", verb: "End",
      act: async () => {
        let said = `Ended the connection of ${client}.`;
        try {
          await this.mine.call("DELETE", `${pathOf(this.forward)}/connections/${id}`);
        } catch (error) {
          if (error.status !== 404) throw error;
          said = `The connection of ${client} had ended already.`;
        }
        write(this.said, said);
        await this.look(opened, true);
      }});
  }
}
