"use strict";
// Everything here adds to a page that reads without it: sorting, filtering, all texts of a neuron, interactive figures.
const make = (name, attributes = {}, ...children) => {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
};
const packed = async (id) => {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent.trim()), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
};
const once = (work) => { let result; return () => (result ??= work()); };
const said = document.getElementById("said");

// Tables -------------------------------------------------------------------------------------------------------------
const number = (text) => {
  const match = /^(?:<= )?([+−-]?(?:∞|[\d.,]+(?:e[+−-]?\d+)?))/i.exec(text);
  return match ? Number(match[1].replaceAll("−", "-").replaceAll(",", "").replace("∞", "Infinity")) : NaN;
};
const order = (a, b, sign) => { // missing values stay last in both directions
  if ((a === "–") !== (b === "–")) return a === "–" ? 1 : -1;
  const [x, y] = [number(a), number(b)];
  if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1;
  return sign * (Number.isNaN(x) ? a.localeCompare(b) : x < y ? -1 : Number(x > y));
};
const sort = (table, column, header) => {
  const descending = header.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const keyed = [...table.tBodies[0].rows].map((row) => [row.cells[column].textContent.trim(), row]);
  keyed.sort((a, b) => order(a[0], b[0], descending ? -1 : 1));
  table.tBodies[0].append(...keyed.map(([, row]) => row));
};
const filters = new Map();
for (const table of document.querySelectorAll("table.data")) {
  const rows = [...table.tBodies[0].rows];
  [...table.tHead.rows[0].cells].forEach((header, column) => {
    const button = make("button", { type: "button" }, header.textContent);
    header.replaceChildren(button);
    button.addEventListener("click", () => sort(table, column, header));
  });
  if (rows.length < 8) continue;
  const input = make("input", { type: "search", placeholder: "filter rows", "aria-label": `Filter: ${table.caption.textContent.slice(0, 60)}` });
  const count = make("output", {});
  const all = make("button", { type: "button", class: "plain", hidden: "" }, "Show all rows");
  const texts = rows.map((row) => [...row.cells].map((part) => part.textContent.toLowerCase()).join(" "));
  let cell = null;
  const apply = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, place) => {
      const visible = (cell === null || row.dataset.cell === cell) && words.every((word) => texts[place].includes(word));
      row.hidden = !visible;
      shown += visible;
    });
    all.hidden = cell === null && !words.length;
    count.textContent = `${shown.toLocaleString("en")} of ${rows.length.toLocaleString("en")} rows`;
  };
  input.addEventListener("input", apply);
  all.addEventListener("click", () => { filters.get(table.id)(null); input.value = ""; apply(); input.focus(); });
  table.closest(".wide").before(make("div", { class: "filter" }, input, count, all));
  filters.set(table.id, (wanted) => {
    cell = wanted;
    for (const link of document.querySelectorAll(".map a[aria-current]")) link.removeAttribute("aria-current");
    apply();
  });
  apply();
}
for (const map of document.querySelectorAll("table.map")) {
  map.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-cell]");
    const filter = filters.get("neurons");
    if (!link || !filter) return;
    event.preventDefault();
    filter(link.dataset.cell);
    link.setAttribute("aria-current", "true");
    said.textContent = `${link.getAttribute("aria-label")}: listed below.`;
    const heading = document.getElementById("neurons-heading");
    heading.focus({ preventScroll: true });
    heading.scrollIntoView();
  });
}

// Texts of neurons -----------------------------------------------------------------------------------------------------
const colour = (level) => (level > 0 ? "#d55e00" : "#0072b2") + Math.round((170 * Math.abs(level)) / 30).toString(16).padStart(2, "0");
const kinds = { t: "most active", m: "from the middle", r: "at random" };
const coloured = (pieces, levels, scale) => {
  const line = make("div", { dir: "auto", style: "white-space:pre-wrap" });
  pieces.forEach((piece, place) => {
    const level = levels.charCodeAt(place) - 78;
    const span = make("span", { title: ((level * scale) / 30).toPrecision(2) }, piece);
    if (level) span.style.background = colour(level);
    line.append(span);
  });
  return line;
};
const texts = once(async () => JSON.parse(await packed("texts")));
const fill = async (details, anchor, language) => {
  const { texts: pieces, examples } = await texts();
  const { scale, rows } = examples[anchor];
  let kind = null, list = null;
  for (const [of, shown, value, text, levels] of rows) {
    if (of !== language) continue;
    if (shown !== kind) { kind = shown; list = make("ul"); details.append(make("h4", {}, kinds[kind]), list); }
    list.append(make("li", {}, make("span", { class: "ln-value" }, value), coloured(pieces[text], levels, scale)));
  }
};
if (document.getElementById("texts")) {
  for (const place of document.querySelectorAll(".ln-texts")) {
    const anchor = place.closest("article").id;
    for (const term of place.previousElementSibling.querySelectorAll("dt")) {
      const language = term.firstChild.textContent.trim();
      const details = make("details", {}, make("summary", {}, `More texts in ${language}`));
      details.addEventListener("toggle", once(() => fill(details, anchor, language)));
      place.append(details);
    }
  }
}

// Figures ----------------------------------------------------------------------------------------------------------------
const plotly = once(async () => {
  const script = make("script", { src: URL.createObjectURL(new Blob([await packed("plotly")], { type: "text/javascript" })) });
  await new Promise((resolve, reject) => { script.onload = resolve; script.onerror = reject; document.head.append(script); });
  return window.Plotly;
});
const draw = async (place) => {
  if (place.dataset.drawn) return;
  place.dataset.drawn = "yes";
  const figure = JSON.parse(document.getElementById(place.dataset.figure).textContent);
  const Plotly = await plotly();
  place.replaceChildren();
  // Of plotly's buttons those that stay on this machine: others offer to send the data away.
  const buttons = [["toImage", "zoom2d", "pan2d", "resetScale2d"]];
  await Plotly.newPlot(place, figure.data, figure.layout, { displaylogo: false, displayModeBar: "hover", modeBarButtons: buttons });
};
const places = [...document.querySelectorAll("[data-figure]")];
const watching = new IntersectionObserver(
  (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => draw(entry.target)), { rootMargin: "300px" });
places.forEach((place) => watching.observe(place));
// The rest is drawn when there is nothing else to do, so that a printed report has all of them.
const idle = () => new Promise((resolve) => (window.requestIdleCallback ?? setTimeout)(resolve));
window.addEventListener("load", () => setTimeout(async () => {
  for (const place of places) { await idle(); await draw(place); }
}, 1500));
