// Which patch comes further down? A slice in which one patch and the patches above it are seen; the rest is covered.
// Two ways to play: answer the question about a place, or walk the patch to another place.
// State (n patches, numbered in the order of the scan):
//   layers: pictures of the slices that hold patches; plane: of a volume, else null
//   faces: all n patches as the network gets them, one below the other in one picture
//   patch, step: [width, height] of a patch, and from one to the next, in pixels of a slice
//   patches: [{layer, left, top}]: where each patch lies
//   places: [{own, context, targets, target, candidates, right, chances}]: every patch that has a target, the patches
//     that the network reads with it, its targets, and one question: candidates[right] is `target`, and `chances` are
//     those that the network gives to the candidates
//   asked: numbers of places, the first one first; colours: {own, context, target}; text

import { bars, button, choice, directions, frame, make, paint, slice, slider, tell, unpack, write } from "./slices.js";

export const LETTERS = "ABCDEFGHIJ";
const COVER = "#6b6b6b", STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** A part of a picture {width, height, colours, values}. */
export function crop(picture, left, top, width, height) {
  const n = picture.colours, values = new Uint8Array(width * height * n);
  for (let row = 0; row < height; row++) {
    const begin = ((top + row) * picture.width + left) * n;
    values.set(picture.values.subarray(begin, begin + width * n), row * width * n);
  }
  return { width, height, colours: n, values };
}

/** The patches of a place that lie in its own slice: {context: [...], own: [...], target: [...]}. */
export function roles(state, place, targets) {
  const { own, context } = state.places[place];
  const here = (k) => state.patches[k].layer === state.patches[own].layer;
  return { context: context.filter((k) => k !== own && here(k)), own: [own], target: targets.filter(here) };
}

/** The place in a slice whose patch has its middle nearest to a pixel: only patches with a target are places. */
export function nearest(state, layer, x, y) {
  let best = null, least = Infinity;
  state.places.forEach(({ own }, place) => {
    const { layer: mine, left, top } = state.patches[own];
    const apart = Math.hypot(left + state.patch[0] / 2 - x, top + state.patch[1] / 2 - y);
    if (mine === layer && apart < least) [best, least] = [place, apart];
  });
  return best;
}

/** The place beside a place, where there is one; else the place itself. */
export function moved(state, place, key) {
  const [across, down] = STEPS[key], { layer, left, top } = state.patches[state.places[place].own];
  const there = state.places.findIndex(({ own }) => {
    const patch = state.patches[own];
    return patch.layer === layer && patch.left === left + across * state.step[0]
      && patch.top === top + down * state.step[1];
  });
  return there < 0 ? place : there;
}

/** The candidate that the network takes for the likeliest. */
export function likeliest(chances) {
  return chances.indexOf(Math.max(...chances));
}

/** How many of the questions that were answered ({place: candidate}) the player got right, and how many the network. */
export function tally(places, answered) {
  const asked = [...answered.keys()];
  return { asked: asked.length, you: asked.filter((k) => answered.get(k) === places[k].right).length,
    network: asked.filter((k) => likeliest(places[k].chances) === places[k].right).length };
}

/** The next place that is asked about, or null after the last one. */
export function next(asked, answered, total) {
  if (answered.size >= total) return null;
  return asked.find((place) => !answered.has(place));
}

/** The score in words, after the last question with what a guess would get. */
export function score({ asked, you, network }, total, candidates) {
  if (asked < total) return `${asked} of ${total} questions: you have ${you} right, the network ${network}.`;
  const guess = (asked / candidates).toFixed(1);
  return `All ${asked} questions: you have ${you} right, the network ${network}; guessing gives ${guess} on average.`;
}

/** Cover all of a slice but some patches. */
function cover(canvas, width, state, seen, opacity) {
  const sheet = Object.assign(document.createElement("canvas"), { width: canvas.width, height: canvas.height });
  const scissors = sheet.getContext("2d"), pen = canvas.getContext("2d"), scale = canvas.width / width;
  scissors.fillStyle = COVER;
  scissors.fillRect(0, 0, sheet.width, sheet.height);
  scissors.scale(scale, scale);
  for (const k of seen) scissors.clearRect(state.patches[k].left, state.patches[k].top, ...state.patch);
  pen.globalAlpha = opacity;
  pen.drawImage(sheet, 0, 0);
  pen.globalAlpha = 1;
}

/** Mark the patch (a dot), its context, and its targets (a question mark while the question is open) in colours. */
function mark(canvas, width, state, marked, asking) {
  const pen = canvas.getContext("2d"), scale = canvas.width / width;
  const line = 2.5 * width / parseFloat(canvas.style.width);  // screen pixels, in pixels of the slice
  const [w, h] = state.patch, [dx, dy] = state.step;
  pen.save();
  pen.scale(scale, scale);
  for (const [role, numbers] of Object.entries(marked)) {
    Object.assign(pen, { strokeStyle: state.colours[role], fillStyle: state.colours[role], lineWidth: line });
    for (const { left, top } of numbers.map((k) => state.patches[k])) {
      const x = left + w / 2, y = top + h / 2;
      if (role === "context") pen.strokeRect(x - 0.45 * dx, y - 0.45 * dy, 0.9 * dx, 0.9 * dy);
      else pen.strokeRect(left, top, w, h);
      if (role === "own") dot(pen, x, y, 2 * line);
      if (role === "target" && asking) letter(pen, "?", x, y, 0.6 * Math.min(w, h));
    }
  }
  pen.restore();
}

function dot(pen, x, y, radius) {
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  pen.fill();
}

