// The table of forwards: search, order, and what is seen of each.
import {Table, drawLine, element, sparkline, write} from "./table.js";
import {age, causeOf, metadataOf, moment, nodeOf, rate, stateClass, targetOf} from "./words.js";

const kRowsStep = 250;
const kStates = ["failed", "unavailable", "expired", "disabled", "listening"]; // what needs attention comes first

const byText = (a, b) => a.localeCompare(b, undefined, {numeric: true});
const byNumber = (a, b) => a - b;

/// How columns are compared, and whether their first order is a falling one.
const kOrders = {
  port: {of: (forward) => forward.host_port, compare: byNumber},
  label: {of: (forward) => forward.label, compare: byText},
  instance: {of: (forward) => forward.instance_id, compare: byText},
  node: {of: ({node = ""}) => node, compare: byText},
  guest: {of: (forward) => String(targetOf(forward)), compare: byText},
  state: {of: (forward) => kStates.indexOf(forward.state), compare: byNumber},
  connections: {of: (forward) => forward.connections_active ?? 0, compare: byNumber, falls: true},
  sent: {of: (forward, live) => live.traffic.of(forward.id).sent, compare: byNumber, falls: true},
  received: {of: (forward, live) => live.traffic.of(forward.id).received, compare: byNumber, falls: true},
  age: {of: (forward) => forward.id, compare: (a, b) => a < b ? 1 : a > b ? -1 : 0}, // an id begins with its time
};

function textOf(forward, live) {
  return [forward.instance_id, forward.label, forward.host_port, targetOf(forward), live.ownerOf(forward), metadataOf(forward),
    forward.node, forward.hostname, forward.state, causeOf(forward)].join(" ").toLowerCase();
}

export class ForwardsTable {
  constructor(main, live, onOpen) {
    this.live = live;
    this.order = {by: "age", falls: false};
    this.search = main.querySelector("#search");
    this.search.addEventListener("input", () => this.show());
    this.heads = [...main.querySelectorAll("th button[data-sort]")];
    for (const head of this.heads) head.addEventListener("click", () => this.sortBy(head.dataset.sort));
    const body = main.querySelector("#forwards");
    // Lines are drawn of rows that can be seen only.
    this.seen = new Set();
    this.observer = new IntersectionObserver((entries) => {
      for (const {target, isIntersecting} of entries) {
        this.seen[isIntersecting ? "add" : "delete"](target);
        if (isIntersecting) this.draw(target);
      }
    });
    body.addEventListener("click", ({target}) => {
      const button = target.closest("button");
      if (button) onOpen(button.closest("tr").dataset.id);
    });
    this.table = new Table(body, {
      step: kRowsStep, columns: this.columns(),
      onRow: (row, {id}) => {
        row.dataset.id = id;
        this.observer.observe(row);
      },
      caption: (shown, all) => `${shown} of ${live.forwards.items.size} forwards` +
        (shown < all ? `; ${all} are found` : "") + (live.forwards.isComplete ? "" : "; there are more, which are being read"),
    });
    this.showOrder();
  }

  columns() {
    const {live} = this;
    const rateCell = (way, name) => ({name, paint: ({id}) => {
      const perSecond = live.traffic.of(id)[way];
      return [rate(perSecond), perSecond === 0 ? "idle" : ""];
    }});
    return [
      {name: "port", make: (cell) => {
        cell.append(element("button", undefined, "link"));
        cell.firstChild.type = "button";
        cell.firstChild.ariaHasPopup = "dialog";
      }, paint: (cell, {host_port}) => write(cell.firstChild, host_port)},
      {name: "label", paint: ({label}) => label},
      {name: "instance", make: (cell) => cell.append(element("span"), " ", element("span", undefined, "soft")),
        paint: (cell, forward) => {
          write(cell.firstChild, forward.instance_id);
          write(cell.lastChild, live.isAdmin ? live.ownerOf(forward) : "");
        }},
      {name: "node", paint: nodeOf},
      {name: "guest", paint: targetOf},
      {name: "state", make: (cell) => cell.append(element("span"), " ", element("span", undefined, "why")),
        paint: (cell, forward) => {
          write(cell.firstChild, forward.state, stateClass(forward));
          write(cell.lastChild, causeOf(forward));
        }},
      {name: "count", paint: ({connections_active}) => connections_active ?? ""},
      rateCell("sent", "rate to"), rateCell("received", "rate from"),
      {name: "lately", make: (cell) => cell.append(sparkline())},
      {name: "age", make: (cell, {created_at}) => { cell.title = moment(created_at); },
        paint: (cell, {created_at}) => write(cell, age(created_at))},
    ];
  }

  sortBy(by) {
    const {falls = false} = kOrders[by];
    this.order = {by, falls: this.order.by === by ? !this.order.falls : falls};
    this.showOrder();
    this.show();
  }

  showOrder() {
    for (const head of this.heads) {
      const isIt = head.dataset.sort === this.order.by;
      if (isIt) head.parentElement.ariaSort = this.order.falls ? "descending" : "ascending";
      else head.parentElement.removeAttribute("aria-sort");
    }
  }

  show() {
    const {live} = this;
    const words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const {of, compare} = kOrders[this.order.by];
    const sign = this.order.falls ? -1 : 1;
    const found = [...live.forwards.items.values()]
      .filter((forward) => words.length === 0 || words.every((word) => textOf(forward, live).includes(word)))
      .map((forward) => [of(forward, live), forward])
      .sort(([a, one], [b, other]) => sign * compare(a, b) || kOrders.age.compare(one.id, other.id))
      .map(([, forward]) => forward);
    const focused = document.activeElement;
    this.table.show(found);
    if (!focused.isConnected) this.table.body.closest(".scroll").focus({preventScroll: true});
    for (const row of this.seen) this.draw(row);
  }

  draw(row) {
    const {samples} = this.live.traffic.of(row.dataset.id);
    drawLine(row.querySelector("path"), samples, Math.max(0, ...samples), 120, 24);
  }

  /// Brings a new forward's row into view, whatever is searched for.
  reveal(id) {
    this.search.value = "";
    this.order = {by: "age", falls: false};
    this.showOrder();
    this.show();
    const row = this.table.rows.get(id);
    row.scrollIntoView({block: "nearest"});
    row.classList.add("new");
    row.querySelector("button").focus({preventScroll: true});
  }
}
