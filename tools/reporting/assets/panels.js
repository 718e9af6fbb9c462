// Panels: what each shows, in pixels and in words. An entry is a card's {item, object}; object is null for an image.

const DATA = JSON.parse(document.getElementById("data").textContent);
const CACHED_ITEMS = 40;

const state = {
  unit: "images",
  a: 0,
  b: Math.min(1, DATA.runs.length - 1),
  sort: "name",
  order: 1,
  label: null,
  page: 0,
  pageSize: 24,
  overlays: { fill: true, outline: true, words: false, patches: false },
};

const PANELS = DATA.sideBySide ? ["image", ...DATA.runs.map((_, i) => `run${i}`), "truth", "difference"]
  : ["truth", ...(DATA.isRefinement ? ["coarse"] : []), "a", ...(DATA.runs.length > 1 ? ["b"] : []), "difference"];
state.panels = Object.fromEntries(PANELS.map((panel) => [panel, true]));
const OVERLAYS = { fill: "Fill", outline: "Outlines", words: "Class and score", patches: "Patch labels" };

function hasPatches() {
  return DATA.items.length > 0 && viewsOf(0).some((view) => Object.keys(view.patches).length > 0);
}

const cache = new Map();

// The views of an item, as the page holds them, with the promise of the image of each.
function viewsOf(item) {
  const known = cache.get(item);
  const views = known || JSON.parse(document.getElementById(`item-${item}`).textContent);
  cache.delete(item);
  cache.set(item, views); // the last used is the last to go
  if (cache.size > CACHED_ITEMS) cache.delete(cache.keys().next().value);
  return views;
}

function loadImage(view) {
  if (!view.loaded) {
    const image = new Image();
    image.src = view.image;
    view.loaded = image.decode().then(() => image);
  }
  return view.loaded;
}

function panelTitle(panel) {
  if (panel === "image") return "Image";
  if (panel.startsWith("run")) return DATA.runs[Number(panel.slice(3))];
  if (panel === "truth") return "Truth";
  if (panel === "coarse") return "Coarse mask";
  if (panel === "difference") return DATA.runs.length > 1 ? "Difference of A and B" : "Difference of A and truth";
  return DATA.runs.length > 1 ? `${panel.toUpperCase()}: ${DATA.runs[state[panel]]}` : DATA.runs[state[panel]];
}

function layerKey(panel) {
  return panel === "a" || panel === "b" ? `run${state[panel]}` : panel;
}

// The masks of a panel: all of an image, or those of the one object.
function masksOf(entry, view, panel) {
  const masks = view.layers[layerKey(panel)] || [];
  return entry.object === null ? masks : masks.filter((mask) => mask.object === entry.object);
}

function differencePair(entry, view) {
  return ["a", DATA.runs.length > 1 ? "b" : "truth"].map((panel) => masksOf(entry, view, panel));
}

// The patches of a panel: all of an image, or those whose box is most like that of the one object's mask.
function patchesOf(entry, view, panel) {
  const grids = (panel === "a" || panel === "b") && view.patches[layerKey(panel)];
  if (!grids || entry.object === null) return grids || [];
  const [mask] = masksOf(entry, view, panel);
  if (!mask) return [];
  const [left, top, width, height] = mask.box;
  const distance = ({ box }) => Math.abs(box[0] - left) + Math.abs(box[1] - top)
    + Math.abs(box[2] - left - width) + Math.abs(box[3] - top - height);
  return [...grids].sort((a, b) => distance(a) - distance(b)).slice(0, 1);
}

function words(mask) {
  const score = mask.score === null ? "" : `${Math.round(100 * mask.score)} %`;
  return [mask.label === null ? "" : DATA.classes[mask.label], score].filter(Boolean).join(" ");
}

function pairKey() {
  return `${Math.min(state.a, state.b)}-${Math.max(state.a, state.b)}`;
}

function titleOf(entry) {
  const item = DATA.items[entry.item];
  if (entry.object === null) return item.name;
  return `${item.name}, object ${entry.object + 1}: ${DATA.classes[item.objects[entry.object].label]}`;
}