function letter(pen, text, x, y, size) {
  Object.assign(pen, { font: `bold ${size}px sans-serif`, textAlign: "center", textBaseline: "middle" });
  pen.fillText(text, x, y);
}

function render({ model, el }) {
  const state = model.get("state"), { places, patches, asked, patch } = state;
  const layers = state.layers.map((layer) => slice(unpack(layer))), faces = slice(unpack(state.faces));
  const total = Math.min(10, asked.length), answered = new Map();
  const { board, controls, more, say } = frame(el, state.text);
  let mode = "question", now = asked[0];

  const canvas = make("canvas", { role: "img", tabindex: 0 });
  const named = Object.entries({ own: "the patch •", context: "its context", target: "its target" });
  const legend = named.map(([role, name]) => make("span", { class: "key" },
    make("i", { style: `background: ${state.colours[role]}` }), name));
  board.append(make("figure", {}, canvas, make("figcaption", {}, ...legend)));
  const captions = [], tiles = make("div", { class: "candidates", role: "group", "aria-label": "candidates" });
  const buttons = places[now].candidates.map((_, k) => {
    const tile = button("", () => answer(k), { "data-candidate": k });
    tile.append(make("canvas"));
    captions[k] = make("figcaption");
    tiles.append(make("figure", {}, tile, captions[k]));
    return tile;
  });
  board.append(tiles);

  function drawSlice() {
    const place = places[now], walking = mode === "walk", asking = !walking && !answered.has(now);
    const shown = layers[patches[place.own].layer];
    const marked = roles(state, now, walking ? place.targets : [place.target]);
    const seen = [...marked.own, ...marked.context, ...(walking ? marked.target : [])];
    paint(canvas, shown, { side: 340 });
    if (walking || asking) cover(canvas, shown.width, state, seen, walking ? 0.5 : 1);
    if (state.plane) write(canvas.getContext("2d"), directions(state.plane), window.devicePixelRatio || 1);
    mark(canvas, shown.width, state, marked, asking);
    canvas.setAttribute("aria-label", `${where()}: ${marked.context.length} more patches of its context are seen`);
  }

  function drawCandidates() {
    const { candidates, right, chances } = places[now], mine = answered.get(now), done = mine !== undefined;
    tiles.hidden = mode === "walk";
    candidates.forEach((k, i) => {
      paint(buttons[i].firstChild, crop(faces, 0, k * patch[1], ...patch), { side: 104 });
      const ends = [done && i === right ? " ✓" : "", i === mine ? " (yours)" : ""];
      captions[i].textContent = LETTERS[i] + ends.join("");
      buttons[i].setAttribute("aria-label", `candidate ${LETTERS[i]}`);
      buttons[i].setAttribute("aria-pressed", String(i === mine));
      buttons[i].classList.toggle("answer", done && i === right);
    });
    const rows = candidates.map((_, i) => ({ name: LETTERS[i], chance: chances[i], right: i === right }));
    more.replaceChildren(...(done && mode === "question"
      ? [make("p", {}, "The network's chances: how likely it takes each patch to be the one"), bars(rows)] : []));
  }

  function where() {
    const place = `Place ${now + 1} of ${places.length}`;
    return layers.length === 1 ? place : `${place}, slice ${patches[places[now].own].layer + 1} of ${layers.length}`;
  }

  function words() {
    const { context, targets, right } = places[now], mine = answered.get(now);
    const read = context.length === 1 ? "this patch alone" : `this patch and ${context.length - 1} more`;
    const framed = targets.length === 1 ? "the framed patch" : `${targets.length} framed patches`;
    if (mode === "walk") return `${where()}. The network reads ${read}, and predicts ${framed}.`;
    const ask = `Which patch, A to ${LETTERS[buttons.length - 1]}, belongs into the yellow frame?`;
    if (mine === undefined) return `Question ${Math.min(answered.size + 1, total)} of ${total}. ${ask}`;
    const end = mine === right ? "Right!" : `It is ${LETTERS[right]}.`;
    return `${end} ${score(tally(places, answered), total, buttons.length)}`;
  }

  function draw() {
    drawSlice();
    drawCandidates();
    say(words());
    walkBy.element.hidden = mode !== "walk" || layers.length === 1;
    walkBy.set(patches[places[now].own].layer + 1);
    onward.hidden = mode !== "question" || !answered.has(now) || next(asked, answered, total) === null;
  }

  function go(place) {
    now = place;
    draw();
  }

  function answer(k) {
    if (answered.has(now)) return;
    answered.set(now, k);
    tell(model, now, k, k === places[now].right);
    draw();
  }

  const modes = choice("way to play", ["question", "walk"], mode, (chosen) => { mode = chosen; draw(); });
  const walkBy = slider("slice", { min: 1, max: layers.length, value: 1 }, (layer) => {
    const { left, top } = patches[places[now].own];
    go(nearest(state, layer - 1, left + patch[0] / 2, top + patch[1] / 2));
  });
  const onward = button("next question", () => go(next(asked, answered, total)));
  const again = button("start again", () => { answered.clear(); modes.press(mode = "question"); go(asked[0]); });
  controls.append(modes.element, walkBy.element, onward, again);
  canvas.addEventListener("click", (event) => {
    if (mode !== "walk") return;
    const box = canvas.getBoundingClientRect(), { layer } = patches[places[now].own];
    const scale = layers[layer].width / box.width;
    go(nearest(state, layer, (event.clientX - box.left) * scale, (event.clientY - box.top) * scale));
  });
  canvas.addEventListener("keydown", (event) => {
    if (mode !== "walk" || !STEPS[event.key]) return;
    event.preventDefault();
    go(moved(state, now, event.key));
  });
  draw();
}

export default { render };
