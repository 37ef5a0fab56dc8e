// Pictures and numbers as files. Everything is made from SVG text, so that PNG and SVG are one picture.

/** @param {string} name @param {string|Blob} content @param {string} type */
export function download(name, content, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** @param {string} svg with width and height in px @returns {Promise<Blob>} at twice the size */
export async function toPng(svg) {
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svg)}`;
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = image.width * 2;
  canvas.height = image.height * 2;
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

/** @param {Element} svg @returns {string} a file of its own */
export function svgText(svg) {
  return new XMLSerializer().serializeToString(svg);
}

/** @param {(string|number|null|undefined)[][]} rows */
export function csv(rows) {
  return rows.map((row) => row.map(field).join(",")).join("\n") + "\n";
}

function field(value) {
  const text = value === null || value === undefined ? "" : String(value);
  return /[",\n\r]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
}
