// The nodes of a fleet, for its admins.
import {Table, element, setHidden, write} from "./table.js";

const kStateClasses = {up: "good", draining: "", lost: "bad"};

export class NodesTable {
  constructor(main, live, confirm, say) {
    Object.assign(this, {live, mine: live.mine, confirm, say});
    this.table = new Table(main.querySelector("#nodes"), {columns: this.columns(), caption: (shown, all) => `${shown} of ${all}, by id`});
  }

  columns() {
    return [
      {paint: ({id}) => id},
      {name: "state", paint: ({state}) => [state, kStateClasses[state]]},
      {paint: ({hostname}) => hostname ?? ""}, {paint: ({instances}) => instances}, {paint: ({id}) => this.forwardsOf(id)},
      {paint: ({load}) => load?.connections ?? ""}, {paint: ({version}) => version ?? ""},
      {name: "end", make: (cell, {id}) => {
        const button = element("button");
        button.type = "button";
        button.addEventListener("click", () => this.turn(this.live.nodes.items.get(id)));
        cell.append(button);
      }, paint: ({firstChild}, {state}) => {
        write(firstChild, state === "draining" ? "Undrain…" : "Drain…");
        setHidden(firstChild, state === "lost" || !this.live.mayChange);
      }},
    ];
  }

  /// The node's own number may be of a while ago.
  forwardsOf(id) { return this.counts?.get(id) ?? 0; }

  show() {
    this.counts = new Map();
    for (const {node} of this.live.forwards.items.values()) this.counts.set(node, this.forwardsOf(node) + 1);
    this.table.show([...this.live.nodes.items.values()].sort((a, b) => a.id < b.id ? -1 : 1));
  }

  turn({id, state, instances}) {
    const drains = state !== "draining";
    this.confirm.ask({
      title: drains ? `Drain ${id}?` : `Undrain ${id}?`, verb: drains ? "Drain" : "Undrain",
      text: drains ? "It takes no new instances, sessions and forwards, also after a restart. " +
        `What it has goes on: instances: ${instances}, forwards: ${this.forwardsOf(id)}.`
        : "It takes new instances and forwards again.",
      act: async () => {
        await this.mine.call(drains ? "POST" : "DELETE", `/nodes/${encodeURIComponent(id)}/drain`);
        this.live.due.set("nodes", performance.now());
        this.say(drains ? `${id} is being drained.` : `${id} takes new instances and forwards again.`);
      }});
  }
}
