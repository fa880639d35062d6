"use strict";
(() => {
  const find = (id) => document.getElementById(id);
  const data = JSON.parse(find("data").textContent);
  const board = find("board"), body = board.tBodies[0], heads = [...board.tHead.rows[1].cells];
  const lines = [...body.rows], networks = lines.filter((row) => row.className === "network");

  // Light and dark: what the system prefers, until the button says otherwise.
  const theme = find("theme"), root = document.documentElement;
  const paint = (name) => { root.dataset.theme = name; theme.textContent = name === "dark" ? "Light" : "Dark"; };
  paint(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  theme.onclick = () => paint(root.dataset.theme === "dark" ? "light" : "dark");

  // Sort: down, up, and back to the groups of the report.
  const number = (text) => {
    const found = text.replace(/,/g, "").match(/^-?[\d.]+(e-?\d+)?/);
    const unit = { kB: 1e3, MB: 1e6 }[text.split(" ")[1]] || 1;
    return found ? Number(found[0]) * unit : NaN;
  };
  const key = (row, place) => {
    const cell = row.cells[place], value = cell.dataset.value;
    return value === undefined ? cell.textContent.trim() : value === "" ? "–" : value;
  };
  const compare = (a, b) => {
    const x = number(a), y = number(b);
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, "en", { numeric: true }) : x - y;
  };
  heads.forEach((head, place) => {
    head.querySelector("button").onclick = () => {
      const kind = head.dataset.kind, first = kind === "number" ? "descending" : "ascending";
      const second = first === "descending" ? "ascending" : "descending", old = head.getAttribute("aria-sort");
      const now = old === null ? first : old === first ? second : null;
      heads.forEach((one) => one.removeAttribute("aria-sort"));
      if (now === null) { body.append(...lines); filter(); return; }
      head.setAttribute("aria-sort", now);
      const sign = now === "ascending" ? 1 : -1;
      const order = networks.map((row) => [key(row, place), row]).sort(([a], [b]) =>
        (a === "–") - (b === "–") || (a === "–" ? 0 : sign * compare(a, b)));
      body.append(...order.map(([, row]) => row));
      filter();
    };
  });

  // Filter: every word must stand in the row.
  const sorted = () => heads.some((head) => head.hasAttribute("aria-sort"));
  const filter = () => {
    const words = find("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    networks.forEach((row) => {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      count += !row.hidden;
    });
    lines.forEach((row, place) => {
      if (row.className === "network") return;
      let next = place + 1, any = false;
      while (next < lines.length && lines[next].className === "network") any = !lines[next++].hidden || any;
      row.hidden = sorted() || !any;
    });
    find("shown").textContent = `${count} of ${networks.length} networks`;
  };
  find("filter").oninput = filter;
  filter();

  // Columns shown or hidden; the headings of groups shrink with them.
  find("choose").onchange = (event) => {
    const place = Number(event.target.dataset.column);
    [board.tHead.rows[1], ...networks].forEach((row) => { row.cells[place].hidden = !event.target.checked; });
    let start = 1;
    [...board.tHead.rows[0].cells].slice(1).forEach((cell) => {
      cell.dataset.whole = cell.dataset.whole || cell.colSpan;
      const whole = Number(cell.dataset.whole), part = heads.slice(start, start + whole);
      const left = part.filter((head) => !head.hidden).length;
      cell.hidden = left === 0;
      cell.colSpan = Math.max(left, 1);
      start += whole;
    });
  };

  // A number: how it was made, and the command that makes it again.
  const dialog = find("about");
  body.onclick = (event) => {
    const button = event.target.closest(".cell");
    if (!button) return;
    const place = Number(button.dataset.column), column = data.columns[place];
    const row = data.rows[Number(button.closest("tr").dataset.row)], told = row.cells[place];
    find("about-title").textContent = `${row.label}: ${column.heading}`;
    const facts = [["Number", `${button.firstChild.textContent.trim()} (${button.title})`], ["Images", column.images],
      ["Protocol", column.protocol], ["Meaning", column.meaning], ["Checkpoint", `SHA-256 ${row.sha256}`]];
    if (told) facts.push(["Run", told.run], ["Command", told.command || "none: imported from a file"]);
    find("about-list").replaceChildren(...facts.flatMap(([name, text]) => {
      const term = document.createElement("dt"), value = document.createElement("dd");
      term.textContent = name;
      const inner = document.createElement(["Command", "Protocol", "Checkpoint"].includes(name) ? "code" : "span");
      inner.textContent = text;
      value.append(inner);
      return [term, value];
    }));
    dialog.showModal();
  };

  // Two networks, image by image.
  const option = (text, value) => Object.assign(document.createElement("option"), { textContent: text, value });
  const of = find("of"), first = find("first"), second = find("second"), only = find("only");
  const held = (place) => data.rows.map((row, i) => [row, i]).filter(([row]) => row.cells[place]);
  const usable = data.columns.map((column, i) => [column, i]).filter(([column, i]) => column.truth && held(i).length > 1);
  if (!usable.length) { find("images").hidden = true; document.querySelector('a[href="#images"]').hidden = true; return; }
  usable.forEach(([column, i]) => of.append(option(column.heading, i)));
  const bits = (hex, n) => Array.from({ length: n }, (_, i) => parseInt(hex[i >> 2], 16) >> (3 - (i & 3)) & 1);
  const fill = () => {
    const found = held(of.value), old = [first.value, second.value];
    [first, second].forEach((select, k) => {
      select.replaceChildren(...found.map(([row, i]) => option(row.label, i)));
      const kept = found.some(([, i]) => String(i) === old[k]);
      select.value = kept ? old[k] : found[Math.min(k, found.length - 1)][1];
    });
    draw();
  };
  const draw = () => {
    const column = data.columns[of.value], a = data.rows[first.value], b = data.rows[second.value];
    const x = bits(a.cells[of.value].bits, column.n), y = bits(b.cells[of.value].bits, column.n);
    const where = a.cells[of.value].indices;
    const kinds = { both: "both", one: `only ${a.label}`, two: `only ${b.label}`, none: "neither" };
    const kind = x.map((value, i) => value ? (y[i] ? "both" : "one") : y[i] ? "two" : "none");
    const count = (name) => kind.filter((one) => one === name).length;
    find("key").replaceChildren(...Object.entries(kinds).map(([name, text]) => {
      const line = document.createElement("li"), mark = document.createElement("i");
      mark.className = name;
      line.append(mark, `${text}: ${count(name)}`);
      return line;
    }));
    const name = (i) => where ? where[i] : i;
    find("grid").replaceChildren(...kind.flatMap((one, i) => {
      if (only.checked && (one === "both" || one === "none")) return [];
      const mark = document.createElement("i");
      mark.className = one;
      mark.title = `image ${name(i)}: ${kinds[one]}`;
      return [mark];
    }));
    const list = (one) => kind.flatMap((found, i) => found === one ? [name(i)] : []).join(", ") || "none";
    find("compared").textContent = `${column.heading}, ${column.n} images.`;
    find("list").textContent = `Only ${a.label}: ${list("one")}. Only ${b.label}: ${list("two")}.`;
  };
  of.onchange = fill;
  first.onchange = second.onchange = only.onchange = draw;
  fill();
})();
