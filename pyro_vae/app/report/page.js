"use strict";
// The live part of the report: single data, sorted by what each run says of them. Everything else needs no script.
const COLORS = ["--c0", "--c1", "--c2", "--c3", "--c4"];
const make = (tag, attributes = {}, ...inside) => {
  const svg = ["svg", "polyline", "rect", "line"].includes(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...inside);
  return element;
};
const shown = value => value === null || value === undefined ? "–"
  : Math.abs(value) >= 1e5 || (value !== 0 && Math.abs(value) < 1e-3) ? value.toExponential(2)
  : String(Number(value.toPrecision(Math.abs(value) >= 100 ? 4 : 3))).replace("-", "−");

function image(data, sheet, at, label = "x") {
  // One image of a sheet: the sheet is the background, moved so that only this image is seen.
  const place = (cell, cells) => cells > 1 ? 100 * cell / (cells - 1) : 0;
  const x = place(at % data.columns, data.columns), y = place(Math.floor(at / data.columns), data.lines);
  return make("span", { class: "pic", role: "img", "aria-label": label, style: `aspect-ratio:${data.size[1]}/${data.size[0]};` +
    `background-image:url(${sheet});background-size:${100 * data.columns}% ${100 * data.lines}%;background-position:${x}% ${y}%` });
}

function lines(data, several) {
  // Signals, one above another in one plot: x, and reconstructions in the colors of their runs.
  const plot = make("svg", { class: "plot", viewBox: "0 0 100 40", preserveAspectRatio: "none" });
  const span = data.high - data.low || 1;
  several.forEach(({ signal, color }) => signal && signal.forEach(channel => {
    let points = [];
    const end = () => { if (points.length) plot.append(make("polyline", { points: points.join(" "), style: `stroke:${color}` })); points = []; };
    channel.forEach((value, i) => value === null ? end()
      : points.push(`${(100 * i / Math.max(1, channel.length - 1)).toFixed(2)},${(39 - 38 * (value - data.low) / span).toFixed(2)}`));
    end();
  }));
  return plot;
}

function bars(data, row) {
  const plot = make("svg", { class: "plot", viewBox: "0 0 100 40", preserveAspectRatio: "none" });
  const width = 100 / row.length;
  row.forEach((value, j) => {
    if (value === null) return;
    const [low, high] = data.range[j], height = 2 + 36 * Math.min(1, Math.max(0, (value - low) / (high - low || 1)));
    plot.append(make("rect", { x: j * width + .1 * width, y: 40 - height, width: .8 * width, height, style: "fill:var(--c0)" }));
  });
  return plot;
}

function tile(data, at) {
  if (data.kind === "image") return image(data, data.sheets[0], at);
  if (data.kind === "signal") return lines(data, [{ signal: data.values[0][at], color: "var(--ink)" }]);
  return bars(data, data.values[0][at]);
}

function pictures(data, at) {
  // A datum and its reconstructions, large.
  if (data.kind === "image") {
    const names = ["x", ...data.runs.map(run => data.runs.length > 1 ? run.name : "reconstruction")];
    const figures = data.sheets.map((sheet, j) => sheet && make("div", {}, image(data, sheet, at, names[j]),
      make("span", { class: "soft" }, names[j])));
    return make("div", { class: "pair" }, ...figures.filter(Boolean));
  }
  if (data.kind === "signal") {
    const dash = j => j < COLORS.length ? "" : `;stroke-dasharray:${2 + 2 * Math.floor(j / COLORS.length)} 3`;
    const several = data.values.map((values, j) => ({ signal: values && values[at],
      color: j ? `var(${COLORS[(j - 1) % COLORS.length]})${dash(j - 1)}` : "var(--ink)" }));
    const key = data.runs.map((run, j) => make("span", { style: `color:var(${COLORS[j % COLORS.length]})` }, `${j < COLORS.length ? "—" : "- -"} ${run.name} `));
    return make("div", { class: "pair lines" }, lines(data, several), make("span", { class: "soft" }, make("span", { style: "color:var(--ink)" }, "— x "), ...key));
  }
  const head = ["", "x", ...data.runs.map(run => data.runs.length > 1 ? run.name : "reconstruction")];
  return grid(head, data.names.map((name, j) => [name, ...data.values.map(values => values ? values[at][j] : "–")]), "missing");
}

