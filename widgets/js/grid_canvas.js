// How a grid comes onto a canvas: sizes first, then pixels.

import { inkOn } from "./palette.js";

const FONT = '11px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace';
const ADVANCE = 6.7; // px of one character of it
const LINE = 13;
const LONGEST_GUTTER = 96, LONGEST_HEADER = 76, UPRIGHT_BELOW = 30, TEXT_FROM = 20;

/** Px of a cell with room for so many characters. */
export const textWidth = (count) => Math.ceil(count * ADVANCE) + 10;

/** Sizes in CSS px of a picture in a box of `room` px. Labels stay while cells scroll. */
export function layout(picture, room, maxHeight) {
  const { shape: [rows, cols], texts } = picture;
  const cellWidth = picture.cellWidth ?? (texts ? 58 : Math.max(10, Math.min(28, (room - 60) / (cols || 1))));
  const cellHeight = picture.cellHeight ?? (texts ? 20 : Math.min(22, cellWidth));
  const upright = picture.upright ?? cellWidth < UPRIGHT_BELOW;
  const longest = (labels) => labels.reduce((most, label) => Math.max(most, String(label).length), 0) * ADVANCE;
  const gutter = Math.ceil(Math.min(LONGEST_GUTTER, longest([...picture.rows, picture.rowName])) + 10);
  const header = upright ? Math.ceil(Math.min(LONGEST_HEADER, longest(picture.cols)) + 8) : LINE + 6;
  const fullWidth = gutter + cols * cellWidth + 1, fullHeight = header + rows * cellHeight + 1;
  return {
    cellWidth, cellHeight, gutter, header, upright, fullWidth, fullHeight,
    width: Math.min(room, fullWidth), height: Math.min(maxHeight, fullHeight),
  };
}

const cut = new Map();

/** As much of a text as fits, with an ellipsis where it does not. */
export function clipped(text, width) {
  const count = Math.max(1, Math.floor(width / ADVANCE));
  if (text.length * 2 <= count) return text;
  const key = `${count} ${text}`;
  let found = cut.get(key);
  if (found === undefined) {
    if (cut.size > 20000) cut.clear();
    cut.set(key, (found = shortened(text, count)));
  }
  return found;
}

function shortened(text, count) {
  // characters beyond Latin are up to two columns wide
  const wide = (character) => (character.codePointAt(0) > 0x2e7f ? 2 : 1);
  const characters = [...text];
  if (characters.reduce((sum, one) => sum + wide(one), 0) <= count) return text;
  let used = 1, kept = "";
  for (const one of characters) {
    used += wide(one);
    if (used > count) break;
    kept += one;
  }
  return `${kept}…`;
}

/** @param {{left, top, theme, cursor, hovered}} now what changes without new values */
export function paintGrid(canvas, picture, plan, now) {
  const context = canvas.getContext("2d");
  const scale = globalThis.devicePixelRatio || 1;
  const wide = Math.round(plan.width * scale), high = Math.round(plan.height * scale);
  if (canvas.width !== wide || canvas.height !== high) {
    canvas.width = wide;
    canvas.height = high;
    canvas.style.width = `${plan.width}px`;
    canvas.style.height = `${plan.height}px`;
  }
  if (!context) return;
  const part = inSight(picture.shape, plan, now);
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, plan.width, plan.height);
  context.font = FONT;
  context.textBaseline = "middle";
  context.save();
  context.beginPath();
  context.rect(plan.gutter, plan.header, plan.width - plan.gutter, plan.height - plan.header);
  context.clip();
  paintCells(context, picture, plan, part, now);
  if (picture.texts && plan.cellWidth >= TEXT_FROM) paintTexts(context, picture, plan, part, now);
  paintMarks(context, picture, plan, part, now);
  context.restore();
  paintLabels(context, picture, plan, part, now);
}

function inSight([rows, cols], { cellWidth, cellHeight, width, height, gutter, header }, { left, top }) {
  return {
    row0: Math.floor(top / cellHeight), row1: Math.min(rows, Math.ceil((top + height - header) / cellHeight)),
    col0: Math.floor(left / cellWidth), col1: Math.min(cols, Math.ceil((left + width - gutter) / cellWidth)),
  };
}

const xOf = (plan, now, col) => plan.gutter + col * plan.cellWidth - now.left;
const yOf = (plan, now, row) => plan.header + row * plan.cellHeight - now.top;

function paintCells(context, picture, plan, { row0, row1, col0, col1 }, now) {
  if (row1 <= row0 || col1 <= col0) return;
  const wide = (col1 - col0) * plan.cellWidth, high = (row1 - row0) * plan.cellHeight;
  const x0 = xOf(plan, now, col0), y0 = yOf(plan, now, row0);
  // one pixel a cell, stretched: thousands of cells cost as much as ten
  picture.image ??= asImage(picture);
  context.imageSmoothingEnabled = false;
  context.drawImage(picture.image, col0, row0, col1 - col0, row1 - row0, x0, y0, wide, high);
  if (plan.cellWidth < 7) return;
  context.strokeStyle = now.theme.paper;
  context.lineWidth = 1;
  context.beginPath();
  for (let c = col0; c <= col1; c++) line(context, Math.round(xOf(plan, now, c)) + 0.5, y0, 0, high);
  for (let r = row0; r <= row1; r++) line(context, x0, Math.round(yOf(plan, now, r)) + 0.5, wide, 0);
  context.stroke();
}

