// Slices of volumes on a canvas, and the parts that every game is made of.
//
// An image comes from Python as {shape, bytes}: whole numbers from 0 to 255, the last axis counting fastest.
// The shape of a volume is [X, Y, Z] (RAS: to the right, to the front, to the head), of a picture [rows, columns] or
// [rows, columns, 3]. A game gets all that it shows from its model, and tells the model each answer of the player, so
// that it runs in any page that has `model.get`, `model.set` and `model.save_changes`.

export const PLANES = { sagittal: 0, coronal: 1, axial: 2 };
const ENDS = [["L", "R"], ["P", "A"], ["I", "S"]];

// ---- arrays -------------------------------------------------------------------------------------------------------

/** The bytes of an image as numbers, however the page received them. */
export function unpack(image) {
  const { shape, bytes } = image;
  const data = bytes instanceof Uint8Array ? bytes
    : ArrayBuffer.isView(bytes) ? new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    : new Uint8Array(bytes);
  const colours = shape.length === 3 && shape[2] === 3 && image.flat ? 3 : 1;
  return { shape, data, flat: Boolean(image.flat) || shape.length === 2, colours };
}

/** One slice as {width, height, colours, values}, its first row on top; a picture is its own slice. */
export function slice(volume, plane = "axial", at = null) {
  const { shape, data, flat, colours } = volume;
  if (flat) return { width: shape[1], height: shape[0], colours, values: data };
  const across = PLANES[plane];
  const [a, b] = [0, 1, 2].filter((axis) => axis !== across);
  const place = at === null ? Math.floor(shape[across] / 2) : at;
  const step = [shape[1] * shape[2], shape[2], 1];
  const width = shape[a], height = shape[b];
  const values = new Uint8Array(width * height);
  for (let row = 0; row < height; row++)
    for (let column = 0; column < width; column++)
      values[row * width + column] = data[place * step[across] + column * step[a] + (height - 1 - row) * step[b]];
  return { width, height, colours: 1, values };
}

/** The letters at the left, right, lower and upper edge of a slice. */
export function directions(plane) {
  const [a, b] = [0, 1, 2].filter((axis) => axis !== PLANES[plane]);
  return { left: ENDS[a][0], right: ENDS[a][1], below: ENDS[b][0], above: ENDS[b][1] };
}

/** The places of a grid of tiles as they are seen, layer by layer: rows from above, columns from the left. */
export function layout(grid, dims) {
  const sides = [...Array(grid).keys()];
  if (dims === 2) return [sides.map((row) => sides.map((column) => row * grid + column))];
  return sides.map((layer) => [...sides].reverse().map((y) => sides.map((x) => (x * grid + y) * grid + layer)));
}

// ---- pictures -----------------------------------------------------------------------------------------------------

/** Draw a slice into a canvas, `side` screen pixels along its longer side, with classes in colours if there are any. */
export function paint(canvas, shown, { side = 220, classes = null, colours = [], letters = null, opacity = 0.6 } = {}) {
  const { width, height, values } = shown;
  const source = document.createElement("canvas");
  Object.assign(source, { width, height });
  const pixels = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    const label = classes ? classes.values[i] : 0;
    const tint = label ? colours[(label - 1) % colours.length] : null;
    for (let c = 0; c < 3; c++) {
      const grey = shown.colours === 3 ? values[3 * i + c] : values[i];
      pixels.data[4 * i + c] = tint ? (1 - opacity) * grey + opacity * tint[c] : grey;
    }
    pixels.data[4 * i + 3] = 255;
  }
  source.getContext("2d").putImageData(pixels, 0, 0);
  const scale = side / Math.max(width, height), sharp = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * scale * sharp);
  canvas.height = Math.round(height * scale * sharp);
  canvas.style.width = `${width * scale}px`;
  canvas.style.height = `${height * scale}px`;
  const pen = canvas.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.drawImage(source, 0, 0, canvas.width, canvas.height);
  if (letters) write(pen, letters, sharp);
}

