// The dialog that creates a forward.
import {Problem} from "./api.js";
import {busy} from "./confirm.js";
import {write} from "./table.js";

/// A number as one; anything else is for the API to refuse.
const numberIn = (text, factor = 1) => /^\d+$/.test(text) ? Number(text) * factor : text;

export class Create {
  constructor(main, live, onCreated) {
    Object.assign(this, {live, mine: live.mine, onCreated});
    this.dialog = main.querySelector("#create");
    this.form = main.querySelector("#create-form");
    this.problem = main.querySelector("#create-problem");
    main.querySelector("#create-open").addEventListener("click", () => this.open());
    main.querySelector("#create-cancel").addEventListener("click", () => this.dialog.close());
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      busy(this.form.querySelector("[type=submit]"), this.problem, () => this.submit());
    });
  }

  open() {
    const running = [...this.live.instances.items.values()].filter(({state}) => state === "running").map(({id}) => id);
    this.form.reset();
    this.mark(undefined);
    write(this.problem, "");
    this.form.querySelector("#create-instances").replaceChildren(...running.map((id) => new Option(id)));
    if (running.length === 1) this.form.querySelector("#create-instance").value = running[0];
    this.renewKey();
    this.dialog.showModal();
  }

  /// Repeats of a request that got no answer must not create a second forward. crypto.randomUUID() needs TLS.
  renewKey() {
    this.idempotencyKey = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  }

  wanted() {
    const value = (name) => this.form.elements[name].value.trim();
    const wanted = {
      guest_port: numberIn(value("guest_port")), label: value("label"), max_connections: numberIn(value("max_connections")),
      allowed_cidrs: value("allowed_cidrs").split(/[\s,]+/).filter(Boolean),
      ttl_seconds: numberIn(value("ttl_seconds"), Number(value("create-unit"))),
    };
    return Object.fromEntries(Object.entries(wanted).filter(([, each]) => each.length !== 0));
  }

  async submit() {
    const instance = this.form.elements["create-instance"].value.trim();
    this.mark(undefined);
    try {
      const {body} = await this.mine.call("POST", `/instances/${encodeURIComponent(instance)}/port-forwards`,
        {body: this.wanted(), headers: {"Idempotency-Key": this.idempotencyKey}});
      this.dialog.close();
      this.onCreated({...body.port_forward, hostname: body.hostname});
    } catch (error) {
      if (error instanceof Problem) {
        this.renewKey();
        this.mark(error.code === "not_found" ? "create-instance" : error.field);
      }
      throw error;
    }
  }

  /// The field that the API refuses.
  mark(field) {
    for (const input of this.form.querySelectorAll("input")) {
      const isIt = field !== undefined && (input.name || input.id) === field.split(/[.[]/)[0];
      if (isIt) input.setAttribute("aria-invalid", "true");
      else input.removeAttribute("aria-invalid");
      if (isIt) input.setAttribute("aria-describedby", "create-problem");
      if (isIt) input.focus();
    }
  }
}
