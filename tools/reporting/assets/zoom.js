// The dialog that shows one card's panels at 1 to 16 screen pixels for a pixel, moved and zoomed together.

const MIN_ZOOM = 1;
const MAX_ZOOM = 16;
const STEP = 60; // screen pixels of a move

const zoom = { index: 0, entry: null, view: null, image: null, factor: 1, centre: [0, 0], overlays: new Map() };
const dialog = document.getElementById("zoom");

// At the part, factor and centre that an address gives, which are NaN where it does not.
async function openZoom(index, { part = NaN, zoom: factor = NaN, x = NaN, y = NaN } = {}) {
  const entry = entries[index];
  Object.assign(zoom, { index, entry });
  const views = viewsOf(entry.item);
  document.getElementById("zoom-heading").textContent = titleOf(entry);
  const select = document.getElementById("zoom-view");
  select.replaceChildren(...views.map((view, i) => element("option", { value: i }, view.label)));
  document.getElementById("zoom-view-label").hidden = views.length < 2;
  document.getElementById("zoom-previous").disabled = index === 0;
  document.getElementById("zoom-next").disabled = index === entries.length - 1;
  if (!dialog.open) dialog.showModal();
  await showView(part in views ? part : entry.object === null ? views.length - 1 : 0);
  if (x >= 0 && y >= 0) zoom.centre = [x, y];
  if (factor) setFactor(factor);
}

async function showView(number) {
  const { entry } = zoom;
  const view = viewsOf(entry.item)[number];
  document.getElementById("zoom-view").value = number;
  const image = await loadImage(view);
  if (zoom.entry !== entry) return; // another card was opened meanwhile
  Object.assign(zoom, { view, image });
  const part = partOf(entry, view);
  makePanels(part);
  zoom.centre = [part[0] + part[2] / 2, part[1] + part[3] / 2];
  const canvas = dialog.querySelector("canvas");
  const fit = canvas ? Math.min(canvas.clientWidth / part[2], canvas.clientHeight / part[3]) : 1;
  setFactor(Math.floor(2 * fit) / 2);
}

// Lay out the panels in the columns that leave most room for a part of the view.
function makePanels(part) {
  const figures = PANELS.filter((panel) => state.panels[panel]).map((panel) => {
    const text = describe(zoom.entry, zoom.view, panel);
    return element("figure", {}, element("canvas", { role: "img", "aria-label": text, "data-panel-of": panel }),
      element("figcaption", {}, panelTitle(panel)));
  });
  const place = document.getElementById("zoom-panels");
  const room = (columns) => Math.min(place.clientWidth / columns / part[2],
    place.clientHeight / Math.ceil(figures.length / columns) / part[3]);
  const columns = figures.map((_, i) => i + 1).reduce((best, n) => (room(n) > room(best) ? n : best), 1);
  place.style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
  place.replaceChildren(...figures);
  zoom.overlays.clear();
}

function setFactor(factor) {
  zoom.factor = Math.min(MAX_ZOOM, Math.max(MIN_ZOOM, factor));
  document.getElementById("zoom-factor").value = zoom.factor;
  document.getElementById("zoom-value").textContent = `${zoom.factor} x`;
  drawZoom();
}

function moveBy(x, y) {
  zoom.centre = [zoom.centre[0] + x / zoom.factor, zoom.centre[1] + y / zoom.factor];
  drawZoom();
}

function drawZoom() {
  const { view, image, factor } = zoom;
  if (!view) return;
  zoom.centre = [Math.min(view.width, Math.max(0, zoom.centre[0])), Math.min(view.height, Math.max(0, zoom.centre[1]))];
  const ratio = window.devicePixelRatio;
  for (const canvas of dialog.querySelectorAll("canvas")) {
    const panel = canvas.dataset.panelOf;
    if (!zoom.overlays.has(panel)) zoom.overlays.set(panel, overlayOf(zoom.entry, view, panel));
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    canvas.width = Math.max(1, Math.round(width * ratio));
    canvas.height = Math.max(1, Math.round(height * ratio));
    const part = [zoom.centre[0] - width / factor / 2, zoom.centre[1] - height / factor / 2, width / factor, height / factor];
    drawPanel(canvas, zoom.entry, view, panel, image, zoom.overlays.get(panel), part);
  }
  writeLink();
}

function redrawZoom() {
  if (!dialog.open || !zoom.view) return;
  makePanels(partOf(zoom.entry, zoom.view));
  drawZoom();
}

function toDifference() {
  const centre = largestDifference(zoom.view, ...differencePair(zoom.entry, zoom.view));
  if (!centre) return;
  zoom.centre = centre;
  setFactor(Math.max(8, zoom.factor));
}

function connectZoom() {
  const onClick = (id, action) => document.getElementById(id).addEventListener("click", action);
  onClick("zoom-close", () => dialog.close());
  dialog.addEventListener("close", writeLink);
  onClick("zoom-previous", () => openZoom(zoom.index - 1));
  onClick("zoom-next", () => openZoom(zoom.index + 1));
  onClick("zoom-in", () => setFactor(zoom.factor * 2));
  onClick("zoom-out", () => setFactor(zoom.factor / 2));
  onClick("zoom-difference", toDifference);
  document.getElementById("zoom-factor").addEventListener("input", (event) => setFactor(Number(event.target.value)));
  document.getElementById("zoom-view").addEventListener("change", (event) => showView(Number(event.target.value)));
  for (const button of dialog.querySelectorAll("[data-move]")) {
    const [x, y] = button.dataset.move.split(" ").map(Number);
    button.addEventListener("click", () => moveBy(STEP * x, STEP * y));
  }
  const panels = document.getElementById("zoom-panels");
  panels.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] };
    if (moves[event.key]) moveBy(...moves[event.key]);
    else if (event.key === "+" || event.key === "=") setFactor(zoom.factor * 2);
    else if (event.key === "-") setFactor(zoom.factor / 2);
    else return;
    event.preventDefault();
  });
  panels.addEventListener("wheel", (event) => {
    event.preventDefault();
    setFactor(zoom.factor * (event.deltaY < 0 ? 1.25 : 0.8));
  }, { passive: false });
  panels.addEventListener("pointerdown", (event) => panels.setPointerCapture(event.pointerId));
  panels.addEventListener("pointermove", (event) => {
    if (event.buttons & 1) moveBy(-event.movementX, -event.movementY);
  });
  window.addEventListener("resize", () => { if (dialog.open) drawZoom(); });
}
