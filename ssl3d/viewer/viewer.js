// Three linked planes of each scan of a page. Voxels are (z, y, x): z grows to Superior, y to Posterior, x to the
// patient's Left, as in the store. What a scan is made of: ssl3d/viewer/scan.py.

// axis: what its slices are counted along; rows, columns: axes of the picture; up: whether row 0 is the last voxel
const PLANES = [
  { name: "axial", axis: 0, rows: 1, columns: 2, up: false, letters: ["R", "L", "A", "P"] },
  { name: "coronal", axis: 1, rows: 0, columns: 2, up: true, letters: ["R", "L", "S", "I"] },
  { name: "sagittal", axis: 2, rows: 0, columns: 1, up: true, letters: ["A", "P", "S", "I"] },
];
const AXES = ["z", "y", "x"];
const PAGE = 10; // slices of PageUp and PageDown
const NOTCH = 50; // pixels of a wheel that make a slice; a trackpad sends a few at a time
const TALLEST = 0.5; // height of the planes, in their widths together
const NAMED = 12; // classes of the legend; the readout names every one
const HELP = "Click or drag to move the cross. Wheel, arrow keys, Page Up, Page Down, Home and End move through the "
  + "slices of the plane in focus, Tab goes to the next plane";

const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

class Viewer {
  constructor(root) {
    this.root = root;
    this.scan = JSON.parse(root.dataset.scan);
    this.button = make("button", { type: "button", textContent: "Look through the slices" });
    this.button.setAttribute("aria-expanded", "false");
    this.button.addEventListener("click", () => this.toggle());
    root.append(this.button);
  }

  async toggle() {
    const open = !this.root.classList.contains("open");
    try {
      this.built ??= this.build(); // once, however fast one clicks
      await this.built;
    } catch (error) {
      const textContent = `No slices to look through: ${error.message}.`;
      this.button.replaceWith(make("p", { className: "keys", textContent }));
      return;
    }
    this.root.classList.toggle("open", open);
    this.live.hidden = !open;
    this.button.textContent = open ? "Back to the picture" : "Look through the slices";
    this.button.setAttribute("aria-expanded", String(open));
    if (open) {
      this.draw();
      this.views[0].canvas.focus();
    }
  }

