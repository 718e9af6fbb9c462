// Controls of the page.

const HELP = {
  "Disagreement": "Of two masks 1 - IoU, 1 if only one run has the object; of an image the mean of its objects.",
  "Boundary IoU": "The smaller of the masks' IoU and that of their boundaries, as Boundary AP takes it. Of an image of instances the mean of the true objects, in which a missed one counts as 0.",
  "score": "Of an image the mean of its detections.",
  "Matching": "A detection has the true object of its class with the largest IoU, at least 0.5, the best score first. What belongs together has one colour in all panels.",
  "Order": "What has no value comes last.",
  "Link": "The page's address leads to what is shown: order, cards, image, part, zoom and overlays. It can be handed on with the file.",
};

function fillSelect(id, options) {
  document.getElementById(id).replaceChildren(...options.map(([value, text]) => element("option", { value }, text)));
}

function sortOptions() {
  const options = [["name", "file name"]];
  if (DATA.classes.length) options.push(["class", "class"]);
  if (DATA.runs.length > 1) options.push(["disagreement", "disagreement of A and B"]);
  for (const [key, name] of Object.entries(DATA.measures)) {
    if (DATA.runs.length === 1) options.push([`${key}:a`, name]);
    else options.push([`${key}:a`, `${name} of A`], [`${key}:b`, `${name} of B`], [`${key}:gain`, `${name}, B minus A`]);
  }
  return options;
}

// What each control sets, by its id.
const CONTROLS = {
  "unit": (value) => { state.unit = value; },
  "class": (value) => { state.label = value === "" ? null : Number(value); },
  "run-a": (value) => { state.a = Number(value); },
  "run-b": (value) => { state.b = Number(value); },
  "sort": (value) => { state.sort = value; },
  "order": (value) => { state.order = Number(value); },
  "page-size": (value) => { state.pageSize = Number(value); },
};

function refresh(page = 0) {
  state.page = page;
  chooseEntries();
  showLegend();
  updateToggles();
  showCards();
}

function showLegend() {
  const legend = document.getElementById("legend");
  const swatch = (colour, text) => {
    const sample = element("span", { class: "swatch", "aria-hidden": "true" });
    sample.style.background = colour;
    return [sample, text];
  };
  const [first, second] = differenceNames();
  legend.replaceChildren("Difference:", ...swatch(`rgb(${ONLY_FIRST})`, `only in ${first}`),
    ...swatch(`rgb(${ONLY_SECOND})`, `only in ${second}`));
  if (hasPatches()) {
    legend.append(" Patch labels:", ...PATCH_KINDS.flatMap(({ name, colour }) => swatch(colour, name)));
  }
}

function toggleGroup(title, kind, names) {
  const buttons = names.map((name) => element("button", { type: "button", [`data-${kind}`]: name }));
  return element("fieldset", { class: "toggles" }, element("legend", {}, title), ...buttons);
}

function makeToggles() {
  const overlays = Object.keys(OVERLAYS).filter((name) => (name !== "patches" || hasPatches()) && (name !== "words" || DATA.classes.length));
  for (const place of document.querySelectorAll("[data-toggles]")) {
    place.append(toggleGroup("Overlays", "overlay", overlays), toggleGroup("Panels", "panel", PANELS));
  }
  document.addEventListener("click", ({ target }) => {
    const { overlay, panel } = target.dataset;
    if (overlay) {
      state.overlays[overlay] = !state.overlays[overlay];
      redrawCards();
    } else if (panel) {
      state.panels[panel] = !state.panels[panel];
      showCards();
    } else return;
    updateToggles();
    redrawZoom();
  });
}

function updateToggles() {
  for (const button of document.querySelectorAll("[data-overlay], [data-panel]")) {
    const { overlay, panel } = button.dataset;
    button.textContent = overlay ? OVERLAYS[overlay] : panelTitle(panel);
    button.setAttribute("aria-pressed", overlay ? state.overlays[overlay] : state.panels[panel]);
  }
  writeLink();
}

function connectGallery() {
  fillSelect("class", [["", "all"], ...DATA.classes.map((name, i) => [i, name]).sort((a, b) => a[1].localeCompare(b[1]))]);
  fillSelect("sort", sortOptions());
  for (const id of ["run-a", "run-b"]) fillSelect(id, DATA.runs.map((run, i) => [i, run]));
  document.getElementById("run-b").value = state.b;
  document.getElementById("run-b-label").hidden = DATA.runs.length < 2;
  for (const id of ["unit-label", "class-label"]) document.getElementById(id).hidden = !DATA.classes.length;
  for (const [id, set] of Object.entries(CONTROLS)) {
    document.getElementById(id).addEventListener("change", ({ target }) => {
      set(target.value);
      refresh();
    });
  }
  const help = Object.entries(HELP).filter(([name]) => !DATA.isRefinement || !["score", "Matching"].includes(name));
  document.getElementById("help").append(...help.flatMap(([name, text]) => [element("dt", {}, name), element("dd", {}, text)]));
  makeToggles();
  connectZoom();
  connectLink();
}

if (!DATA.sideBySide) {
  addChart("Loss", DATA.curves.loss, ["total_loss"]);
  addChart("Accuracy", DATA.curves.accuracy, ["segm/AP", "refinement/refined_IoU"]);
}
if (DATA.items.length) connectGallery();
else {
  document.getElementById("gallery-content").hidden = true;
  document.getElementById("no-gallery").hidden = false;
}
