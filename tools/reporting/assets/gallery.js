// The gallery: entries, their order, and a card for each.

let entries = [];
let observer = null;

function figuresOf(entry) {
  const item = DATA.items[entry.item];
  return entry.object === null ? item : item.objects[entry.object];
}

function classNames(entry) {
  const figures = figuresOf(entry);
  const labels = entry.object === null ? figures.labels : [figures.label];
  return labels.map((label) => DATA.classes[label]).sort();
}

// What an entry is sorted by: a number or a text; null goes last.
function sortValue(entry) {
  const figures = figuresOf(entry);
  if (state.sort === "class") return classNames(entry).join(", ") || null;
  if (state.sort === "disagreement") return state.a === state.b ? 0 : figures.disagreements[pairKey()];
  const [key, which] = state.sort.split(":");
  if (key === "name") return DATA.items[entry.item].name;
  const [a, b] = [figures.values[key][state.a], figures.values[key][state.b]];
  if (which === "gain") return a === null || b === null ? null : b - a;
  return which === "a" ? a : b;
}

function compareEntries(first, second) {
  const [a, b] = [first.value, second.value];
  if (a === null || b === null) return (a === null) - (b === null) || first.place - second.place;
  const order = typeof a === "string" ? a.localeCompare(b, undefined, { numeric: true }) : a - b;
  return state.order * order || first.place - second.place;
}

function chooseEntries() {
  let found = DATA.items.map((_, item) => ({ item, object: null }));
  if (state.unit === "objects") {
    found = found.flatMap(({ item }) => DATA.items[item].objects.map((_, object) => ({ item, object })));
  }
  if (state.label !== null) {
    found = found.filter((entry) => {
      const figures = figuresOf(entry);
      return entry.object === null ? figures.labels.includes(state.label) : figures.label === state.label;
    });
  }
  found.forEach((entry, place) => Object.assign(entry, { place, value: sortValue(entry) }));
  entries = found.sort(compareEntries);
}

function format(value) {
  return value === null || value === undefined ? "none" : Math.abs(value) >= 10 ? value.toFixed(2) : value.toFixed(3);
}

function describeFigures(entry) {
  const figures = figuresOf(entry);
  const parts = Object.entries(DATA.measures).map(([key, name]) => {
    if (DATA.sideBySide) return `${name}: ${DATA.runs.map((run, i) => `${run} ${format(figures.values[key][i])}`).join(", ")}`;
    const [a, b] = [figures.values[key][state.a], figures.values[key][state.b]].map(format);
    return DATA.runs.length > 1 ? `${name}: A ${a}, B ${b}` : `${name}: ${a}`;
  });
  if (DATA.runs.length > 1) parts.push(`disagreement: ${format(state.a === state.b ? 0 : figures.disagreements[pairKey()])}`);
  if (entry.object !== null && !figures.isTrue) parts.unshift("matches no true object");
  if (entry.object === null && DATA.classes.length) parts.unshift(classNames(entry).join(", ") || "no objects");
  return parts.join(" · ");
}

function makeCard(entry, index) {
  const title = titleOf(entry);
  const zoom = element("button", { type: "button", "aria-label": `Zoom into ${title}` }, "Zoom");
  zoom.addEventListener("click", () => openZoom(index));
  const panels = element("div", { class: "panels" });
  for (const panel of PANELS.filter((name) => state.panels[name])) {
    const canvas = element("canvas", { role: "img", "aria-label": `${panelTitle(panel)} of ${title}`, "data-panel-of": panel });
    panels.append(element("figure", {}, canvas, element("figcaption", {}, panelTitle(panel))));
  }
  const card = element("li", {}, element("div", { class: "card-head" }, element("h3", {}, title), zoom),
    element("p", { class: "values" }, describeFigures(entry)), panels);
  card.entry = entry;
  // Until it is drawn, so that the page's length hardly changes then
  for (const canvas of card.querySelectorAll("canvas")) canvas.style.aspectRatio = entry.object === null ? "4 / 3" : "1";
  return card;
}

// Draw a card that has come into sight.
async function drawCard(card) {
  const view = viewsOf(card.entry.item)[0];
  const part = partOf(card.entry, view);
  const image = await loadImage(view);
  if (!card.isConnected) return;
  for (const canvas of card.querySelectorAll("canvas")) {
    const panel = canvas.dataset.panelOf;
    canvas.style.aspectRatio = `${part[2]} / ${part[3]}`;
    canvas.width = Math.max(1, Math.round(canvas.clientWidth * Math.min(2, window.devicePixelRatio)));
    canvas.height = Math.max(1, Math.round(canvas.width * part[3] / part[2]));
    drawPanel(canvas, card.entry, view, panel, image, overlayOf(card.entry, view, panel), part);
    canvas.setAttribute("aria-label", describe(card.entry, view, panel));
  }
  card.dataset.drawn = "true";
}

// Show the page of cards that the state asks for.
function showCards() {
  const pages = Math.max(1, Math.ceil(entries.length / state.pageSize));
  state.page = Math.min(state.page, pages - 1);
  const start = state.page * state.pageSize;
  const cards = entries.slice(start, start + state.pageSize).map((entry, i) => makeCard(entry, start + i));
  const list = document.getElementById("cards");
  list.setAttribute("start", start + 1);
  list.replaceChildren(...cards);
  if (observer) observer.disconnect();
  observer = new IntersectionObserver((seen) => {
    for (const { isIntersecting, target } of seen) {
      if (!isIntersecting) continue;
      observer.unobserve(target);
      drawCard(target);
    }
  }, { rootMargin: "200px" });
  cards.forEach((card) => observer.observe(card));
  const what = state.unit === "objects" ? "objects" : "images";
  const range = cards.length ? `${start + 1} to ${start + cards.length} of ${entries.length} ${what}` : `no ${what}`;
  const sort = document.getElementById("sort").selectedOptions[0].textContent;
  document.getElementById("status").textContent = `Shown: ${range}, by ${sort}, ${state.order > 0 ? "ascending" : "descending"}.`;
  for (const place of document.querySelectorAll("nav.pages")) {
    const go = (text, page) => {
      const button = element("button", { type: "button" }, text);
      button.disabled = page < 0 || page >= pages;
      button.addEventListener("click", () => {
        state.page = page;
        showCards();
        document.getElementById("gallery").scrollIntoView();
        document.getElementById("gallery").focus({ preventScroll: true });
      });
      return button;
    };
    place.replaceChildren(go("Previous page", state.page - 1), `Page ${state.page + 1} of ${pages}`, go("Next page", state.page + 1));
  }
  writeLink();
}

// What has changed is only how cards look.
function redrawCards() {
  for (const card of document.querySelectorAll("#cards > li[data-drawn]")) {
    delete card.dataset.drawn;
    observer.observe(card);
  }
}