function grid(head, rows, missing = "–") {
  const line = (tag, cells) => make("tr", {}, ...cells.map((cell, i) => make(tag, i ? { class: "number" } : {},
    typeof cell === "string" ? cell : cell === null || cell === undefined ? missing : shown(cell))));
  return make("div", { class: "scroll" }, make("table", {}, make("thead", {}, line("th", head)), make("tbody", {}, ...rows.map(row => line("td", row)))));
}

function gallery(section) {
  const data = JSON.parse(section.querySelector("script[type='application/json']").textContent);
  const tiles = section.querySelector(".tiles"), detail = section.querySelector(".detail");
  const by = section.querySelector(".by"), of = section.querySelector(".of"), order = section.querySelector(".order");
  const value = (at, run = of.value) => (data.runs[run].numbers[by.value] || [])[at];
  data.measures.forEach(measure => by.append(make("option", { value: measure.name }, measure.label)));
  by.append(make("option", { value: "" }, "number"));
  data.runs.forEach((run, j) => of.append(make("option", { value: j }, run.name)));
  of.closest("label").hidden = data.runs.length < 2;
  for (const name of ["log_px", "pareto_k"]) if (data.measures.some(measure => measure.name === name)) by.value = name;
  if (data.kind !== "image") tiles.style.setProperty("--tile", "7rem");
  let worst = true, chosen = null;

  const show = at => {
    chosen = at;
    tiles.querySelectorAll(".tile").forEach(each => each.setAttribute("aria-pressed", String(Number(each.dataset.at) === at)));
    const label = data.label ? `, label ${data.label[at]}` : "";
    const head = ["", ...data.runs.map(run => data.runs.length > 1 ? run.name : "")];
    const rows = data.measures.map(measure => [measure.label, ...data.runs.map(run => (run.numbers[measure.name] || [])[at])]);
    tiles.querySelectorAll(".tile").forEach(each => { each.tabIndex = Number(each.dataset.at) === at ? 0 : -1; });
    detail.replaceChildren(make("strong", {}, `Test datum ${data.index[at]}${label}`), pictures(data, at), grid(head, rows));
  };
  const sort = () => {
    const measure = data.measures.find(each => each.name === by.value);
    const sign = (measure && measure.high ? -1 : 1) * (worst ? 1 : -1);
    const places = data.index.map((_, at) => at).sort((a, b) => {
      if (!measure) return sign * (a - b);
      const [left, right] = [value(a), value(b)].map(each => each ?? NaN);
      if (isNaN(left) || isNaN(right)) return isNaN(left) - isNaN(right) || a - b;
      return sign * (left - right) || a - b;
    });
    const [one, other] = !measure ? ["first to last", "last to first"] : measure.high === null
      ? ["lowest first", "highest first"] : ["worst first", "best first"];
    order.textContent = worst ? one : other;
    tiles.replaceChildren(...places.map(at => {
      const text = measure ? shown(value(at)) : `#${data.index[at]}`;
      const button = make("button", { class: "tile", type: "button", "aria-pressed": "false", "data-at": at,
        "aria-label": `test datum ${data.index[at]}, ${measure ? measure.label + " " + text : ""}` }, tile(data, at), text);
      for (const event of ["click", "focus", "mouseenter"]) button.addEventListener(event, () => show(at));
      return button;
    }));
    show(places[0]);
  };
  tiles.addEventListener("keydown", event => {  // one stop for the key Tab; arrows move from datum to datum
    const all = [...tiles.children], here = all.indexOf(document.activeElement);
    const to = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: all.length - 1 }[event.key];
    if (here < 0 || !all[to]) return;
    event.preventDefault();
    all[to].focus();
  });
  by.addEventListener("change", sort);
  of.addEventListener("change", sort);
  order.addEventListener("click", () => { worst = !worst; sort(); });
  sort();
  section.hidden = false;
}

document.querySelectorAll(".gallery").forEach(gallery);
document.querySelector("#theme").addEventListener("click", () => {
  const dark = getComputedStyle(document.documentElement).getPropertyValue("--paper").trim() === "#14171a";
  document.documentElement.dataset.theme = dark ? "light" : "dark";
});
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(each => { each.open = true; }));
