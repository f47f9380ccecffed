"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const percent = (value) => (value === null ? "–" : value.toFixed(2));

// ---- elements without markup in strings: no text of the data is ever parsed as HTML
function make(tag, attributes = {}, ...children) {
  const drawing = ["svg", "line", "text", "polyline", "circle", "title"].includes(tag);
  const element = drawing ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

// ---- theme: the system's, until the button is pressed
const root = document.documentElement;
const remembered = (() => { try { return localStorage.getItem("theme"); } catch { return null; } })();
if (remembered) root.dataset.theme = remembered;
byId("theme").addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  try { localStorage.setItem("theme", root.dataset.theme); } catch { /* a file that may not store */ }
});

// ---- sort: numbers from the highest, names from A; the third press gives the paper's order back
for (const table of document.querySelectorAll(".scroll table")) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, index) => head.querySelector("button").addEventListener("click", () => {
    const cycle = index ? ["none", "descending", "ascending"] : ["none", "ascending", "descending"];
    const order = cycle[(cycle.indexOf(head.getAttribute("aria-sort")) + 1) % 3];
    for (const other of heads) other.setAttribute("aria-sort", other === head ? order : "none");
    const rows = [...original];
    const sign = order === "ascending" ? 1 : -1;
    const value = (row) => row.cells[index].dataset.value;
    if (order !== "none") rows.sort((a, b) => {
      if (!index) return sign * a.cells[0].textContent.localeCompare(b.cells[0].textContent);
      // what has no number stays last in both directions
      if (!value(a) || !value(b)) return (value(a) ? 0 : 1) - (value(b) ? 0 : 1);
      return sign * (Number(value(a)) - Number(value(b)));
    });
    body.append(...rows);
  }));
}

// ---- filter: by words of method, table and caption, and by kind of row
function filter() {
  const words = byId("find").value.toLowerCase().split(/\s+/).filter(Boolean);
  const kind = byId("kind").value;
  let shown = 0, all = 0;
  for (const section of document.querySelectorAll("section")) {
    const place = section.querySelector("h2").textContent + " " + section.querySelector(".caption").textContent;
    let left = 0;
    for (const row of section.querySelectorAll("tbody tr")) {
      const text = `${place} ${row.cells[0].textContent}`.toLowerCase();
      const cells = [...row.querySelectorAll(".cell")].map((cell) => data.cells[cell.dataset.cell]);
      const fits = !kind || (kind === "quoted" ? !cells.length
        : cells.some((cell) => cell.source === kind || cell.verdict === kind));
      row.hidden = !(fits && words.every((word) => text.includes(word)));
      left += !row.hidden;
      all += 1;
    }
    section.hidden = !left;
    shown += left;
  }
  byId("count").textContent = shown === all ? `${all} rows` : `${shown} of ${all} rows`;
}
byId("find").addEventListener("input", filter);
byId("kind").addEventListener("change", filter);
document.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
filter();

// ---- details of a cell
const dialog = byId("details");
byId("close").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); }); // the backdrop
document.addEventListener("click", (event) => {
  const button = event.target.closest(".cell");
  if (button) show(data.cells[button.dataset.cell]);
});

function show(cell) {
  const runs = cell.runs.map((id) => data.runs[id]);
  byId("details-title").textContent = `${cell.title}: ${cell.row}, ${cell.column}`;
  const body = byId("details-body");
  body.replaceChildren(
    facts(cell),
    make("h3", {}, runs.length === 1 ? "Seed" : "Seeds"), seeds(runs),
    make("h3", {}, `Validation mIoU by epoch (%), ${runs[0].validated}`), curves(runs), ...diagnostics(runs),
    make("h3", {}, `IoU by class (%), ${cell.checkpoint} epoch`), ...classes(cell, runs),
    make("h3", {}, "Settings that differ from the paper preset"), departures(runs[0].departures),
    make("h3", {}, "Make it again"), ...command(cell.command),
  );
  dialog.showModal();
  dialog.scrollTop = 0;
  byId("details-title").focus();
}

function facts(cell) {
  const interval = cell.low !== null && cell.high !== null ? `${percent(cell.low)} to ${percent(cell.high)}` : null;
  const difference = cell.paper === null ? null : cell.mean - cell.paper;
  const entries = [
    ["ours", percent(cell.mean) + (cell.std === null ? "" : ` ± ${percent(cell.std)}`)],
    ["interval over seeds", interval],
    ["interval over images, one network", range(cell.intervals[0].slice(2))],
    ["paper", cell.paper === null ? null : percent(cell.paper)],
    ["difference", difference === null ? null : (difference < 0 ? "−" : "+") + percent(Math.abs(difference))],
    ["verdict", cell.verdict && make("span", { class: "verdict", "data-verdict": cell.verdict }, cell.verdict)],
    ["verdict, moderated variance", cell.moderated_verdict && `${cell.moderated_verdict}, ${percent(cell.moderated_low)} to ${percent(cell.moderated_high)}`],
    ["q over the table", cell.q === null ? null : cell.q.toFixed(3)],
    ["protocol", cell.protocol],
    ["remark", cell.remark || null],
  ];
  const list = make("dl", { class: "facts" });
  for (const [name, value] of entries) if (value !== null) list.append(make("div", {}, make("dt", {}, name), make("dd", {}, value)));
  return list;
}

function sheet(headings, rows) {
  const line = (cells, tag) => make("tr", {}, ...cells.map((text) => make(tag, {}, text instanceof Node ? text : String(text))));
  return make("div", { class: "wide" }, make("table", {},
    make("thead", {}, line(headings, "th")), make("tbody", {}, ...rows.map((cells) => line(cells, "td")))));
}

