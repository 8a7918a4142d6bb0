// Masks in the browser: COCO run lengths to pixels, and pixels onto a canvas.

// COCO's compressed run lengths -> Uint8Array of height * width in rows, 1 inside.
// Counts are written in groups of five bits, from the third on as differences to the count before the last;
// they run down the columns.
export function decodeRle({ size: [height, width], counts }) {
  const runs = [];
  for (let at = 0; at < counts.length;) {
    let value = 0, shift = 0, code;
    do {
      code = counts.charCodeAt(at++) - 48;
      value |= (code & 31) << shift;
      shift += 5;
    } while (code & 32);
    if (code & 16 && shift < 32) value |= -1 << shift;
    if (runs.length > 2) value += runs[runs.length - 2];
    runs.push(value);
  }
  const mask = new Uint8Array(height * width);
  let position = 0, inside = 0;
  for (const run of runs) {
    if (inside) {
      for (let pixel = position; pixel < position + run; pixel++) {
        mask[(pixel % height) * width + Math.floor(pixel / height)] = 1;
      }
    }
    position += run;
    inside ^= 1;
  }
  return mask;
}

// Tint the pixels of a mask and draw its edge. `image` is ImageData, changed in place; `colour` is [r, g, b].
export function paint(image, mask, colour) {
  const { data, width, height } = image;
  const reach = Math.max(1, Math.round(Math.max(width, height) / 400));
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at++) {
      if (!mask[at]) continue;
      const edge = x < reach || y < reach || x >= width - reach || y >= height - reach ||
        !mask[at - reach] || !mask[at + reach] || !mask[at - reach * width] || !mask[at + reach * width];
      const weight = edge ? 0.95 : 0.45;
      for (let channel = 0; channel < 3; channel++) {
        const value = data[4 * at + channel];
        data[4 * at + channel] = value + weight * (colour[channel] - value);
      }
    }
  }
}

// ImageData of the mask alone: white inside, black outside.
export function toImage(mask, width, height) {
  const image = new ImageData(width, height);
  for (let at = 0; at < mask.length; at++) {
    image.data.fill(255 * mask[at], 4 * at, 4 * at + 3);
    image.data[4 * at + 3] = 255;
  }
  return image;
}

// ImageData of the image, transparent outside the mask.
export function cutOut(source, mask) {
  const image = new ImageData(new Uint8ClampedArray(source.data), source.width, source.height);
  for (let at = 0; at < mask.length; at++) image.data[4 * at + 3] = 255 * mask[at];
  return image;
}
