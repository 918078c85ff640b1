// Where does a piece of an image lie, seen from the piece in the centre? The player names the place first; then the true
// place shows, the whole image with both pieces, and the chances that a network gives to each place.
// State: dims, text, image, patch (the sides of a piece in voxels), names (of the 9 or 27 cells of the grid, the centre
// among them), questions: [{pieces: [centre, other], corners: [of the centre, of the other], cell, chances}]. `cell` is
// the true place; `chances` has a number from 0 to 1 for each cell. In a volume cells are counted towards the head
// first, then to the front, then to the right; in a picture as one reads.

import { PLANES, button, directions, frame, layout, make, paint, slice, tell, unpack } from "./slices.js";

const OUTLINES = ["#F0E442", "#56B4E9"]; // of the centre piece and of the other one

// ---- the places ---------------------------------------------------------------------------------------------------

/** The cell that an arrow key goes to, over the centre and from layer to layer; the same one at the edge. */
export function neighbour(cell, key, dims) {
  const rows = [0, 1, 2].map((row) => layout(3, dims).flatMap((layer) => layer[row]));
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[key];
  if (!step) return cell;
  let row = rows.findIndex((cells) => cells.includes(cell)), column = rows[row].indexOf(cell);
  do [row, column] = [row + step[0], column + step[1]];
  while (rows[row]?.[column] === (3 ** dims - 1) / 2);
  return rows[row]?.[column] ?? cell;
}

/** Where a patch lies on a slice as it is drawn: its left and its upper edge, and its sides, in voxels. */
export function outline(corner, patch, shape, plane) {
  if (!(plane in PLANES)) return { left: corner[1], top: corner[0], width: patch[1], height: patch[0] };
  const [a, b] = [0, 1, 2].filter((axis) => axis !== PLANES[plane]);
  return { left: corner[a], top: shape[b] - corner[b] - patch[b], width: patch[a], height: patch[b] };
}

// ---- answers ------------------------------------------------------------------------------------------------------

/** The cell with the highest chance: the network's answer. */
export function likeliest(chances) {
  return chances.indexOf(Math.max(...chances));
}

/** A chance in words. */
export function percent(chance) {
  return chance < 0.005 ? "0" : `${Math.round(100 * chance)} %`;
}

/** How many questions were answered, and how many of them rightly by the player and by the network. */
export function standing(questions, given) {
  const asked = questions.filter((_, k) => given[k] !== undefined);
  return { asked: asked.length, network: asked.filter(({ cell, chances }) => likeliest(chances) === cell).length,
    mine: questions.filter(({ cell }, k) => given[k] === cell).length };
}

/** What is told after an answer. */
export function verdict({ cell, chances }, answer, names) {
  const network = likeliest(chances), chance = percent(chances[network]);
  const mine = answer === cell ? "Right!" : `Wrong: you chose ${names[answer]}.`;
  const chosen = network === cell ? "the true place" : names[network];
  return `${mine} The true place: ${names[cell]}. The network chose ${chosen}, with a chance of ${chance}.`;
}

/** What is told of all answers until now. */
export function score(questions, given) {
  const { asked, mine, network } = standing(questions, given), all = questions.length;
  const places = questions[0].chances.length - 1;
  const end = asked === all ? ` A blind guess is right once in ${places}.` : "";
  return `You: ${mine} of ${asked} right. The network: ${network} of ${asked} right.${end}`;
}

// ---- what is seen -------------------------------------------------------------------------------------------------

/** A piece: a volume by its axial slice and, smaller, the coronal and the sagittal one. */
function pieceFigure(name, dims) {
  const planes = dims === 2 ? ["picture"] : ["axial", "coronal", "sagittal"];
  const canvases = planes.map((plane) => make("canvas", { role: "img", "aria-label": `${name}, ${plane}` }));
  const draw = (piece) => canvases.forEach((canvas, k) => paint(canvas, slice(piece, planes[k]),
    { side: k ? 107 : 220, letters: dims === 3 ? directions(planes[k]) : null }));
  return { draw, element: make("figure", {}, make("div", { class: "piece" }, ...canvases),
    make("figcaption", {}, name)) };
}

/** Buttons for all places, layer by layer, with words at their sides; `choose` gets the cell of a button. */
function placeGrid(dims, names, choose) {
  const centre = (3 ** dims - 1) / 2, buttons = [], middle = layout(3, dims)[dims === 2 ? 0 : 1];
  const [above, left, right, below] = [middle[0][1], middle[1][0], middle[1][2], middle[2][1]].map((c) => names[c]);
  const place = (cell) => {
    if (cell === centre) return make("span", { class: "centre" }, names[centre]);
    buttons[cell] = button("", () => choose(cell), { title: names[cell], "data-cell": cell });
    return buttons[cell];
  };
  const layerName = (z) => dims === 2 ? "" : [names[12], "middle", names[14]][z];
  const drawn = layout(3, dims).map((layer, z) => make("figure", {},
    make("figcaption", {}, make("b", {}, layerName(z))),
    make("div", { class: "places" }, make("span", { class: "wide" }, above),
      ...layer.flatMap((row, r) => [make("span", {}, r === 1 ? left : ""), ...row.map(place),
        make("span", {}, r === 1 ? right : "")]),
      make("span", { class: "wide" }, below))));
  const move = (event) => {
    const cell = Number(event.target.dataset.cell), next = neighbour(cell, event.key, dims);
    if (next === cell) return;
    event.preventDefault();
    buttons[next].focus();
  };
  return { buttons, element: make("div", { class: "board", role: "group", "aria-label": "places", onkeydown: move },
    ...drawn) };
}

