// Adds what reading does not need: a cell's details, the filter, where one is in the contents.
// Data reaches the page as text nodes and attributes only, never as markup.
(() => {
"use strict";

const byId = (id) => document.getElementById(id);
const root = document.documentElement;
root.classList.add("js");

// Parsed when first asked for: the page is read before any cell is opened.
let parsed = null;
const data = () => (parsed ??= JSON.parse(byId("data").textContent));

function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// Details of a cell

const dialog = byId("details");
const body = byId("details-body");
const buttons = [...document.querySelectorAll("button.cell")]; // in reading order, as the data's cells are
let shown = -1;
let before = "";

const addressOf = (cell) => `${data().tables[cell.t].address}/${cell.r}/${cell.c}`;
const number = (value, digits) => (typeof value === "number" ? value.toFixed(digits) : String(value));
const signed = (value, digits) => (typeof value === "number" && value >= 0 ? "+" : "") + number(value, digits).replace("-", "−");
const quoted = (text) => (/^[\w@%+=:,.\/-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

function section(title, ...children) {
  const kept = children.filter(Boolean);
  return kept.length ? make("section", {}, make("h3", {}, title), ...kept) : null;
}

function list(entries) {
  return entries?.length ? make("ul", { class: "plain-list" }, ...entries.map((entry) => make("li", {}, entry))) : null;
}

function facts(entries) {
  const kept = entries.filter(([, value]) => value !== undefined && value !== null && value !== "");
  return make("dl", { class: "facts-list" }, ...kept.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
}

function command(text) {
  const code = make("code", {}, text);
  const button = make("button", { type: "button", class: "plain", "aria-label": `Copy: ${text}` }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
      byId("said").textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    } catch {
      getSelection().selectAllChildren(code); // no clipboard here: it is selected instead
    }
  });
  return make("p", { class: "command" }, code, button);
}

function comparison(cell) {
  const digits = cell.digits ?? 2;
  const unit = cell.unit ? ` (${cell.unit})` : "";
  const trio = [];
  const box = (title, value, small) =>
    make("div", {}, make("dt", {}, title), make("dd", {}, value, small ? make("small", {}, small) : null));
  if (cell.text !== undefined) trio.push(box("Ours", cell.text, "read from the composed configuration"));
  else if (cell.mean !== undefined) {
    const spread = cell.std === undefined ? "" : ` ± ${number(cell.std, digits)}`;
    trio.push(box(`Ours${unit}`, `${number(cell.mean, digits)}${spread}`, `mean of n = ${cell.n} of ${cell.seeds.length} seeds`));
  } else trio.push(box("Ours", "–", cell.status));
  const printed = cell.published;
  if (printed) trio.push(box("Paper", printed.mark ?? printed.text, printed.mark ? "in place of a value" : "as printed"));
  if (cell.difference !== undefined) {
    const inside = cell.inside === null ? "one run gives no interval" : cell.inside ? "inside our 95 % interval" : "outside our 95 % interval";
    trio.push(box(`Difference${unit}`, signed(cell.difference, digits), inside));
  }
  return make("dl", { class: "trio" }, ...trio);
}

function judgement(cell) {
  if (!cell.why) return null;
  const sign = { agrees: "✓", near: "≈", off: "≠" }[cell.agreement];
  const words = cell.agreement ? [make("span", { class: "sign", "aria-hidden": "true" }, sign), make("b", {}, cell.agreement), ". "] : [];
  return make("p", { class: `judged ${cell.agreement ?? ""}`.trim() }, ...words, cell.why);
}

// The seeds, our mean and its interval, and the paper's value on one line.
function strip(cell) {
  const values = (cell.values ?? []).filter((value) => typeof value === "number");
  const printed = cell.profile ? null : cell.published;
  const paper = typeof printed?.mean === "number" ? printed.mean : null;
  const spread = paper !== null && typeof printed.std === "number" ? [paper - printed.std, paper + printed.std] : [];
  const all = [...values, ...(cell.interval ?? []), ...spread, ...(paper === null ? [] : [paper])].filter(Number.isFinite);
  const low = Math.min(...all), high = Math.max(...all);
  if (!values.length || all.length < 2 || high === low) return null;
  const width = Math.min(640, innerWidth - 60), margin = 45; // text is not scaled
  const x = (value) => (margin + ((value - low) / (high - low)) * (width - 2 * margin)).toFixed(1);
  const svg = (tag, attributes, text) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const line = (kind, from, to, y1, y2) => svg("line", { class: kind, x1: x(from), x2: x(to), y1, y2 });
  const digits = cell.digits ?? 2;
  const picture = svg("svg", { viewBox: `0 0 ${width} 74`, "aria-hidden": "true", focusable: "false" });
  picture.append(svg("line", { class: "axis", x1: 0, x2: width, y1: 34, y2: 34 }));
  if (spread.length) picture.append(line("spread", ...spread, 48, 48));
  if (cell.interval) picture.append(line("range", ...cell.interval, 34, 34));
  if (paper !== null) {
    picture.append(line("paper", paper, paper, 26, 54), svg("text", { x: x(paper), y: 69, "text-anchor": "middle" }, `paper ${printed.text}`));
  }
  for (const value of values) picture.append(svg("circle", { class: "seed", cx: x(value), cy: 34, r: 4.5 }));
  picture.append(line("mean", cell.mean, cell.mean, 20, 42), svg("text", { x: x(cell.mean), y: 13, "text-anchor": "middle" }, `mean ${number(cell.mean, digits)}`));
  return make("div", { class: "strip" }, picture);
}

const runOf = (cell, seed) => data().runs[`${cell.key}/seed${seed}`];

const plainOf = (value) => (isReference(value) ? Object.fromEntries(Object.entries(data().pool[value.$]).map(([name, part]) => [name, plainOf(part)])) : value);

function code(run) {
  const git = run?.made ? plainOf(run.made).git : null;
  return git?.commit ? String(git.commit).slice(0, 9) + (git.dirty ? " + uncommitted changes" : "") : "–";
}

function duration(seconds) {
  if (typeof seconds !== "number") return "–";
  if (seconds < 90) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  return seconds < 5400 ? `${(seconds / 60).toFixed(0)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

function seeds(cell) {
  if (!cell.seeds?.length) return null;
  const digits = (cell.digits ?? 2) + 2;
  const rows = cell.seeds.map((seed, place) => {
    const value = cell.values?.[place];
    const run = runOf(cell, seed);
    return make("tr", {},
      make("th", { scope: "row" }, String(seed)),
      make("td", {}, cell.states[place] + (run?.reason ? `: ${run.reason}` : "")),
      make("td", {}, value === null || value === undefined ? "–" : number(value, digits)),
      make("td", {}, duration(run?.wall_s)),
      make("td", {}, code(run)),
      make("td", { class: "path" }, run?.path ?? "–"));
  });
  const head = ["seed", "status", "value", "took", "commit", "run directory"].map((title) => make("th", { scope: "col" }, title));
  const table = make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows));
  return section("Runs", make("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Runs" }, table));
}

function commands(cell) {
  const address = quoted(addressOf(cell));
  const name = cell.profile ? ` --profile ${quoted(cell.profile)}` : "";
  const lines = [];
  if (cell.kind === "runs" && !cell.needs && cell.status !== "uncalibrated") {
    const open = cell.seeds.find((seed, place) => cell.states[place] !== "completed") ?? cell.seeds[0];
    lines.push(`python -m runner cell=${address} seed=${open}${cell.profile ? ` profile=${quoted(cell.profile)}` : ""}`);
    lines.push(`python scripts/submit.py ${address}${name}`);
  }
  lines.push(`python scripts/make_tables.py ${address}${name} --format json`);
  return section("Make it yourself", ...lines.map(command));
}

// A mapping is stored once and referred to as {"$": place}.
const isReference = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

function scalar(value) {
  if (typeof value !== "string") return JSON.stringify(value);
  return /^[A-Za-z_][\w .\/@-]*$/.test(value) && !/^(true|false|null|yes|no|on|off|nan|inf)$/i.test(value) ? value : JSON.stringify(value);
}

function flow(value) {
  if (Array.isArray(value)) return `[${value.map(flow).join(", ")}]`;
  if (!isReference(value)) return scalar(value);
  return `{${Object.entries(data().pool[value.$]).map(([name, part]) => `${name}: ${flow(part)}`).join(", ")}}`;
}

function yaml(reference, indent = "") {
  return Object.entries(data().pool[reference.$]).map(([name, value]) => {
    if (!isReference(value)) return `${indent}${name}: ${flow(value)}\n`;
    const inner = yaml(value, `${indent}  `);
    return inner ? `${indent}${name}:\n${inner}` : `${indent}${name}: {}\n`;
  }).join("");
}

function folded(title, text) {
  return make("details", {}, make("summary", {}, title), make("pre", { tabindex: "0" }, text));
}

function environments(cell) {
  const found = new Map();
  for (const seed of cell.seeds ?? []) {
    const run = runOf(cell, seed);
    if (run?.made) found.set(run.made.$, [...(found.get(run.made.$) ?? []), seed]);
  }
  return [...found].map(([place, of]) =>
    folded(`Versions, commit and device${found.size > 1 ? ` of seed ${of.join(", ")}` : ""}`, yaml({ $: place })));
}

function operands(cell) {
  if (!cell.operands) return null;
  return list(cell.operands.map((address) => {
    const place = data().cells.findIndex((other) => addressOf(other) === address);
    if (place < 0) return address;
    const button = make("button", { type: "button", class: "link" }, address);
    button.addEventListener("click", () => show(place));
    return button;
  }));
}

function show(place) {
  const cell = data().cells[place];
  const table = data().tables[cell.t];
  shown = place;
  byId("details-address").textContent = addressOf(cell);
  byId("details-title").textContent = `${table.rows[cell.r]} · ${table.columns[cell.c]}`;
  const config = data().configs[cell.key];
  const meaning = data().meanings[cell.status];
  const interval = cell.interval?.map((bound) => number(bound, cell.digits ?? 2)).join(" to ");
  body.replaceChildren(...[
    comparison(cell),
    judgement(cell),
    strip(cell),
    section("Problems", list(cell.problems)),
    section("Not there yet", list(cell.needs)),
    section("To know", list(cell.footnotes)),
    seeds(cell),
    section("Calculated from", operands(cell)),
    commands(cell),
    section("What it is", facts([
      ["status", `${cell.status}${meaning ? `: ${meaning}` : ""}`],
      ["table", table.title],
      ["metric", cell.metric && `${cell.metric}${cell.direction ? `, ${cell.direction === "up" ? "higher" : "lower"} is better` : ""}`],
      ["95 % interval", interval],
      ["best", cell.best ? "the best of its comparison group beyond chance" : null],
      ["profile", cell.profile],
      ["key", cell.key && make("code", {}, cell.key)],
      ["overrides", cell.overrides?.length ? make("code", {}, cell.overrides.map(quoted).join(" ")) : null],
    ])),
    ...environments(cell),
    config ? folded("Configuration, composed", yaml(config)) : null,
  ].filter(Boolean));
  dialog.scrollTop = 0;
  byId("details-before").disabled = neighbour(-1) < 0;
  byId("details-after").disabled = neighbour(1) < 0;
  remember(`#${addressOf(cell)}`);
  if (!dialog.open) dialog.showModal();
}

// The next cell in reading order that the filter leaves.
function neighbour(step) {
  let place = shown + step;
  while (place >= 0 && place < buttons.length && (buttons[place].closest("[hidden]") || buttons[place].parentElement.classList.contains("dim"))) place += step;
  return place >= 0 && place < buttons.length ? place : -1;
}

function remember(hash) {
  try {
    history.replaceState(null, "", hash || location.pathname + location.search);
  } catch { /* some viewers of local files allow no history */ }
}

function open(place) {
  before = location.hash;
  show(place);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button.cell");
  if (button) open(Number(button.dataset.cell));
});
byId("details-close").addEventListener("click", () => dialog.close());
byId("details-before").addEventListener("click", () => step(-1));
byId("details-after").addEventListener("click", () => step(1));
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
dialog.addEventListener("close", () => {
  remember(before.split("/").length > 3 ? "" : before);
  buttons[shown]?.focus();
});
dialog.addEventListener("keydown", (event) => {
  if (event.target.closest("pre, .scroll")) return;
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});

function step(by) {
  const place = neighbour(by);
  if (place >= 0) show(place);
}

// Arrow keys move between the cells of a table.
document.addEventListener("keydown", (event) => {
  const button = event.target.closest?.("button.cell");
  const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if (!button || !move || event.altKey || event.ctrlKey || event.metaKey) return;
  const cell = button.parentElement;
  const rows = [...cell.closest("table").querySelectorAll("tbody tr:not(.section, [hidden])")];
  const row = rows[rows.indexOf(cell.parentElement) + move[0]];
  const next = row?.cells[cell.cellIndex + move[1]]?.querySelector("button.cell");
  event.preventDefault();
  next?.focus();
});

// The filter. Words must all occur in a cell's paper, table, section, row or column; marks and statuses are "any of".

const form = byId("filter");
const input = byId("filter-text");
const boxes = [...form.querySelectorAll("input[type=checkbox]")];
const papers = [...document.querySelectorAll("section.paper")];
let index = null;

function indexed() {
  return papers.map((paper) => ({
    element: paper,
    tables: [...paper.querySelectorAll("section.table[data-table]")].map((table) => {
      const about = `${table.dataset.table} ${table.querySelector("h3").textContent}`;
      const heads = [...table.querySelectorAll("thead th[data-id]")].map((head) => `${head.dataset.id} ${head.textContent}`);
      const address = table.dataset.table;
      const ids = [...table.querySelectorAll("thead th[data-id]")].map((head) => head.dataset.id);
      return {
        element: table,
        bodies: [...table.querySelectorAll(":scope > .scroll tbody")].map((part) => {
          const title = part.querySelector(".section")?.textContent ?? "";
          return {
            heading: part.querySelector(".section"),
            rows: [...part.querySelectorAll("tr[data-id]")].map((row) => ({
              element: row,
              cells: [...row.cells].slice(1).map((cell, place) => {
                const button = cell.firstElementChild;
                const words = `${about} ${title} ${row.cells[0].textContent} ${heads[place]} ${address}/${row.dataset.id}/${ids[place]}`;
                return {
                  element: cell,
                  words: words.toLowerCase(),
                  status: button?.dataset.s,
                  agreement: ["agrees", "near", "off"].find((name) => cell.classList.contains(name)),
                };
              }),
            })),
          };
        }),
      };
    }),
  }));
}

function applyFilter() {
  index ??= indexed();
  const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
  const chosen = (name) => new Set(boxes.filter((box) => box.name === name && box.checked).map((box) => box.value));
  const statuses = chosen("status"), agreements = chosen("agreement");
  const all = !words.length && !statuses.size && !agreements.size;
  const fits = (cell) =>
    cell.status !== undefined &&
    words.every((word) => cell.words.includes(word)) &&
    ((!statuses.size && !agreements.size) || statuses.has(cell.status) || agreements.has(cell.agreement));
  let cells = 0, found = 0, tables = 0;
  for (const paper of index) {
    let left = 0;
    for (const table of paper.tables) {
      let here = 0;
      for (const part of table.bodies) {
        let rows = 0;
        for (const row of part.rows) {
          let hits = 0;
          for (const cell of row.cells) {
            const hit = all || fits(cell);
            if (cell.status !== undefined) { cells += 1; hits += hit; }
            cell.element.classList.toggle("dim", !hit && cell.status !== undefined);
          }
          row.element.hidden = !all && hits === 0;
          rows += !row.element.hidden;
          here += hits;
        }
        if (part.heading) part.heading.hidden = rows === 0;
      }
      table.element.hidden = !all && here === 0;
      left += !table.element.hidden;
      found += here;
    }
    paper.element.hidden = !all && left === 0;
    tables += left;
  }
  byId("nothing").hidden = all || found > 0;
  byId("filter-chosen").textContent = statuses.size + agreements.size ? `: ${statuses.size + agreements.size}` : "";
  byId("filter-count").classList.toggle("active", !all);
  byId("filter-count").textContent = all
    ? `${cells.toLocaleString("en")} cells`
    : `${found.toLocaleString("en")} of ${cells.toLocaleString("en")} cells in ${tables} table${tables === 1 ? "" : "s"}`;
}

function clearFilter() {
  input.value = "";
  for (const box of boxes) box.checked = false;
  applyFilter();
  input.focus();
}

let waiting = 0;
input.addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(applyFilter, 120);
});
form.addEventListener("change", applyFilter);
form.addEventListener("submit", (event) => {
  event.preventDefault();
  applyFilter();
});
for (const button of document.querySelectorAll("[data-clear]")) button.addEventListener("click", clearFilter);
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !dialog.open && !event.target.closest?.("input, textarea, select") && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    input.focus();
  }
  if (event.key === "Escape" && event.target === input) clearFilter();
});
byId("filter-more").addEventListener("click", () => {
  const boxes = byId("filter-boxes");
  boxes.hidden = !boxes.hidden;
  byId("filter-more").setAttribute("aria-expanded", String(!boxes.hidden));
});
form.hidden = false;
byId("filter-count").textContent = `${buttons.length.toLocaleString("en")} cells`;

