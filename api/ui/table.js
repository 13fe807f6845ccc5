// Tables whose rows are made once: a refresh touches only what has changed, so that focus, selection and scrolling stay.

export function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

/// Text from tenants gets into the page here, as text.
export function write(target, text, className) {
  if (target.textContent !== String(text)) target.textContent = text;
  if (className !== undefined && target.className !== className) target.className = className;
}

export function setHidden(target, hidden) {
  if (target.hidden !== hidden) target.hidden = hidden;
}

/// Names and values, as a list of <dt> and <dd>.
export function writeFacts(list, facts) {
  const wanted = facts.filter(([, value]) => value !== undefined && value !== "");
  while (list.children.length > wanted.length) list.lastElementChild.remove();
  while (list.children.length < wanted.length) {
    const group = element("div");
    group.append(element("dt"), element("dd"));
    list.append(group);
  }
  wanted.forEach(([name, value], i) => {
    write(list.children[i].children[0], name);
    write(list.children[i].children[1], value);
  });
}

export class Table {
  /// Of `columns`, each has `paint`, which returns a cell's text, or that and its class; or also `make`, which is called once
  /// for a new cell, and `paint` then does what it likes. `step` rows are shown, and as many more on request. `onRow` is called
  /// with each new row.
  constructor(body, {columns, step = 200, key = (item) => item.id, caption, onRow = () => {}}) {
    Object.assign(this, {body, columns, step, key, caption, onRow});
    this.rows = new Map(); // by key
    this.items = [];
    this.most = step;
    this.more = body.closest(".scroll").querySelector(".more");
    this.more.addEventListener("click", () => {
      this.most += this.step;
      this.show(this.items);
    });
  }

  show(items) {
    this.items = items;
    const shown = items.slice(0, this.most);
    const keys = new Set(shown.map(this.key));
    for (const [key, row] of this.rows) {
      if (keys.has(key)) continue;
      row.remove();
      this.rows.delete(key);
    }
    const focused = document.activeElement;
    let next = this.body.firstElementChild;
    for (const item of shown) {
      const row = this.rows.get(this.key(item)) ?? this.make(item);
      this.paint(row, item);
      if (row === next) next = next.nextElementSibling;
      else this.body.insertBefore(row, next);
    }
    if (focused !== document.activeElement && focused.isConnected) focused.focus({preventScroll: true}); // its row moved
    write(this.body.parentElement.caption, this.caption(shown.length, items.length));
    setHidden(this.more, shown.length === items.length);
    write(this.more, `Show ${Math.min(this.step, items.length - shown.length)} more`);
  }

  make(item) {
    const row = element("tr");
    row.setAttribute("role", "row");
    for (const {make, name} of this.columns) {
      const cell = element("td", undefined, name);
      cell.setAttribute("role", "cell");
      make?.(cell, item);
      row.append(cell);
    }
    this.rows.set(this.key(item), row);
    this.onRow(row, item);
    return row;
  }

  paint(row, item) {
    this.columns.forEach(({make, paint, name = ""}, i) => {
      const cell = row.children[i];
      if (make) {
        paint?.(cell, item);
        return;
      }
      const [text, className] = [paint(item)].flat();
      write(cell, text, [name, className].filter(Boolean).join(" "));
    });
  }
}

const kSvg = "http://www.w3.org/2000/svg";

/// Draws the last two minutes as a line, with the newest value at the right edge; nothing if nothing happened.
export function drawLine(path, samples, most, width, height) {
  const step = width / 119;
  const start = width - (samples.length - 1) * step;
  const points = samples.map((value, i) =>
    `${i === 0 ? "M" : "L"}${(start + i * step).toFixed(1)} ${(height - 1 - (height - 2) * value / (most || 1)).toFixed(1)}`);
  const drawn = most > 0 ? points.join("") : "";
  if ((path.getAttribute("d") ?? "") !== drawn) path.setAttribute("d", drawn);
}

export function sparkline() {
  const svg = document.createElementNS(kSvg, "svg");
  svg.setAttribute("viewBox", "0 0 120 24");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(kSvg, "path");
  path.setAttribute("class", "sent");
  svg.append(path);
  return svg;
}
