"use strict";
// Masks: decoding, and painting into the overlay of a panel, an ImageData of the view's size.

const FILL_OPACITY = 115;
// Told apart by the colour-blind too
const ONLY_FIRST = [230, 159, 0];
const ONLY_SECOND = [0, 114, 178];
const PATCH_KINDS = [
  { name: "background", colour: "rgb(70 110 255 / 18%)" },
  { name: "mixed", colour: "rgb(255 165 0 / 55%)" },
  { name: "foreground", colour: "rgb(40 200 80 / 55%)" },
];

const decoded = new WeakMap();

// Pixels of a mask inside its box, row by row, 1 inside the mask.
function pixelsOf(mask) {
  if (!decoded.has(mask)) {
    const runs = atob(mask.runs);
    const pixels = new Uint8Array(mask.box[2] * mask.box[3]);
    let start = 0;
    for (let i = 0; i < runs.length; i++) {
      const end = start + runs.charCodeAt(i);
      if (i % 2) pixels.fill(1, start, end);
      start = end;
    }
    decoded.set(mask, pixels);
  }
  return decoded.get(mask);
}

// RGB of the object with this number: neighbours far apart in hue, as in the pictures of tools/demo.py.
function objectColour(number) {
  const hue = (0.02 + number * (Math.sqrt(5) - 1) / 2) % 1;
  const saturation = 0.8 - 0.25 * (number % 2);
  return [5, 3, 1].map((offset) => {
    const k = (offset + hue * 6) % 6;
    return Math.round(255 * (1 - saturation * Math.max(0, Math.min(k, 4 - k, 1))));
  });
}

// A colour as an ImageData seen as 32-bit numbers holds it.
function packed([r, g, b], alpha) {
  const bytes = new Uint8ClampedArray([r, g, b, alpha]);
  return new Uint32Array(bytes.buffer)[0];
}

// Paint masks, the first on top.
function paintMasks(overlay, masks, { fill, outline }) {
  const target = new Uint32Array(overlay.data.buffer);
  for (const mask of [...masks].reverse()) {
    const pixels = pixelsOf(mask);
    const colour = objectColour(mask.object);
    const [inner, edge] = [fill ? packed(colour, FILL_OPACITY) : 0, packed(colour, 255)];
    const [left, top, width, height] = mask.box;
    // A view may be a part of its image: its border is no outline
    const [openLeft, openTop] = [left > 0, top > 0];
    const [openRight, openBottom] = [left + width < overlay.width, top + height < overlay.height];
    for (let y = 0, i = 0; y < height; y++) {
      for (let x = 0, j = (top + y) * overlay.width + left; x < width; x++, i++, j++) {
        if (!pixels[i]) continue;
        const isEdge = outline && ((x > 0 ? !pixels[i - 1] : openLeft) || (x < width - 1 ? !pixels[i + 1] : openRight)
          || (y > 0 ? !pixels[i - width] : openTop) || (y < height - 1 ? !pixels[i + width] : openBottom));
        if (isEdge) target[j] = edge;
        else if (inner) target[j] = inner;
      }
    }
  }
}

// Call visit(x, y, isFirst) for each pixel that two lists of masks do not share; masks are paired by their object.
function eachDifference(first, second, visit) {
  for (const number of new Set([...first, ...second].map((mask) => mask.object))) {
    const pair = [first, second].map((masks) => masks.find((mask) => mask.object === number));
    if (pair[0]) eachOutside(pair[0], pair[1], (x, y) => visit(x, y, true));
    if (pair[1]) eachOutside(pair[1], pair[0], (x, y) => visit(x, y, false));
  }
}

// Call visit(x, y) for each pixel of a mask that is not in another, which may be missing.
function eachOutside(mask, other, visit) {
  const pixels = pixelsOf(mask);
  const [left, top, width, height] = mask.box;
  const [otherLeft, otherTop, otherWidth, otherHeight] = other ? other.box : [0, 0, 0, 0];
  const otherPixels = other && pixelsOf(other);
  for (let i = 0, y = top; y < top + height; y++) {
    const isRow = y >= otherTop && y < otherTop + otherHeight;
    const start = (y - otherTop) * otherWidth - otherLeft;
    for (let x = left; x < left + width; x++, i++) {
      if (!pixels[i]) continue;
      if (!(isRow && x >= otherLeft && x < otherLeft + otherWidth && otherPixels[start + x])) visit(x, y);
    }
  }
}

function paintDifference(overlay, first, second) {
  const target = new Uint32Array(overlay.data.buffer);
  const [onlyFirst, onlySecond] = [packed(ONLY_FIRST, 230), packed(ONLY_SECOND, 230)];
  eachDifference(first, second, (x, y, isFirst) => { target[y * overlay.width + x] = isFirst ? onlyFirst : onlySecond; });
}

// Centre of the cell, of a grid of 24 x 24, with the most pixels that differ; null if none does.
function largestDifference(view, first, second) {
  const cells = 24;
  const counts = new Uint32Array(cells * cells);
  eachDifference(first, second, (x, y) => {
    counts[Math.floor(y * cells / view.height) * cells + Math.floor(x * cells / view.width)]++;
  });
  const most = counts.reduce((best, count, i) => (count > counts[best] ? i : best), 0);
  if (!counts[most]) return null;
  return [((most % cells) + 0.5) * view.width / cells, (Math.floor(most / cells) + 0.5) * view.height / cells];
}