const shade = (index) => `var(--line${(index % 4) + 1})`;

function seeds(runs) {
  const code = (run) => (run.commit ? run.commit.slice(0, 10) + (run.dirty ? " + changes" : "") : "no git");
  return sheet(["seed", "best", "epoch", "last", "time", "device", "torch", "code"], runs.map((run, index) => [
    make("span", { class: "seed", style: `--shade: ${shade(index)}` }, String(run.seed)), percent(run.scores.best.miou), `${run.best_epoch} of ${run.epochs}`, percent(run.scores.last.miou),
    `${run.seconds} s`, run.device, run.torch, code(run),
  ]));
}

// what explains the curve; runs without pseudo-labels, or made before these were measured, have none
function diagnostics(runs) {
  const shown = data.diagnostics.filter(([name]) => runs.some((run) => run.diagnostics[name]));
  if (!shown.length) return [];
  return [make("h3", {}, "Pseudo-labels and negatives by epoch, against ground truth"),
    ...shown.flatMap(([name, title]) => [make("h4", {}, title), curves(runs, (run) => run.diagnostics[name] ?? [])])];
}

function curves(runs, of = (run) => run.curve) {
  const points = runs.flatMap(of);
  if (!points.length) return make("p", { class: "muted" }, "Not validated while training.");
  // a narrow drawing on a phone, so that its text is not scaled down
  const [width, height, left, bottom] = [innerWidth < 640 ? 360 : 660, 190, 42, 22];
  const last = Math.max(...runs.map((run) => run.epochs), 1);
  const values = points.map((point) => point[1]);
  const spread = Math.max(...values) - Math.min(...values);
  const unit = 10 ** Math.floor(Math.log10(Math.max(spread, 0.8) / 4));
  const step = unit * [1, 2, 5, 10].find((size) => spread / (unit * size) <= 4);
  const low = Math.floor(Math.min(...values) / step) * step;
  const high = Math.max(Math.ceil(Math.max(...values) / step) * step, low + step);
  const x = (epoch) => left + ((width - left - 8) * epoch) / last;
  const y = (value) => height - bottom - ((height - bottom - 8) * (value - low)) / (high - low);
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" },
    make("title", {}, `Curves of ${runs.length} seeds, from ${percent(Math.min(...values))} to ${percent(Math.max(...values))}`));
  for (let tick = low; tick <= high + 1e-9; tick += step) {
    svg.append(make("line", { class: "rule", x1: left, x2: width - 8, y1: y(tick), y2: y(tick) }));
    svg.append(make("text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, String(Number(tick.toFixed(2)))));
  }
  for (const epoch of new Set([0, Math.round(last / 2), last])) {
    svg.append(make("text", { x: x(epoch), y: height - 5, "text-anchor": "middle" }, String(epoch)));
  }
  runs.forEach((run, index) => {
    const line = of(run).map(([epoch, value]) => `${x(epoch).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
    svg.append(make("polyline", { points: line, style: `stroke: ${shade(index)}` }, make("title", {}, `seed ${run.seed}`)));
    for (const [epoch, value] of of(run).length > 40 ? of(run).slice(-1) : of(run)) {
      const dot = make("circle", { cx: x(epoch), cy: y(value), r: 3, style: `fill: ${shade(index)}` });
      dot.append(make("title", {}, `seed ${run.seed}, epoch ${epoch}: ${percent(value)}`));
      svg.append(dot);
    }
  });
  return svg;
}

const range = ([low, high]) => (low === null || high === null ? null : `${percent(low)} to ${percent(high)}`);

// per class the interval over seeds and, beside it, the one over images: two questions, never one bar
function classes(cell, runs) {
  const over = [
    ["seeds", "t interval of the mean", "one seed, or seeds that are equal"],
    ["images", `bootstrap over ${cell.images} validation images, one network: seed ${runs[0].seed}`, "no images.npz"],
  ].map(([name, what, why], at) => ({ name, at, what: cell.intervals.some((ends) => ends[2 * at] !== null) ? `95 % ${what}` : `none: ${why}` }));
  const note = make("p", { class: "muted" }, over.map(({ name, what }) => `Over ${name}: ${what}.`).join(" "));
  const list = make("ol", { class: "classes" });
  data.classes[runs[0].dataset].forEach(([name, colour], index) => {
    const values = runs.map((run) => run.scores[cell.checkpoint].iou[index] ?? null).filter((value) => value !== null);
    const mean = values.length ? values.reduce((a, b) => a + b) / values.length : null;
    const bar = make("b", { "aria-hidden": "true" }, make("span", { style: `width: ${mean ?? 0}%` }));
    list.append(make("li", {}, make("i", { style: `background: ${colour}` }), make("span", {}, name), bar, make("data", {}, percent(mean)),
      ...over.map(({ name, at }) => {
        const ends = range(cell.intervals[index + 1].slice(2 * at, 2 * at + 2));
        return ends && make("small", {}, `${name} ${ends}`);
      }).filter(Boolean)));
  });
  return [note, list];
}

function departures(settings) {
  if (!settings.length) return make("p", { class: "muted" }, "None.");
  return sheet(["setting", "here", "paper preset"], settings.map((row) => row.map(String)));
}

function command(text) {
  const code = make("code", {}, text);
  const button = make("button", { type: "button", class: "copy" }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch { // not allowed: select it, to be copied by hand
      getSelection().selectAllChildren(code);
    }
  });
  return [make("pre", {}, code), button];
}
