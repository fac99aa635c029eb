"use strict";
// Everything here adds to a page that reads without it: sorting and filtering tables, pages of neurons, meanings of
// words, interactive figures.
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
const narrow = (text) => text.trim().replace(/\s+/g, " ");

// Tables -------------------------------------------------------------------------------------------------------------
const FEW = 12; // rows that are shown of a long table
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
const sort = (table, column, header) => { // numbers from the largest, words from the first
  const first = header.classList.contains("n") ? "descending" : "ascending";
  const other = first === "descending" ? "ascending" : "descending";
  const next = header.getAttribute("aria-sort") === first ? other : first;
  for (const each of table.tHead.rows[0].cells) each.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", next);
  const keyed = [...table.tBodies[0].rows].map((row) => [narrow(row.cells[column].textContent), row]);
  keyed.sort((a, b) => order(a[0], b[0], next === "descending" ? -1 : 1));
  table.tBodies[0].append(...keyed.map(([, row]) => row));
};
// A condition on a column: "> 0.5" and "<= 3" compare numbers, other text must be part of the cell.
const condition = (text) => {
  const match = /^(<=?|>=?|=)\s*([+−-]?[\d.]+(?:e[+-]?\d+)?)$/i.exec(text.trim());
  if (!match) return (cell) => cell.toLowerCase().includes(text.trim().toLowerCase());
  const bound = Number(match[2].replace("−", "-"));
  const compare = { "<": (x) => x < bound, "<=": (x) => x <= bound, ">": (x) => x > bound, ">=": (x) => x >= bound, "=": (x) => x === bound };
  return (cell) => compare[match[1]](number(cell));
};
// A cell such as "+3 [1, 5]" fills three columns; text that a spreadsheet would calculate gets an apostrophe.
const INTERVAL = /^(.*?) \[([^,\]]+), ([^,\]]+)\]$/;
const csv = (table) => {
  const rows = [...table.tBodies[0].rows].map((row) => [...row.cells].map((cell) => narrow(cell.textContent)));
  const heads = [...table.tHead.rows[0].cells].map((cell) => narrow(cell.textContent));
  const split = heads.map((_, column) => rows.some((row) => INTERVAL.test(row[column])));
  const plain = (text) => {
    const bare = Number.isNaN(number(text)) ? text : text.replaceAll("−", "-").replace(/(\d),(?=\d{3})/g, "$1");
    const safe = /^[=@+-]/.test(bare) && Number.isNaN(number(bare)) ? `'${bare}` : bare;
    return /[",\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  const lines = rows.map((row) => row.flatMap((cell, column) => {
    const match = INTERVAL.exec(cell);
    return split[column] ? (match ? match.slice(1) : [cell, "", ""]) : [cell];
  }));
  const top = heads.flatMap((head, column) => (split[column] ? [head, `${head} low`, `${head} high`] : [head]));
  return [top, ...lines].map((line) => line.map(plain).join(",")).join("\n") + "\n";
};
const filters = new Map();
for (const table of document.querySelectorAll("table.data")) {
  const rows = [...table.tBodies[0].rows];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((header, column) => {
    const button = make("button", { type: "button" }, header.textContent);
    header.replaceChildren(button);
    button.addEventListener("click", () => { sort(table, column, header); apply(); });
  });
  const save = make("button", { type: "button", class: "plain" }, "Download CSV");
  save.addEventListener("click", () => {
    const link = make("a", { href: URL.createObjectURL(new Blob([csv(table)], { type: "text/csv" })), download: `${table.id}.csv` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });
  const input = make("input", { type: "search", placeholder: "filter rows", "aria-label": `Filter: ${narrow(table.caption.textContent).slice(0, 60)}` });
  const count = make("output", {});
  const all = make("button", { type: "button", class: "plain", hidden: "" }, "Show all rows");
  const cells = rows.map((row) => [...row.cells].map((part) => narrow(part.textContent)));
  const texts = cells.map((row) => row.join(" ").toLowerCase());
  const by = [];
  let cell = null, whole = rows.length <= FEW;
  function apply() {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const conditions = by.map((field) => (field.value.trim() ? (field.tagName === "SELECT" ? (text) => text === field.value : condition(field.value)) : null));
    const matches = new Set(rows.filter((row, place) => (cell === null || row.dataset.cell === cell) && words.every((word) => texts[place].includes(word)) && conditions.every((fits, column) => !fits || fits(cells[place][column]))));
    const filtered = matches.size < rows.length;
    const limit = whole || cell !== null ? Infinity : FEW;
    let shown = 0;
    for (const row of table.tBodies[0].rows) {
      const visible = matches.has(row) && shown < limit;
      row.hidden = !visible;
      shown += visible;
    }
    all.hidden = shown === rows.length && !filtered;
    const [here, matching, of] = [shown, matches.size, rows.length].map((size) => size.toLocaleString("en"));
    count.textContent = shown < matches.size ? `the first ${here} of ${matching} rows` : `${matching} of ${of} rows`;
  }
  all.addEventListener("click", () => { filters.get(table.id)(null); input.value = ""; for (const field of by) field.value = ""; whole = true; apply(); save.focus(); });
  filters.set(table.id, (wanted) => {
    cell = wanted;
    for (const link of document.querySelectorAll(".map a[aria-current]")) link.removeAttribute("aria-current");
    apply();
  });
  if (rows.length >= 8) {
    const line = make("tr", { class: "by" });
    heads.forEach((header, column) => {
      const values = [...new Set(cells.map((row) => row[column]))];
      const name = { "aria-label": `Filter by ${narrow(header.textContent)}` };
      const few = !header.classList.contains("n") && values.length <= 15;
      const field = few ? make("select", name, make("option", { value: "" }, "all"), ...values.sort().map((value) => make("option", { value }, value)))
        : make("input", { ...name, type: "text", placeholder: header.classList.contains("n") ? "> 0" : "contains" });
      field.addEventListener("input", apply);
      by.push(field);
      line.append(make("td", {}, field));
    });
    table.tHead.append(line);
    input.addEventListener("input", apply);
    table.closest(".wide").before(make("div", { class: "filter" }, input, count, all, save));
  } else {
    table.closest(".wide").before(make("div", { class: "filter" }, save));
  }
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
const dress = (article) => {
  for (const term of article.querySelectorAll("dt[data-language]")) {
    const language = term.dataset.language;
    const details = make("details", {}, make("summary", {}, `More texts in ${language}`));
    details.addEventListener("toggle", once(() => fill(details, article.id, language)));
    article.querySelector(".ln-texts").append(details);
  }
};

// Pages of neurons: the file holds them packed, and unpacks those that are asked for -----------------------------------
const page = document.getElementById("neuron-page");
const neurons = new Map(); // anchor -> its row of the index
const parts = new Map();
const part = async (place) => {
  if (!parts.has(place)) parts.set(place, JSON.parse(await packed(`pages-${place}`)));
  return parts.get(place);
};
const finder = once(async () => {
  const index = JSON.parse(await packed("neurons-index"));
  const [search, list, before, after, place] = ["find-neuron", "choose-neuron", "previous-neuron", "next-neuron", "place-of-neuron"].map((id) => document.getElementById(id));
  for (const row of index) neurons.set(row[0], row);
  let shown = index.map((row) => row[0]);
  const fillList = () => {
    const groups = new Map();
    for (const anchor of shown) {
      const [, language, , words] = neurons.get(anchor);
      if (!groups.has(language)) groups.set(language, make("optgroup", { label: language }));
      groups.get(language).append(make("option", { value: anchor }, `${anchor}  ${words}`));
    }
    list.replaceChildren(...groups.values());
  };
  const mark = () => {
    const current = page.querySelector("article")?.id;
    list.value = current;
    const at = shown.indexOf(current);
    before.disabled = at === 0 || !shown.length;
    after.disabled = at === shown.length - 1 || !shown.length;
    place.textContent = at < 0 ? `${shown.length} match` : `${at + 1} of ${shown.length}`;
  };
  const step = (by) => {
    const at = shown.indexOf(page.querySelector("article").id);
    location.hash = shown[at < 0 ? 0 : at + by];
  };
  before.addEventListener("click", () => step(-1));
  after.addEventListener("click", () => step(1));
  list.addEventListener("change", () => { location.hash = list.value; });
  search.addEventListener("input", () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    shown = index.filter(([anchor, , languages, tokens]) => {
      const [layer, neuron] = anchor.slice(1).split("N");
      const text = `${anchor} layer ${layer} neuron ${neuron} ${languages} ${tokens}`.toLowerCase();
      return words.every((word) => (/^\d+$/.test(word) ? text.split(" ").includes(word) : text.includes(word)));
    }).map(([anchor]) => anchor);
    fillList();
    mark();
  });
  search.addEventListener("keydown", (event) => { if (event.key === "Enter" && shown.length) location.hash = shown[0]; });
  fillList();
  document.querySelector(".finder").hidden = false;
  return { mark };
});
const open = async (anchor) => {
  const { mark } = await finder();
  if (!neurons.has(anchor)) return false;
  if (page.querySelector("article")?.id !== anchor) {
    page.innerHTML = (await part(neurons.get(anchor)[4]))[anchor];
    dress(page.querySelector("article"));
    explain(page);
    hint();
  }
  mark();
  return true;
};
const follow = async () => {
  const anchor = decodeURIComponent(location.hash.slice(1));
  if (!/^L\d+N\d+$/.test(anchor) || !(await open(anchor))) return;
  const article = document.getElementById(anchor);
  article.focus({ preventScroll: true });
  article.scrollIntoView();
};

// Words: pointing at one, or moving the focus to it, shows its meaning ---------------------------------------------------
const meaning = document.getElementById("meaning");
const meanings = new Map([...document.querySelectorAll("dd[data-word]")].map((entry) => [entry.dataset.word, entry]));
const escaped = [...meanings.keys()].sort((a, b) => b.length - a.length).map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
const WORD = new RegExp(`(?<![\\p{L}\\d-])(${escaped.join("|")})(?![\\p{L}\\d-])`, "iu");
const hide = () => { meaning.hidden = true; };
const show = (term) => {
  meaning.textContent = meanings.get(term.dataset.term).textContent.trim();
  meaning.hidden = false;
  const box = term.getBoundingClientRect(), room = document.documentElement.clientWidth - meaning.offsetWidth - 8;
  meaning.style.left = `${Math.max(8, Math.min(box.left, room)) + scrollX}px`;
  meaning.style.top = `${box.bottom + scrollY + 4}px`;
};
const teach = (element, word) => {
  element.classList.add("term");
  element.dataset.term = word;
  element.setAttribute("aria-describedby", meanings.get(word).id);
  for (const event of ["pointerenter", "focus"]) element.addEventListener(event, () => show(element));
  for (const event of ["pointerleave", "blur"]) element.addEventListener(event, hide);
};
const explain = (within) => { // the first time that each word stands in a section
  const taught = new Set();
  for (const element of within.querySelectorAll("p, li, figcaption, caption, th button")) {
    if (element.closest("article li, .words")) continue;
    const texts = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
    for (let node = texts.nextNode(); node; node = texts.nextNode()) {
      const match = WORD.exec(node.data), word = match?.[0].toLowerCase();
      if (!match || taught.has(word) || node.parentElement.closest(".term, a, bdi")) continue;
      taught.add(word);
      if (element.tagName === "BUTTON") { teach(element, word); break; }
      const rest = node.splitText(match.index), term = make("span", { tabindex: "0" }, match[0]);
      rest.data = rest.data.slice(match[0].length);
      rest.before(term);
      teach(term, word);
      texts.currentNode = term.lastChild;
    }
  }
};
document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
for (const section of document.querySelectorAll("main > section")) explain(section);

// Where one is, and what is wider than the window -----------------------------------------------------------------------
const hint = () => {
  for (const element of document.querySelectorAll(".wide, .ln-wide")) element.toggleAttribute("data-scrolls", element.scrollWidth > element.clientWidth + 1);
};
const links = new Map([...document.querySelectorAll("nav.top a")].map((link) => [link.hash.slice(1), link]));
const visible = new Set();
const reading = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) visible[isIntersecting ? "add" : "delete"](target);
  const section = [...document.querySelectorAll("main > section")].find((each) => visible.has(each));
  for (const link of links.values()) link.removeAttribute("aria-current");
  links.get(section?.getAttribute("aria-labelledby") ?? "content")?.setAttribute("aria-current", "true");
}, { rootMargin: "-15% 0px -60% 0px" });
for (const section of document.querySelectorAll("main > section")) reading.observe(section);
window.addEventListener("resize", () => { hide(); hint(); });

