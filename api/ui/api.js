// Calls to the API on behalf of a login, and the stream of its events.

const kTimeout_ms = 30000; // the node answers within two seconds if it can

/// The login has ended, or another one has begun, since something was asked for.
export class Forgotten extends Error {}

/// The key is of no use here.
export class Refused extends Error {}

/// Another answer than was asked for, with the problem details of RFC 9457.
export class Problem extends Error {
  constructor(answer, {detail, code, field} = {}) {
    super(detail ?? `The node answered ${answer.status}.`);
    this.status = answer.status;
    this.code = code;
    this.field = field;
    this.retryAfter_s = Number(answer.headers.get("Retry-After") ?? 0);
  }
}

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

let current = null;

/// A key, from when it was typed in until it is forgotten. Nothing that is asked for with it arrives afterwards.
export class Login {
  constructor(key) {
    endLogin();
    current = this;
    this.key = key;
    this.over = new AbortController();
  }

  get isOver() { return this !== current; }

  /// Awaits the promise, and throws if this login has ended meanwhile.
  async during(promise) {
    const [outcome] = await Promise.allSettled([promise]);
    if (this.isOver) throw new Forgotten();
    if (outcome.status === "rejected") throw outcome.reason;
    return outcome.value;
  }

  ask(method, path, {headers, body, signal = this.over.signal} = {}) {
    return this.during(fetch(path, {
      method, body, headers: {Authorization: `Bearer ${this.key}`, ...headers}, cache: "no-store", signal}));
  }

  /// The body of the answer, and its headers.
  async call(method, path, {body, headers} = {}) {
    const answer = await this.ask(method, path, {
      signal: AbortSignal.any([this.over.signal, AbortSignal.timeout(kTimeout_ms)]),
      headers: body === undefined ? headers : {...headers, "Content-Type": "application/json"},
      body: body === undefined ? undefined : JSON.stringify(body)});
    const text = await this.during(answer.text());
    const isJson = /json/.test(answer.headers.get("Content-Type"));
    const parsed = isJson && text !== "" ? JSON.parse(text) : text;
    if (answer.status === 401) throw new Refused(parsed.detail);
    if (!answer.ok) throw new Problem(answer, isJson ? parsed : {});
    return {body: parsed, headers: answer.headers};
  }

  async get(path) { return (await this.call("GET", path)).body; }

  /// A page that nobody sees asks for nothing.
  async untilSeen() {
    while (document.hidden) {
      await this.during(new Promise((resolve) => document.addEventListener("visibilitychange", resolve, {once: true})));
    }
  }

  /// Hands over each event after the one that has the id. A stream that is lost continues where it was; so does that of a page
  /// that nobody saw, since a browser has few connections for all pages of a node together.
  async follow(after, onEvent) {
    let last = after;
    for (;;) {
      let wait_s = 1;
      await this.untilSeen();
      const unseen = new AbortController();
      document.addEventListener("visibilitychange", () => unseen.abort(), {once: true});
      try {
        const answer = await this.ask("GET", `/events?last_event_id=${encodeURIComponent(last)}`,
          {signal: AbortSignal.any([this.over.signal, unseen.signal])});
        if (answer.status === 401) return; // the next call says so too, and why
        if (!answer.ok) throw new Problem(answer);
        const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
        for (let text = "";;) {
          const {value, done} = await this.during(reader.read());
          if (done) break;
          const blocks = (text + value).split("\n\n");
          text = blocks.pop();
          for (const event of blocks.map(parseEvent)) {
            last = event.id ?? last;
            if (event.event !== undefined) onEvent({id: event.id, type: event.event, data: JSON.parse(event.data)});
          }
        }
      } catch (error) {
        if (error instanceof Forgotten) throw error;
        // Refused, as with too many streams: the lists are read all the same. Or the daemon is restarting.
        if (error instanceof Problem) wait_s = Math.max(10, error.retryAfter_s);
      }
      await this.during(sleep(1000 * wait_s));
    }
  }
}

export function endLogin() {
  current?.over.abort();
  current = null;
}

function parseEvent(block) {
  const fields = {};
  for (const one of block.split("\n")) {
    const colon = one.indexOf(": ");
    if (colon > 0) fields[one.slice(0, colon)] = one.slice(colon + 2);
  }
  return fields;
}
