// A jigsaw of 4 or 9 tiles of a picture, or 8 or 27 of a volume: click two tiles, and they change places.
// State: grid, dims, text, puzzles: [{tiles, dealt, looks, network}]. Tile i belongs into place i; `dealt[place]` is the
// tile that lies there; tiles with the same number in `looks` cannot be told apart (air). `network` is null or
// {order, chances: [{name, chance, right}]}: the order that it makes of the puzzle, and its first answers.

import { bars, button, choice, frame, layout, make, paint, slice, tell, unpack } from "./slices.js";

/** The order after two places changed their tiles. */
export function swapped(order, a, b) {
  const next = [...order];
  [next[a], next[b]] = [next[b], next[a]];
  return next;
}

/** How many places hold their tile, or one that looks the same. */
export function inPlace(order, looks) {
  return order.filter((tile, place) => looks[tile] === looks[place]).length;
}

/** Two places whose exchange brings one more tile home, or null where all are. */
export function hint(order, looks) {
  const place = order.findIndex((tile, p) => looks[tile] !== looks[p]);
  if (place < 0) return null;
  return [place, order.findIndex((tile, p) => looks[tile] === looks[place] && looks[tile] !== looks[p])];
}

/** What the layers of a volume are called. */
export function layerNames(grid, dims) {
  if (dims === 2) return [""];
  const between = grid === 3 ? ["middle"] : [...Array(grid - 2).keys()].map((k) => `layer ${k + 2}`);
  return ["feet end", ...between, "head end"];
}

function render({ model, el }) {
  const { grid, dims, puzzles, text } = model.get("state");
  const { board, controls, more, say } = frame(el, text);
  const buttons = [], side = dims === 2 ? Math.floor(330 / grid) : Math.floor(220 / grid);
  let now, order, moves, picked, shown;

  for (const [k, layer] of layout(grid, dims).entries()) {
    const tiles = make("div", { class: "tiles", style: `grid-template-columns: repeat(${grid}, auto)` });
    for (const place of layer.flat()) {
      buttons[place] = button("", () => pick(place), { "data-place": place });
      buttons[place].append(make("canvas"));
      tiles.append(buttons[place]);
    }
    board.append(make("figure", {}, tiles, make("figcaption", {}, layerNames(grid, dims)[k])));
  }

  function draw() {
    const tiles = puzzles[now].unpacked;
    for (const [place, tile] of shown.entries()) {
      paint(buttons[place].firstChild, slice(tiles[tile]), { side });
      buttons[place].setAttribute("aria-label", `place ${place + 1}`);
      buttons[place].setAttribute("aria-pressed", String(place === picked));
      buttons[place].classList.remove("hint");
    }
  }

  function report(who) {
    const home = inPlace(shown, puzzles[now].looks), all = shown.length;
    const end = home === all ? " Solved!" : "";
    say(`${home} of ${all} tiles in place ${who}.${end}`);
    return home === all;
  }

  function pick(place) {
    if (shown !== order) return showMine();
    if (picked === null) picked = place;
    else if (picked === place) picked = null;
    else {
      const move = [picked, place];
      order = shown = swapped(order, ...move);
      picked = null;
      moves += 1;
      tell(model, now, move, report(`after ${moves} ${moves === 1 ? "move" : "moves"}`));
    }
    draw();
  }

  function showMine() {
    shown = order;
    network.setAttribute("aria-pressed", "false");
    more.replaceChildren();
    report(`after ${moves} moves`);
    draw();
  }

  function showNetwork() {
    if (shown !== order) return showMine();
    const answer = puzzles[now].network;
    [shown, picked] = [answer.order, null];
    network.setAttribute("aria-pressed", "true");
    report("by the network's answer");
    more.replaceChildren(make("p", {}, "How sure the network is: its five likeliest shuffles"), bars(answer.chances));
    draw();
  }

  function showHint() {
    if (shown !== order) showMine();
    const two = hint(order, puzzles[now].looks);
    if (two) two.forEach((place) => buttons[place].classList.add("hint"));
  }

  function deal(k) {
    now = k;
    puzzles[now].unpacked ??= puzzles[now].tiles.map(unpack);
    [order, moves, picked] = [puzzles[now].dealt, 0, null];
    shown = order;
    showMine();
    say("Click one tile, then another: they change places.");
  }

  const network = button("the network's answer", showNetwork, { "aria-pressed": "false" });
  const numbers = puzzles.map((_, k) => String(k + 1));
  if (puzzles.length > 1) controls.append("puzzle", choice("puzzle", numbers, "1", (k) => deal(Number(k) - 1)).element);
  controls.append(button("hint", showHint), button("start again", () => deal(now)));
  if (puzzles[0].network) controls.append(network);
  deal(0);
}

export default { render };