/** Write the letters of the directions at the edges of a canvas, `sharp` pixels of it to one of the screen. */
export function write(pen, letters, sharp) {
  const { width, height } = pen.canvas, edge = 9 * sharp;
  pen.font = `bold ${13 * sharp}px sans-serif`;
  Object.assign(pen, { textAlign: "center", textBaseline: "middle", lineWidth: 3 * sharp });
  pen.strokeStyle = "black";
  pen.fillStyle = "white";
  const places = { left: [edge, height / 2], right: [width - edge, height / 2],
    below: [width / 2, height - edge], above: [width / 2, edge] };
  for (const [where, [x, y]] of Object.entries(places)) {
    pen.strokeText(letters[where], x, y);
    pen.fillText(letters[where], x, y);
  }
}

/** "#E69F00" as [230, 159, 0]. */
export function rgb(colour) {
  return [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
}

// ---- the page -----------------------------------------------------------------------------------------------------

/** An element with attributes, handlers (`onclick`, ...) and children. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

/** A button with a word on it. */
export function button(word, onclick, attributes = {}) {
  return make("button", { type: "button", onclick, ...attributes }, ...(word ? [word] : []));
}

/** A choice of one of several words; `choose` gets the word. Gives the element and a function that presses a word. */
export function choice(name, words, chosen, choose) {
  const buttons = words.map((word) => button(word, () => { press(word); choose(word); }));
  const press = (word) => buttons.forEach((b, i) => b.setAttribute("aria-pressed", String(words[i] === word)));
  press(chosen);
  return { element: make("div", { class: "row", role: "group", "aria-label": name }, ...buttons), press };
}

/** A slider with its name and its value beside it. */
export function slider(name, { min = 0, max, value, step = 1 }, move) {
  const told = make("output", {}, String(value));
  const input = make("input", { type: "range", min, max, step, value, "aria-label": name, oninput: () => {
    told.textContent = input.value;
    move(Number(input.value));
  } });
  const set = (to) => { input.value = to; told.textContent = String(to); };
  return { element: make("label", { class: "slider" }, `${name} `, input, told), input, set };
}

/** Horizontal bars of chances from 0 to 1, each with its name; the one that is true is marked. */
export function bars(rows) {
  return make("div", { class: "bars", role: "list" }, ...rows.map(({ name, chance, right }) => {
    const percent = Math.round(100 * chance);
    return make("div", { role: "listitem", class: right ? "bar right" : "bar",
      "aria-label": `${name}: ${percent} %${right ? ", the true one" : ""}` },
      make("span", {}, right ? `${name} ✓` : name),
      make("span", { class: "track" }, make("span", { class: "fill", style: `width: ${percent}%` })),
      make("span", { class: "number" }, `${percent} %`));
  }));
}

/** The frame of a game: a place for pictures, a row of controls, and a line that tells what happened. */
export function frame(el, text) {
  const board = make("div", { class: "board", role: "group", "aria-label": text });
  const controls = make("div", { class: "row controls" });
  const told = make("p", { class: "told", role: "status", "aria-live": "polite" });
  const more = make("div", { class: "more" });
  el.classList.add("ssl3d-game");
  el.addEventListener("keydown", (event) => { // the arrows are for the game: JupyterLab would go to another cell
    if (event.key.startsWith("Arrow")) event.stopPropagation();
  });
  el.replaceChildren(board, controls, told, more);
  return { board, controls, more, say: (words) => { told.textContent = words; } };
}

/** Hand an answer of the player to Python, which sees it as soon as no cell runs. */
export function tell(model, question, answer, right) {
  model.set("answers", [...(model.get("answers") || []), { question, answer, right }]);
  model.save_changes();
}

/** How many of the questions that were answered ended in a right answer. */
export function scored(answers) {
  const last = new Map(answers.map((a) => [a.question, a.right]));
  return { right: [...last.values()].filter(Boolean).length, asked: last.size };
}
