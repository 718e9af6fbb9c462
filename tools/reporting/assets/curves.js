// Curves of loss and accuracy as SVG, with the same numbers as a table.

const CURVE_COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];
const DASHES = ["", "7 4", "2 3", "9 3 2 3"];
const CHART = { width: 640, height: 320, left: 66, right: 26, top: 14, bottom: 46 };
const MAX_ROWS = 40;

function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function svg(name, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function shortNumber(value) {
  return String(Number(value.toPrecision(4)));
}

// Round numbers between two others, about as many as asked for.
function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
}

function drawChart(name, curves) {
  const points = curves.flat();
  const [xLow, xHigh] = [Math.min(...points.map((p) => p[0])), Math.max(...points.map((p) => p[0]))];
  let [yLow, yHigh] = [Math.min(...points.map((p) => p[1])), Math.max(...points.map((p) => p[1]))];
  const margin = (yHigh - yLow || Math.abs(yHigh) || 1) * 0.05;
  [yLow, yHigh] = [yLow - margin, yHigh + margin];
  const { width, height, left, right, top, bottom } = CHART;
  const x = (value) => left + (value - xLow) / (xHigh - xLow || 1) * (width - left - right);
  const y = (value) => height - bottom - (value - yLow) / (yHigh - yLow) * (height - top - bottom);
  const last = DATA.runs.map((run, i) => curves[i].length && `${run} ends at ${shortNumber(curves[i].at(-1)[1])}`);
  const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${name} over iterations` },
    svg("title", {}, `${name} over iterations`),
    svg("desc", {}, `${last.filter(Boolean).join("; ")}. All numbers are in the table below.`));
  for (const value of ticks(yLow, yHigh, 6)) {
    chart.append(svg("line", { class: "axis", x1: left, x2: width - right, y1: y(value), y2: y(value) }),
      svg("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, shortNumber(value)));
  }
  for (const value of ticks(xLow, xHigh, 7)) {
    chart.append(svg("line", { class: "axis", x1: x(value), x2: x(value), y1: height - bottom, y2: height - bottom + 5 }),
      svg("text", { x: x(value), y: height - bottom + 18, "text-anchor": "middle" }, shortNumber(value)));
  }
  chart.append(svg("text", { x: (left + width - right) / 2, y: height - 8, "text-anchor": "middle" }, "iteration"),
    svg("text", { transform: `translate(14 ${(top + height - bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, name));
  curves.forEach((curve, i) => {
    const style = { stroke: CURVE_COLOURS[i % CURVE_COLOURS.length], "stroke-dasharray": DASHES[i % DASHES.length] };
    chart.append(svg("polyline", { class: "curve", points: curve.map((p) => `${x(p[0])},${y(p[1])}`).join(" "), ...style }));
    if (curve.length <= 30) for (const p of curve) chart.append(svg("circle", { cx: x(p[0]), cy: y(p[1]), r: 3, fill: style.stroke }));
  });
  return chart;
}

function drawLegend() {
  const legend = element("p", { class: "legend" });
  DATA.runs.forEach((run, i) => {
    const line = svg("svg", { width: 40, height: 10, "aria-hidden": "true" }, svg("line", {
      x1: 2, x2: 38, y1: 5, y2: 5, "stroke-width": 2,
      stroke: CURVE_COLOURS[i % CURVE_COLOURS.length], "stroke-dasharray": DASHES[i % DASHES.length],
    }));
    legend.append(line, ` ${run}  `);
  });
  return legend;
}

function drawTable(name, curves) {
  const iterations = [...new Set(curves.flat().map((p) => p[0]))].sort((a, b) => a - b);
  const step = Math.ceil(iterations.length / MAX_ROWS);
  const shown = iterations.filter((_, i) => i % step === 0 || i === iterations.length - 1);
  const head = element("tr", {}, element("th", { scope: "col" }, "iteration"),
    ...DATA.runs.map((run) => element("th", { scope: "col" }, run)));
  const rows = shown.map((iteration) => element("tr", {}, element("th", { scope: "row" }, String(iteration)),
    ...curves.map((curve) => {
      const point = curve.find((p) => p[0] === iteration);
      return element("td", {}, point ? shortNumber(point[1]) : "");
    })));
  const table = element("table", {}, element("caption", {}, name), element("thead", {}, head), element("tbody", {}, ...rows));
  return element("details", {}, element("summary", {}, `${name}: numbers`),
    element("div", { class: "scroll", role: "region", "aria-label": `${name}: numbers`, tabindex: "0" }, table));
}

function addChart(title, quantities, preferred) {
  const place = document.getElementById("curves");
  const names = Object.keys(quantities);
  if (!names.length) {
    place.append(element("p", {}, `${title}: nothing was logged; these runs were evaluated without training.`));
    return;
  }
  const select = element("select", {}, ...names.map((name) => element("option", {}, name)));
  select.value = preferred.find((name) => names.includes(name)) || names[0];
  const body = element("div");
  const figure = element("figure", { class: "chart" }, element("label", {}, `${title} `, select), body);
  const draw = () => {
    const curves = quantities[select.value];
    body.replaceChildren(drawChart(select.value, curves), drawLegend(), drawTable(select.value, curves));
  };
  select.addEventListener("change", draw);
  draw();
  place.append(figure);
}
