// The voxels of a volume that scan.py packed into a picture.

function adler32(bytes) {
  let a = 1, b = 0;
  for (const byte of bytes) {
    a = (a + byte) % 65521;
    b = (b + a) % 65521;
  }
  return ((b << 16) | a) >>> 0;
}

// The voxels of a packed volume, in order. Throws where a browser alters what scripts read from a canvas.
async function unpack(packed, [depth, height, width], columns) {
  const picture = new Image();
  await new Promise((done, fail) => {
    picture.onload = done;
    picture.onerror = () => fail(new Error("this browser cannot read its pictures"));
    picture.src = "data:image/png;base64," + packed.png;
  });
  const canvas = make("canvas", { width: picture.naturalWidth, height: picture.naturalHeight });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(picture, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
  const voxels = new Uint8Array(depth * height * width);
  for (let z = 0, i = 0; z < depth; z++) {
    const left = (z % columns) * width, top = Math.floor(z / columns) * height;
    for (let y = 0; y < height; y++) {
      let from = 4 * ((top + y) * canvas.width + left);
      for (let x = 0; x < width; x++, from += 4) voxels[i++] = pixels[from];
    }
  }
  if (adler32(voxels) !== packed.sum) throw new Error("this browser alters pixels that scripts read");
  return voxels;
}
