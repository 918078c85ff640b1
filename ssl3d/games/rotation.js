// By which rotation was a scan turned? A quiz of some questions, and a mode in which the player turns the scan.
// State: text, images: [{shape, bytes}], turns: [{name, angle, axis, matrix, ends}], questions: [{image, turn}], and
// chances[image][turn], null or the chance of each turn by a network. `matrix` says of each new axis which old axis it
// is (the place that is not 0), and whether it runs backwards (-1); `ends` are the letters at both ends of each new
// axis, null for a picture. The image is turned here: its voxels change places, and none of them changes.

import { PLANES, bars, button, choice, frame, make, paint, slice, tell, unpack } from "./slices.js";

/** A volume, or a picture, turned by a matrix. */
export function turned(volume, matrix) {
  const full = matrix.length === 3 ? matrix : [[...matrix[0], 0], [...matrix[1], 0], [0, 0, 1]]; // colours stay
  const old = [...volume.shape, 1].slice(0, 3), step = [old[1] * old[2], old[2], 1];
  const from = full.map((line) => line.findIndex((entry) => entry !== 0));
  const backwards = from.map((axis, now) => full[now][axis] < 0);
  const shape = from.map((axis) => old[axis]);
  const stride = from.map((axis, now) => (backwards[now] ? -step[axis] : step[axis]));
  const start = from.reduce((sum, axis, now) => sum + (backwards[now] ? (old[axis] - 1) * step[axis] : 0), 0);
  const data = new Uint8Array(volume.data.length);
  let to = 0;
  for (let i = 0; i < shape[0]; i++)
    for (let j = 0; j < shape[1]; j++)
      for (let k = 0; k < shape[2]; k++)
        data[to++] = volume.data[start + i * stride[0] + j * stride[1] + k * stride[2]];
  return { ...volume, shape: shape.slice(0, volume.shape.length), data };
}

/** The letters at the left, right, lower and upper edge of a slice of a turned volume. */
export function edges(ends, plane) {
  const [across, up] = [0, 1, 2].filter((axis) => axis !== PLANES[plane]).map((axis) => ends[axis]);
  return { left: across[0], right: across[1], below: up[0], above: up[1] };
}

/** The turn that a network finds likeliest. */
export function likeliest(chances) {
  return chances.indexOf(Math.max(...chances));
}

/** Bars for at most so many turns: the likeliest ones and the true one, in the order of the list. */
export function shownBars(turns, chances, right, most = 10) {
  const order = [...chances.keys()].sort((a, b) => chances[b] - chances[a] || a - b);
  const kept = new Set(order.slice(0, most));
  if (!kept.has(right)) kept.delete(order[most - 1]);
  kept.add(right);
  return turns.map((turn, k) => ({ name: turn.name, chance: chances[k], right: k === right }))
    .filter((_, k) => kept.has(k));
}

/** How many questions the player and the network (null where there is none) got right; answers are turns or null. */
export function score(questions, answers, chances) {
  const asked = [...questions.keys()].filter((k) => answers[k] !== null);
  const network = (k) => likeliest(chances[questions[k].image][questions[k].turn]);
  return {
    asked: asked.length,
    you: asked.filter((k) => answers[k] === questions[k].turn).length,
    network: chances ? asked.filter((k) => network(k) === questions[k].turn).length : null,
  };
}

/** A score in words. */
export function scoreWords({ asked, you, network }) {
  const questions = asked === 1 ? "1 question" : `${asked} questions`;
  return `Score after ${questions}: you ${you}${network === null ? "" : `, the network ${network}`}.`;
}

/** The turns in rows of buttons: one row for no turn, and one for each axis. */
export function turnRows(turns) {
  const axes = [...new Set(turns.map((turn) => turn.axis))];
  return axes.map((axis) => ({ axis, turns: [...turns.keys()].filter((k) => turns[k].axis === axis) }));
}

/** Buttons for up to ten turns, or a list of more; `choose` gets the number of a turn. */
function chooser(turns, choose) {
  if (turns.length > 10) return list(turns, choose);
  const buttons = turns.map((turn, k) => button(turn.angle, () => choose(k), { "aria-label": turn.name }));
  const rows = turnRows(turns).map((row) => make("span", { class: "row" }, row.axis ? `${row.axis}:` : "",
    ...row.turns.map((k) => buttons[k])));
  return {
    first: buttons[0],
    element: make("div", { class: "row", role: "group", "aria-label": "rotation", style: "width: 100%" }, ...rows),
    press: (chosen) => buttons.forEach((b, k) => b.setAttribute("aria-pressed", String(k === chosen))),
    allow: (yes) => buttons.forEach((b) => { b.disabled = !yes; }),
  };
}

