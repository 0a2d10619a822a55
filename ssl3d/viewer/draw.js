// One plane of a viewer on its canvas: grey, classes, outline, cross, letters.

// Calls with (pixel, voxel) of a plane, row by row.
function each(viewer, view, call) {
  const { axis, rows, columns, up } = view;
  const [high, wide] = [viewer.scan.shape[rows], viewer.scan.shape[columns]];
  for (let row = 0, pixel = 0; row < high; row++) {
    let voxel = viewer.at[axis] * viewer.strides[axis] + (up ? high - 1 - row : row) * viewer.strides[rows];
    for (let column = 0; column < wide; column++, pixel++, voxel += viewer.strides[columns]) call(pixel, voxel);
  }
}

// A picture of the plane, a pixel a voxel.
function fill(viewer, view, layer, colour) {
  const context = layer.getContext("2d");
  const data = context.createImageData(layer.width, layer.height);
  each(viewer, view, (pixel, voxel) => colour(data.data, 4 * pixel, voxel));
  context.putImageData(data, 0, 0);
  return layer;
}

function drawView(viewer, view) {
  const { canvas } = view;
  const ratio = window.devicePixelRatio || 1;
  const width = Math.round(canvas.clientWidth * ratio);
  if (!width) return;
  const height = Math.max(1, Math.round((width * viewer.extent(view.rows)) / viewer.extent(view.columns)));
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = true;
  context.drawImage(fill(viewer, view, view.grey, greys(viewer)), 0, 0, width, height);
  if (viewer.maps.length && viewer.shown.checked) drawMaps(viewer, view, context, ratio);
  drawCross(viewer, view, context, ratio);
  drawLetters(viewer, view, context, ratio);
}

// Window and level on the 8 bits: contrast narrows the window around the level that brightness lowers.
function greys(viewer) {
  const wide = 255 - Number(viewer.contrast.value), low = 127.5 - Number(viewer.brightness.value) - wide / 2;
  return (data, at, voxel) => {
    const grey = clamp((255 * (viewer.image[voxel] - low)) / wide, 0, 255);
    data[at] = data[at + 1] = data[at + 2] = grey;
    data[at + 3] = 255;
  };
}

function drawMaps(viewer, view, context, ratio) {
  const { width, height } = context.canvas;
  const map = viewer.maps[Number(viewer.chosen.value)];
  context.imageSmoothingEnabled = false;
  context.globalAlpha = Number(viewer.opacity.value) / 100;
  context.drawImage(fill(viewer, view, view.paint, (data, at, voxel) => {
    if (!map[voxel]) return;
    data.set(viewer.colours[map[voxel] - 1], at);
    data[at + 3] = 255;
  }), 0, 0, width, height);
  context.globalAlpha = 1;
  if (viewer.outline >= 0) drawOutline(viewer, view, context, ratio);
}

// A white line between voxels of different classes.
function drawOutline(viewer, view, context, ratio) {
  const wide = viewer.scan.shape[view.columns], high = viewer.scan.shape[view.rows];
  const x = (column) => Math.round((column * context.canvas.width) / wide); // on pixels: every piece is as bright
  const y = (row) => Math.round((row * context.canvas.height) / high);
  const map = viewer.maps[viewer.outline];
  const plane = new Uint8Array(wide * high);
  each(viewer, view, (pixel, voxel) => { plane[pixel] = map[voxel]; });
  context.beginPath();
  for (let row = 0; row < high; row++) {
    for (let column = 0; column < wide; column++) {
      const here = plane[row * wide + column];
      if (column + 1 < wide && here !== plane[row * wide + column + 1]) {
        context.moveTo(x(column + 1), y(row));
        context.lineTo(x(column + 1), y(row + 1));
      }
      if (row + 1 < high && here !== plane[(row + 1) * wide + column]) {
        context.moveTo(x(column), y(row + 1));
        context.lineTo(x(column + 1), y(row + 1));
      }
    }
  }
  stroke(context, "#fff", 2 * ratio);
}

// A line that is seen on dark and bright tissue.
function stroke(context, colour, width) {
  context.lineCap = "square";
  for (const [style, wide] of [["rgba(0, 0, 0, .6)", width + 2], [colour, width]]) {
    Object.assign(context, { strokeStyle: style, lineWidth: wide });
    context.stroke();
  }
}

function drawCross(viewer, view, context, ratio) {
  const { width, height } = context.canvas;
  const across = viewer.scan.shape[view.columns], down = viewer.scan.shape[view.rows];
  const row = view.up ? down - 1 - viewer.at[view.rows] : viewer.at[view.rows];
  const x = Math.floor(((viewer.at[view.columns] + 0.5) / across) * width) + 0.5; // on pixels, so that it is sharp
  const y = Math.floor(((row + 0.5) / down) * height) + 0.5;
  const gap = 7 * ratio;
  const lines = [[0, y, x - gap, y], [x + gap, y, width, y], [x, 0, x, y - gap], [x, y + gap, x, height]];
  context.beginPath();
  for (const [x0, y0, x1, y1] of lines) {
    if (x1 < x0 || y1 < y0) continue;
    context.moveTo(x0, y0);
    context.lineTo(x1, y1);
  }
  stroke(context, "#F0E442", ratio);
}

function drawLetters(viewer, view, context, ratio) {
  const { width, height } = context.canvas, inset = 9 * ratio;
  const places = [[inset, height / 2], [width - inset, height / 2], [width / 2, inset], [width / 2, height - inset]];
  Object.assign(context, { font: `600 ${12 * ratio}px system-ui, sans-serif`, textAlign: "center" });
  Object.assign(context, { textBaseline: "middle", lineJoin: "round", lineWidth: 3 * ratio });
  Object.assign(context, { strokeStyle: "#000", fillStyle: "#fff" });
  view.letters.forEach((letter, i) => {
    context.strokeText(letter, ...places[i]);
    context.fillText(letter, ...places[i]);
  });
}
