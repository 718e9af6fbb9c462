// The page's address leads to what is shown: "#sort=score:a&image=x.jpg&zoom=8&x=30&y=25". What it leaves out is as at first.

const INITIAL = {};
let isLinked = false;
let writing = 0;

// Names that are on, for overlays and panels.
function chosen(switches) {
  return Object.keys(switches).filter((name) => switches[name]).join(".");
}

function linkParameters() {
  const shown = { page: state.page + 1, overlays: chosen(state.overlays), panels: chosen(state.panels) };
  for (const id of Object.keys(CONTROLS)) shown[id] = document.getElementById(id).value;
  if (dialog.open && zoom.view) {
    shown.image = DATA.items[zoom.entry.item].name;
    if (zoom.entry.object !== null) shown.object = zoom.entry.object + 1;
    Object.assign(shown, { part: document.getElementById("zoom-view").value, zoom: zoom.factor });
    [shown.x, shown.y] = zoom.centre.map((value) => Math.round(10 * value) / 10);
  }
  return shown;
}

// Soon, and once for many moves: browsers refuse addresses that change all the time.
function writeLink() {
  if (!isLinked) return;
  clearTimeout(writing);
  writing = setTimeout(() => {
    const changed = Object.entries(linkParameters()).filter(([name, value]) => String(value) !== INITIAL[name]);
    history.replaceState(null, "", `#${new URLSearchParams(changed)}`);
  }, 200);
}

// Show what the address says; of what it does not say, or says wrongly, what the page shows at first.
async function readLink() {
  const link = new URLSearchParams(location.hash.slice(1));
  const wanted = (name) => link.get(name) ?? INITIAL[name];
  for (const [id, set] of Object.entries(CONTROLS)) {
    const select = document.getElementById(id);
    select.value = wanted(id);
    if (select.selectedIndex < 0) select.value = INITIAL[id];
    set(select.value);
  }
  for (const kind of ["overlays", "panels"]) {
    const on = wanted(kind).split(".");
    for (const name of Object.keys(state[kind])) state[kind][name] = on.includes(name);
  }
  refresh(Math.max(0, Math.floor(Number(wanted("page"))) - 1 || 0));
  const object = link.has("object") ? Number(link.get("object")) - 1 : null;
  const index = entries.findIndex((entry) => DATA.items[entry.item].name === link.get("image") && entry.object === object);
  if (index < 0) dialog.close();
  else await openZoom(index, Object.fromEntries(["part", "zoom", "x", "y"].map((name) => [name, Number(link.get(name) ?? NaN)])));
}

function connectLink() {
  for (const [name, value] of Object.entries(linkParameters())) INITIAL[name] = String(value);
  const read = async () => {
    isLinked = false;
    await readLink();
    isLinked = true;
  };
  // "#gallery", where the link that skips the head goes, is no such address
  window.addEventListener("hashchange", () => { if (location.hash.includes("=")) read(); });
  return read();
}