function list(turns, choose) {
  const options = turns.map((turn, k) => make("option", { value: k }, turn.name));
  const select = make("select", { "aria-label": "rotation", style: "font: inherit; min-height: 32px" }, ...options);
  const go = button("choose", () => choose(Number(select.value)));
  return {
    first: select,
    element: make("div", { class: "row", role: "group", "aria-label": "rotation", style: "width: 100%" }, select, go),
    press: (chosen) => { if (chosen !== null) select.value = chosen; },
    allow: (yes) => { go.disabled = !yes; },
  };
}

function render({ model, el }) {
  const { images, turns, questions, chances, text } = model.get("state");
  const { board, controls, more, say } = frame(el, text);
  const volumes = images.map(unpack), flat = volumes[0].flat;
  const canvases = (flat ? ["picture"] : Object.keys(PLANES)).map((plane, k) => {
    const canvas = make("canvas", { role: "img" });
    board.append(make("figure", {}, canvas, flat ? "" : make("figcaption", {}, `cut across ${"xyz"[k]}`)));
    return { canvas, plane };
  });
  let now = 0, quiz = true, mine = 0, answers = questions.map(() => null);

  function draw(turn, lettered) {
    const shown = turned(volumes[questions[now].image], turns[turn].matrix);
    for (const { canvas, plane } of canvases) {
      const letters = lettered && !flat ? edges(turns[turn].ends, plane) : null;
      paint(canvas, slice(shown, plane), { side: flat ? 330 : 230, letters });
      const where = flat ? "the picture" : `cut across ${"xyz"[PLANES[plane]]}`;
      canvas.setAttribute("aria-label", letters
        ? `${where}: left ${letters.left}, right ${letters.right}, below ${letters.below}, above ${letters.above}` : where);
    }
  }

  function showChances(turn) {
    if (!chances) return "";
    const each = chances[questions[now].image][turn], best = likeliest(each);
    more.replaceChildren(make("p", {}, "The network's chance for each rotation (✓: the true one)"),
      bars(shownBars(turns, each, turn)));
    return ` The network: ${turns[best].name}, ${best === turn ? "right" : "wrong"}.`;
  }

  function showQuestion() {
    const { turn } = questions[now], answer = answers[now], open = answer === null;
    draw(turn, !open);
    rotations.press(answer);
    rotations.allow(open);
    next.disabled = open;
    next.textContent = now + 1 < questions.length ? "next question" : "play again";
    more.replaceChildren();
    if (open) return say(`Question ${now + 1} of ${questions.length}: by which rotation was it turned?`);
    const verdict = answer === turn ? `Right: ${turns[turn].name}.`
      : `You chose: ${turns[answer].name}. The right answer: ${turns[turn].name}.`;
    say(`${verdict}${showChances(turn)} ${scoreWords(score(questions, answers, chances))}`);
  }

  function showMine() {
    draw(mine, true);
    rotations.press(mine);
    rotations.allow(true);
    more.replaceChildren();
    say(`Now: ${turns[mine].name}.${showChances(mine)}`);
  }

  function choose(turn) {
    if (!quiz) {
      mine = turn;
      return showMine();
    }
    answers[now] = turn;
    tell(model, now, turns[turn].name, turn === questions[now].turn);
    showQuestion();
    next.focus({ preventScroll: true });
  }

  function goOn() {
    now = (now + 1) % questions.length;
    if (now === 0) answers = questions.map(() => null);
    showQuestion();
    rotations.first.focus({ preventScroll: true });
  }

  const modes = ["quiz", "turn it yourself"];
  const mode = choice("mode", modes, "quiz", (word) => {
    quiz = word === modes[0];
    next.hidden = !quiz;
    if (quiz) showQuestion(); else showMine();
  });
  const rotations = chooser(turns, choose);
  const next = button("next question", goOn);
  controls.append(rotations.element, next, mode.element);
  showQuestion();
}

export default { render };