// What a panel shows, for those who do not see it.
function describe(entry, view, panel) {
  const place = `${panelTitle(panel)} of ${titleOf(entry)}`;
  if (panel === "difference") {
    const [first, second] = differencePair(entry, view);
    const counts = [0, 0];
    eachDifference(first, second, (x, y, isFirst) => { counts[isFirst ? 0 : 1]++; });
    const [a, b] = differenceNames();
    return `${place}: ${counts[0]} pixels only in ${a}, ${counts[1]} only in ${b}`;
  }
  const masks = masksOf(entry, view, panel);
  if (!masks.length) return `${place}: nothing`;
  const list = masks.map(words).filter(Boolean).join(", ");
  return list ? `${place}: ${list}` : `${place}: one mask`;
}

function differenceNames() {
  const a = DATA.runs[state.a];
  return DATA.runs.length > 1 ? [`A (${a})`, `B (${DATA.runs[state.b]})`] : [a, "the truth"];
}

// The overlay of a panel, as a canvas of the view's size; null if nothing is to be laid over.
function overlayOf(entry, view, panel) {
  const { fill, outline } = state.overlays;
  if (panel !== "difference" && !fill && !outline) return null;
  const overlay = new ImageData(view.width, view.height);
  if (panel === "difference") paintDifference(overlay, ...differencePair(entry, view));
  else paintMasks(overlay, masksOf(entry, view, panel), { fill, outline });
  const canvas = new OffscreenCanvas(view.width, view.height);
  canvas.getContext("2d").putImageData(overlay, 0, 0);
  return canvas;
}

// The part of a view that a card shows, [left, top, width, height]: all of it, or an object with some context.
function partOf(entry, view) {
  if (entry.object === null) return [0, 0, view.width, view.height];
  const masks = Object.values(view.layers).flat().filter((mask) => mask.object === entry.object);
  if (!masks.length) return [0, 0, view.width, view.height];
  const left = Math.min(...masks.map(({ box }) => box[0]));
  const top = Math.min(...masks.map(({ box }) => box[1]));
  const right = Math.max(...masks.map(({ box }) => box[0] + box[2]));
  const bottom = Math.max(...masks.map(({ box }) => box[1] + box[3]));
  const side = 1.3 * Math.max(right - left, bottom - top, 16);
  return [(left + right - side) / 2, (top + bottom - side) / 2, side, side];
}

// Draw a part of a view into a canvas: image, overlay, patches and words. The canvas has its shape already.
function drawPanel(canvas, entry, view, panel, image, overlay, [left, top, width]) {
  const context = canvas.getContext("2d");
  const scale = canvas.width / width;
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.setTransform(scale, 0, 0, scale, -left * scale, -top * scale);
  context.imageSmoothingEnabled = scale < 1;
  context.drawImage(image, 0, 0, view.width, view.height);
  if (panel === "difference") { // so that the two colours stand out
    context.fillStyle = "rgb(255 255 255 / 45%)";
    context.fillRect(0, 0, view.width, view.height);
  }
  if (overlay) context.drawImage(overlay, 0, 0);
  if (state.overlays.patches) for (const grid of patchesOf(entry, view, panel)) drawPatches(context, grid, scale);
  if (state.overlays.words && panel !== "difference") {
    for (const mask of masksOf(entry, view, panel)) drawWords(context, mask, scale);
  }
}

function drawPatches(context, { box, side, labels }, scale) {
  const [width, height] = [(box[2] - box[0]) / side, (box[3] - box[1]) / side];
  const gap = Math.min(width, height) * scale > 5 ? 1 / scale : 0;
  [...labels].forEach((label, i) => {
    context.fillStyle = PATCH_KINDS[label].colour;
    context.fillRect(box[0] + (i % side) * width, box[1] + Math.floor(i / side) * height, width - gap, height - gap);
  });
}

function drawWords(context, mask, scale) {
  const text = words(mask);
  if (!text) return;
  const size = 12 / scale;
  context.font = `${size}px system-ui, sans-serif`;
  context.fillStyle = "rgb(0 0 0 / 70%)";
  context.fillRect(mask.box[0], mask.box[1], context.measureText(text).width + size / 2, 1.3 * size);
  context.fillStyle = "white";
  context.fillText(text, mask.box[0] + size / 4, mask.box[1] + size);
}
