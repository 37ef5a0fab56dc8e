// The bytes of widgets/frames.py, read back: plain values as they were, arrays as {values, shape}.

const READERS = {
  "<f4": Float32Array,
  "<i4": Int32Array,
  "<u2": Uint16Array,
  "<u1": Uint8Array,
  "|u1": Uint8Array,
};

/** @param {DataView|ArrayBuffer|Uint8Array|null|undefined} data */
export function unpack(data) {
  if (!data || !data.byteLength) return null;
  const bytes = data instanceof ArrayBuffer
    ? new Uint8Array(data)
    : new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  // a copy: what comes over the wire may start at any offset, typed arrays may not
  const buffer = bytes.slice().buffer;
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const start = Math.ceil((4 + length) / 8) * 8;
  const found = { ...header.json };
  for (const [name, about] of Object.entries(header.arrays)) {
    const count = about.shape.reduce((a, b) => a * b, 1);
    found[name] = { shape: about.shape, values: read(buffer, start + about.offset, count, about.dtype) };
  }
  return found;
}

/** Part `index` along the first axis, without copying. */
export function at(array, index) {
  const shape = array.shape.slice(1);
  const size = shape.reduce((a, b) => a * b, 1);
  return { shape, values: array.values.subarray(index * size, (index + 1) * size) };
}

function read(buffer, offset, count, dtype) {
  if (dtype === "<f2") return Float32Array.from(new Uint16Array(buffer, offset, count), half);
  return new READERS[dtype](buffer, offset, count);
}

function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}