// Figures ----------------------------------------------------------------------------------------------------------------
const plotly = once(async () => {
  const script = make("script", { src: URL.createObjectURL(new Blob([await packed("plotly")], { type: "text/javascript" })) });
  await new Promise((resolve, reject) => { script.onload = resolve; script.onerror = reject; document.head.append(script); });
  return window.Plotly;
});
const looks = once(async () => JSON.parse(await packed("looks")));
const scheme = window.matchMedia("(prefers-color-scheme: dark)");
const figure = async (place, dark) => {
  const { template, dark: colours } = await looks();
  let text = `{"figure":${document.getElementById(place.dataset.figure).textContent},"template":${JSON.stringify(template)}}`;
  if (dark) text = text.replace(/#[0-9a-f]{6}/gi, (colour) => colours[colour.toLowerCase()] ?? colour);
  const { figure: { data, layout }, template: look } = JSON.parse(text);
  return { data, layout: { ...layout, template: look } };
};
const draw = async (place, dark = scheme.matches) => {
  if (place.dataset.drawn === String(dark)) return;
  const again = "drawn" in place.dataset;
  place.dataset.drawn = String(dark);
  const [Plotly, { data, layout }] = [await plotly(), await figure(place, dark)];
  if (again) { await Plotly.react(place, data, layout); return; }
  place.replaceChildren();
  // Of plotly's buttons those that stay on this machine: others offer to send the data away.
  const buttons = [["toImage", "zoom2d", "pan2d", "resetScale2d"]];
  await Plotly.newPlot(place, data, layout, { displaylogo: false, displayModeBar: "hover", modeBarButtons: buttons });
  hint();
};
const places = [...document.querySelectorAll("[data-figure]")];
const watching = new IntersectionObserver(
  (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => draw(entry.target)), { rootMargin: "300px" });
places.forEach((place) => watching.observe(place));
const redraw = (dark) => places.filter((place) => "drawn" in place.dataset).forEach((place) => draw(place, dark));
scheme.addEventListener("change", () => redraw(scheme.matches));
window.addEventListener("beforeprint", () => redraw(false));
window.addEventListener("afterprint", () => redraw(scheme.matches));
// The rest is drawn when there is nothing else to do, so that a printed report has all that is not folded away.
const idle = () => new Promise((resolve) => (window.requestIdleCallback ?? setTimeout)(resolve));
window.addEventListener("load", () => setTimeout(async () => {
  for (const place of places.filter((each) => !each.closest("details:not([open])"))) { await idle(); await draw(place); }
}, 1500));
if (page) {
  dress(page.querySelector("article"));
  window.addEventListener("hashchange", follow);
  finder().then(({ mark }) => { mark(); follow(); });
}
hint();
