// Pictures and numbers as files. Everything is made from SVG text, so that PNG and SVG are one picture.

/** @param {string} name @param {string|Blob} content @param {string} type */
export function download(name, content, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** Browsers draw on no canvas with a longer side. */
const LONGEST_PX = 16384;
// an SVG file is XML, which cannot hold these at all
const FORBIDDEN = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff\p{Surrogate}]/gu;

/**
 * @param {string} svg with width and height in px
 * @returns {Promise<Blob>} at twice the size, or as large as a canvas may be; rejected in words where that is too much still
 */
export async function toPng(svg) {
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svg)}`;
  await image.decode();
  const canvas = document.createElement("canvas");
  const scale = Math.min(2, LONGEST_PX / Math.max(image.width, image.height));
  canvas.width = Math.max(1, Math.round(image.width * scale));
  canvas.height = Math.max(1, Math.round(image.height * scale));
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve, reject) => canvas.toBlob(
    (blob) => (blob ? resolve(blob) : reject(new Error("the picture is too large for PNG; save SVG"))), "image/png"));
}

/** @param {Element} svg @returns {string} a file of its own, \ufffd for each character that XML forbids */
export function svgText(svg) {
  return new XMLSerializer().serializeToString(svg).replace(FORBIDDEN, "\ufffd");
}

/** @param {(string|number|null|undefined)[][]} rows */
export function csv(rows) {
  return rows.map((row) => row.map(field).join(",")).join("\n") + "\n";
}

function field(value) {
  const text = value === null || value === undefined ? "" : String(value);
  return /[",\n\r]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
}