// Contents: open beside the page, closed above it; the table in view is marked.

const contents = byId("contents");
const wide = matchMedia("(min-width: 62.01rem)");
contents.open = wide.matches;
wide.addEventListener("change", () => { contents.open = wide.matches; });
contents.addEventListener("click", (event) => { if (event.target.closest("a") && !wide.matches) contents.open = false; });

const links = new Map([...contents.querySelectorAll("a")].map((link) => [decodeURIComponent(link.hash.slice(1)), link]));
const seen = new Set();
let current = null;
const observer = new IntersectionObserver((entries) => {
  for (const entry of entries) entry.isIntersecting ? seen.add(entry.target) : seen.delete(entry.target);
  const first = [...seen].sort((a, b) => (a.compareDocumentPosition(b) & Node.DOCUMENT_POSITION_FOLLOWING ? -1 : 1))[0];
  const link = first ? links.get(first.id) : null;
  if (link === current) return;
  current?.removeAttribute("aria-current");
  link?.setAttribute("aria-current", "true");
  current = link ?? null;
  if (link && wide.matches) keepInView(link);
}, { rootMargin: "-15% 0px -60% 0px" });
// Not scrollIntoView: it would break off a scroll of the page that is going on.
function keepInView(link) {
  const side = contents.parentElement;
  const [inner, outer] = [link.getBoundingClientRect(), side.getBoundingClientRect()];
  if (inner.top < outer.top + 40) side.scrollTop += inner.top - outer.top - 80;
  if (inner.bottom > outer.bottom - 40) side.scrollTop += inner.bottom - outer.bottom + 80;
}
for (const table of document.querySelectorAll("section.table[data-table]")) observer.observe(table);

// An address PAPER/TABLE/ROW/COLUMN after the # opens that cell.
function openNamed() {
  const address = decodeURIComponent(location.hash.slice(1));
  if (address.split("/").length !== 4) return;
  const place = data().cells.findIndex((cell) => addressOf(cell) === address);
  if (place < 0) return;
  buttons[place].scrollIntoView({ block: "center" });
  open(place);
}
addEventListener("hashchange", openNamed);
openNamed();
})();