function line(context, x, y, dx, dy) {
  context.moveTo(x, y);
  context.lineTo(x + dx, y + dy);
}

function asImage({ shape: [rows, cols], colours }) {
  const image = document.createElement("canvas");
  image.width = cols;
  image.height = rows;
  const pixels = new ImageData(cols, rows);
  colours.forEach((colour, i) => {
    if (!colour) return; // no number: the paper shows
    [pixels.data[i * 4], pixels.data[i * 4 + 1], pixels.data[i * 4 + 2]] = colour;
    pixels.data[i * 4 + 3] = 255;
  });
  image.getContext("2d").putImageData(pixels, 0, 0);
  return image;
}

function inksOf(colours) {
  const found = new Map([[null, ""]]);
  return colours.map((colour) => {
    if (!found.has(colour)) found.set(colour, inkOn(colour));
    return found.get(colour);
  });
}

function paintTexts(context, picture, plan, { row0, row1, col0, col1 }, now) {
  const { colours, texts, shape } = picture, room = plan.cellWidth - 6;
  picture.inks ??= inksOf(colours);
  // one ink after the other: a change of ink costs as much as a word
  for (const ink of ["#000", "#fff", ""]) {
    context.fillStyle = ink || now.theme.ink;
    for (let r = row0; r < row1; r++) {
      const y = yOf(plan, now, r) + plan.cellHeight / 2 + 1;
      for (let c = col0; c < col1; c++) {
        if (picture.inks[r * shape[1] + c] !== ink) continue;
        const text = texts(r, c);
        if (text) context.fillText(clipped(text, room), xOf(plan, now, c) + 4, y);
      }
    }
  }
}

function paintMarks(context, picture, plan, { row0, row1, col0, col1 }, now) {
  const around = (row, col, colour, thick, inset) => {
    context.strokeStyle = colour;
    context.lineWidth = thick;
    context.strokeRect(xOf(plan, now, col) + inset, yOf(plan, now, row) + inset, plan.cellWidth + 1 - 2 * inset, plan.cellHeight + 1 - 2 * inset);
  };
  // white within black: seen on every colour of both palettes
  const twice = (row, col) => { around(row, col, "#000", 3, 1); around(row, col, "#fff", 1.5, 1.5); };
  if (picture.marks) {
    for (let r = row0; r < row1; r++) for (let c = col0; c < col1; c++) if (picture.marks(r, c)) twice(r, c);
  }
  if (now.hovered) around(now.hovered.row, now.hovered.col, now.theme.ink, 1, 0.5);
  if (now.cursor) around(now.cursor.row, now.cursor.col, now.theme.accent, 3, 1);
}

function paintLabels(context, picture, plan, { row0, row1, col0, col1 }, now) {
  const at = now.cursor ?? now.hovered ?? {}, chosen = picture.chosen ?? {};
  const inkOf = (mine, index) => (chosen[mine] === index || at[mine] === index ? now.theme.accent : now.theme.ink);
  context.save();
  context.beginPath();
  context.rect(0, plan.header, plan.gutter, plan.height - plan.header);
  context.clip();
  context.textAlign = "right";
  const rowStep = Math.ceil(LINE / plan.cellHeight);
  for (let r = Math.ceil(row0 / rowStep) * rowStep; r < row1; r += rowStep) {
    context.fillStyle = inkOf("row", r);
    const y = yOf(plan, now, r) + plan.cellHeight / 2 + 1;
    context.fillText(clipped(String(picture.rows[r]), plan.gutter - 8), plan.gutter - 5, y);
  }
  context.restore();
  context.save();
  context.beginPath();
  context.rect(plan.gutter, 0, plan.width - plan.gutter, plan.header);
  context.clip();
  context.textAlign = "left";
  const colStep = plan.upright ? Math.ceil(LINE / plan.cellWidth) : 1;
  for (let c = Math.ceil(col0 / colStep) * colStep; c < col1; c += colStep) {
    context.fillStyle = inkOf("col", c);
    const text = String(picture.cols[c]), x = xOf(plan, now, c);
    if (plan.upright) paintUpright(context, clipped(text, plan.header - 6), x + plan.cellWidth / 2, plan.header - 4);
    else context.fillText(clipped(text, plan.cellWidth - 5), x + 4, plan.header / 2 + 1);
  }
  context.restore();
}

function paintUpright(context, text, x, y) {
  context.save();
  context.translate(x, y);
  context.rotate(-Math.PI / 2);
  context.fillText(text, 0, 0);
  context.restore();
}