/** The whole image in slices through the other piece, with both pieces outlined. */
function wholeFigures(whole, { corners }, patch, dims) {
  const planes = dims === 2 ? ["picture"] : ["axial", "coronal"];
  return planes.map((plane) => {
    const canvas = make("canvas", { role: "img", "aria-label": `the whole image, ${plane}, with both pieces outlined` });
    const axis = PLANES[plane] ?? 0, shown = slice(whole, plane, corners[1][axis] + Math.floor(patch[axis] / 2));
    paint(canvas, shown, { side: 260, letters: dims === 3 ? directions(plane) : null });
    const pen = canvas.getContext("2d"), scale = canvas.width / shown.width;
    corners.forEach((corner, k) => {
      const { left, top, width, height } = outline(corner, patch, whole.shape, plane);
      Object.assign(pen, { strokeStyle: OUTLINES[k], lineWidth: canvas.width / 90 });
      pen.setLineDash(k ? [] : [canvas.width / 40, canvas.width / 60]);
      pen.strokeRect(left * scale, top * scale, width * scale, height * scale);
    });
    return make("figure", {}, canvas, make("figcaption", {}, dims === 2 ? "the whole picture" : `the whole, ${plane}`));
  });
}

function legend() {
  const keys = { "border: 3px solid #E69F00": "true place", "border: 3px dashed currentColor": "your answer",
    "background: #56B4E9": "the network's chances", "border: 3px dashed #C9B800": "centre piece",
    "border: 3px solid #56B4E9": "other piece" };
  return make("p", {}, ...Object.entries(keys).map(([style, name]) => make("span", { class: "key" },
    make("i", { style: `${style}; box-sizing: border-box` }), name)));
}

// ---- the game -----------------------------------------------------------------------------------------------------

function render({ model, el }) {
  const { dims, image, names, patch, questions, text } = model.get("state");
  const { board, controls, more, say } = frame(el, text);
  const figures = ["the centre piece", "the other piece (the query)"].map((name) => pieceFigure(name, dims));
  const places = placeGrid(dims, names, answer);
  const next = button("next question", goOn), told = make("span", { role: "status" });
  let now, given;

  function mark(cell, question) {
    const one = places.buttons[cell], chance = question?.chances[cell] ?? 0;
    const [right, mine] = [question?.cell === cell, question && given[now] === cell];
    const words = [names[cell], question && percent(chance), right && "the true place", mine && "your answer"];
    one.textContent = question ? `${percent(chance)}${right ? " ✓" : ""}` : "";
    one.setAttribute("aria-label", words.filter(Boolean).join(", "));
    one.setAttribute("aria-disabled", String(Boolean(question)));
    one.style.background = question ? `rgba(86, 180, 233, ${chance})` : "";
    one.style.color = chance > 0.5 ? "black" : "";
    one.classList.toggle("right", right);
    one.classList.toggle("mine", Boolean(mine));
  }

  function answer(cell) {
    if (given[now] !== undefined) return;
    const question = questions[now];
    given[now] = cell;
    tell(model, now, cell, cell === question.cell);
    places.buttons.forEach((_, one) => mark(one, question));
    more.replaceChildren(legend(), make("div", { class: "board" }, ...wholeFigures(unpack(image), question, patch, dims)));
    say(verdict(question, cell, names));
    told.textContent = score(questions, given);
    next.textContent = now + 1 === questions.length ? "play again" : "next question";
    next.disabled = false;
    next.focus({ preventScroll: true });
  }

  function ask(k) {
    now = k % questions.length;
    if (now === 0) given = [];
    figures.forEach((figure, i) => figure.draw(unpack(questions[now].pieces[i])));
    places.buttons.forEach((_, cell) => mark(cell));
    more.replaceChildren();
    say(`Question ${now + 1} of ${questions.length}: where does the other piece lie, seen from the centre piece?`);
    if (!given.length) told.textContent = "";
    next.disabled = true;
  }

  function goOn() {
    ask(now + 1);
    places.buttons.find(Boolean).focus({ preventScroll: true });
  }

  board.append(...figures.map((figure) => figure.element));
  board.after(el.querySelector(".told"), places.element);
  controls.append(next, told);
  ask(0);
}

export default { render };