  async build() {
    const { scan } = this;
    this.image = await unpack(scan.image, scan.shape, scan.columns);
    this.maps = [];
    for (const map of scan.maps) this.maps.push(await unpack(map, scan.shape, scan.columns));
    this.outline = scan.maps.findIndex((map) => map.name === scan.outline);
    this.colours = scan.paints.map(([, colour]) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16)));
    const [depth, height, width] = scan.shape;
    this.strides = [height * width, width, 1];
    this.at = scan.start.map((n, axis) => clamp(n, 0, scan.shape[axis] - 1));
    this.wheel = 0;
    this.readout = make("p", { className: "readout" });
    const help = HELP + (this.maps.length ? ", L shows or hides the labels." : ".");
    const parts = [this.tools(), this.slices(), this.readout, this.legend()];
    parts.push(make("p", { className: "keys", textContent: help }));
    this.live = make("div", { className: "live", hidden: true }, ...parts);
    this.live.addEventListener("keydown", (event) => {
      if (event.key.toLowerCase() !== "l" || event.ctrlKey || event.metaKey || event.altKey || !this.shown) return;
      if (event.target.tagName === "SELECT") return; // letters choose an entry there
      this.shown.checked = !this.shown.checked;
      this.draw();
    });
    this.root.insertBefore(this.live, this.button);
    new ResizeObserver(() => this.draw()).observe(this.live);
    this.root.dataset.ready = "true";
  }

  // Size in mm of the copy along an axis.
  extent(axis) {
    return this.scan.shape[axis] * this.scan.step[axis] * this.scan.spacing[axis];
  }

  slider(words, low, high, value) {
    const input = make("input", { type: "range", min: low, max: high, defaultValue: value });
    input.addEventListener("input", () => this.draw());
    return [input, make("label", {}, words, input)];
  }

  tools() {
    const tools = make("div", { className: "tools" });
    if (this.maps.length) {
      this.shown = make("input", { type: "checkbox", checked: true });
      this.shown.addEventListener("change", () => this.draw());
      tools.append(make("label", {}, this.shown, "Labels (L)"));
      this.chosen = make("select");
      this.chosen.append(...this.scan.maps.map(({ name }, value) => make("option", { value, textContent: name })));
      this.chosen.addEventListener("change", () => this.draw());
      this.chosen.value = this.outline === 0 && this.maps.length > 1 ? 1 : 0; // filled; the outline is there anyhow
      if (this.maps.length > 1) tools.append(make("label", {}, "Filled", this.chosen));
      const [opacity, label] = this.slider("Opacity", 0, 100, 45);
      this.opacity = opacity;
      tools.append(label);
    }
    const [brightness, brighter] = this.slider("Brightness", -127, 127, 0);
    const [contrast, steeper] = this.slider("Contrast", 0, 254, 0);
    Object.assign(this, { brightness, contrast });
    const reset = make("button", { type: "button", textContent: "Reset" });
    reset.addEventListener("click", () => {
      for (const input of tools.querySelectorAll("input[type=range]")) input.value = input.defaultValue;
      this.draw();
    });
    tools.append(brighter, steeper, reset);
    return tools;
  }

  slices() {
    this.views = PLANES.map((plane) => {
      const [rows, columns] = [plane.rows, plane.columns].map((axis) => this.scan.shape[axis]);
      const canvas = make("canvas", { tabIndex: 0 }), place = make("p", { className: "place" });
      const size = { width: columns, height: rows };
      const view = { ...plane, canvas, place, grey: make("canvas", size), paint: make("canvas", size) };
      canvas.style.aspectRatio = `${this.extent(plane.columns)} / ${this.extent(plane.rows)}`;
      for (const [name, value] of [["role", "slider"], ["aria-orientation", "vertical"], ["aria-valuemin", 1],
        ["aria-valuemax", this.scan.shape[plane.axis]], ["aria-label", `${plane.name} slice of ${this.scan.name}`]]) {
        canvas.setAttribute(name, value);
      }
      this.listen(view);
      return view;
    });
    const widths = this.views.map((view) => this.extent(view.columns));
    const tallest = Math.max(...this.views.map((view) => this.extent(view.rows)));
    const sum = widths.reduce((a, b) => a + b);
    const strip = make("div", { className: "slices" });
    strip.style.width = `${Math.min(100, (100 * TALLEST * sum) / tallest)}%`;
    strip.append(...this.views.map((view, i) => {
      const box = make("div", {}, view.canvas, view.place);
      box.style.flex = `${widths[i]} 1 0`;
      box.style.setProperty("--share", Math.min(1, widths[i] / Math.max(...widths), widths[i] / tallest));
      return box;
    }));
    return strip;
  }

  legend() {
    const items = this.scan.paints.slice(0, NAMED).map(([name, colour]) => {
      const swatch = make("span");
      swatch.style.background = colour;
      return make("li", {}, swatch, name);
    });
    const more = this.scan.paints.length - NAMED;
    if (more > 0) items.push(make("li", { textContent: `and ${more} more, named where the cross is` }));
    if (this.outline >= 0) items.push(make("li", { textContent: `white line: ${this.scan.outline}` }));
    return make("ul", { className: "paints" }, ...items);
  }

  listen(view) {
    const { canvas, axis } = view;
    const keys = {
      ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: PAGE, PageDown: -PAGE, Home: -Infinity,
      End: Infinity,
    };
    canvas.addEventListener("keydown", (event) => {
      if (!(event.key in keys) || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      this.move(axis, this.at[axis] + keys[event.key]);
    });
    canvas.addEventListener("wheel", (event) => {
      if (event.ctrlKey) return; // zooms the page
      event.preventDefault();
      this.wheel += event.deltaMode === WheelEvent.DOM_DELTA_PIXEL ? event.deltaY : event.deltaY * NOTCH;
      const slices = Math.trunc(this.wheel / NOTCH);
      this.wheel -= slices * NOTCH;
      this.move(axis, this.at[axis] - slices);
    }, { passive: false });
    const point = (event) => {
      const box = canvas.getBoundingClientRect();
      const column = ((event.clientX - box.left) / box.width) * this.scan.shape[view.columns];
      const down = ((event.clientY - box.top) / box.height) * this.scan.shape[view.rows];
      const row = view.up ? this.scan.shape[view.rows] - down : down;
      this.at[view.columns] = clamp(Math.floor(column), 0, this.scan.shape[view.columns] - 1);
      this.move(view.rows, Math.floor(row));
    };
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      canvas.focus();
      point(event);
      canvas.setPointerCapture(event.pointerId); // a drag goes on outside the canvas
    });
    canvas.addEventListener("pointermove", (event) => {
      if (canvas.hasPointerCapture(event.pointerId)) point(event);
    });
  }

  move(axis, to) {
    this.at[axis] = clamp(to, 0, this.scan.shape[axis] - 1);
    this.draw();
  }

  // What one event changes is drawn once.
  draw() {
    if (this.waiting) return;
    this.waiting = true;
    queueMicrotask(() => {
      this.waiting = false;
      if (!this.live || this.live.hidden) return;
      for (const view of this.views) drawView(this, view);
      this.say();
    });
  }

  // The stored voxel in the middle of a block, and where it is in mm from the volume's first voxel.
  stored(axis) {
    const { origin, step, size } = this.scan;
    return Math.min(origin[axis] + this.at[axis] * step[axis] + Math.floor((step[axis] - 1) / 2), size[axis] - 1);
  }

  mm(axis) {
    return (this.stored(axis) * this.scan.spacing[axis]).toFixed(1);
  }

  say() {
    const index = this.at.reduce((sum, at, axis) => sum + at * this.strides[axis], 0);
    const named = (map) => (map[index] ? this.scan.paints[map[index] - 1][0] : "none");
    const voxel = AXES.map((name, axis) => `${name} ${this.stored(axis)}`).join(", ");
    const place = AXES.map((name, axis) => `${name} ${this.mm(axis)}`).join(", ");
    const labels = this.scan.maps.map(({ name }, i) => `${name}: ${named(this.maps[i])}`);
    this.readout.textContent = [`voxel ${voxel}`, `${place} mm from the first voxel`, ...labels].join(" · ");
    for (const { axis, canvas, place: words, name } of this.views) {
      const said = `${AXES[axis]} ${this.stored(axis)} (0 to ${this.scan.size[axis] - 1}), ${this.mm(axis)} mm`;
      words.textContent = `${name}: ${said}`;
      canvas.dataset.slice = this.at[axis];
      canvas.setAttribute("aria-valuenow", this.at[axis] + 1);
      canvas.setAttribute("aria-valuetext", said);
    }
  }
}

document.querySelectorAll(".viewer").forEach((root, i) => {
  root.id = `viewer-${i + 1}`;
  const viewer = new Viewer(root);
  if (location.hash === `#${root.id}`) viewer.toggle(); // page.html#viewer-2 opens the second
});
