// Ten pairs of views, side by side: do both show the same person?
// State: text, pairs: [{first, second, same, done, distance}], limit. `first` and `second` are lists of pictures: three
// slices through the middle of a volume, or the picture itself. `done` tells in words what was done to the second view.
// `distance` is the network's, between the codes of the two views; below `limit` it answers that both show the same
// person. Without a network, every distance and the limit are null.

import { button, frame, make, paint, slice, tell, unpack } from "./slices.js";

/** Whether the network takes the two views of a pair for the same person; null where there is no network. */
export function networkAnswer(pair, limit) {
  return limit === null ? null : pair.distance < limit;
}

/** How many pairs were answered, and how many of those rightly: by the player, and by the network. */
export function tally(pairs, limit, given) {
  const asked = pairs.map((pair, k) => ({ pair, answer: given[k] })).filter(({ answer }) => answer !== undefined);
  const right = (answers) => answers.filter((answer, k) => answer === asked[k].pair.same).length;
  const network = limit === null ? null : right(asked.map(({ pair }) => networkAnswer(pair, limit)));
  return { asked: asked.length, mine: right(asked.map(({ answer }) => answer)), network };
}

/** The distances of all pairs on an axis: place in percent, and "same", "other", or "open" before the answer. */
export function dots(pairs, given, now) {
  const far = Math.max(...pairs.map((pair) => pair.distance)) || 1;
  return pairs.map((pair, k) => ({
    at: (100 * pair.distance) / far,
    kind: given[k] === undefined ? "open" : pair.same ? "same" : "other",
    now: k === now,
  }));
}

const who = (same) => (same ? "the same person" : "another person");

/** Whether an answer is right, and what was done to the second view. */
export function answerWords(pair, answer) {
  const judged = answer === pair.same ? "Right" : "Wrong";
  const whose = pair.same ? "The second view shows the same person" : "The second view shows another person";
  return `${judged}. ${whose}. What was done to the second view: ${pair.done.join("; ") || "nothing"}.`;
}

/** What the network answers, and from which distance. */
export function networkWords(pair, limit) {
  const answer = networkAnswer(pair, limit);
  const digits = Math.abs(pair.distance - limit) < 0.01 ? 3 : 2;
  return `The network's distance between the two views is ${pair.distance.toFixed(digits)}, and its limit is ` +
    `${limit.toFixed(digits)}. So it answers: ${who(answer)}. That is ${answer === pair.same ? "right" : "wrong"}.`;
}

/** Both scores so far, or at the end. */
export function scoreWords({ asked, mine, network }, total) {
  const both = `You: ${mine} of ${asked}.` + (network === null ? "" : ` Network: ${network} of ${asked}.`);
  return asked === total ? `The end. ${both} A guess: ${total / 2} of ${total}.` : both;
}

const KEYS = { same: "same person", other: "another person", open: "not answered yet" };

/** The axis of distances: a dot for each pair, this pair's with a ring, and the network's limit. */
function axis(pairs, limit, given, now) {
  const shown = dots(pairs, given, now), far = Math.max(...pairs.map((pair) => pair.distance)) || 1;
  const line = make("div", { class: "axis", role: "img", "aria-label": networkWords(pairs[now], limit) });
  line.append(make("span", { class: "limit", style: `left: ${(100 * limit) / far}%` }, `limit ${limit.toFixed(2)}`));
  for (const { at, kind, now: ringed } of shown)
    line.append(make("i", { class: `dot ${kind}${ringed ? " now" : ""}`, style: `left: ${at}%` }));
  const ends = make("div", { class: "ends" }, make("span", {}, "0"), make("span", {}, "distance between the codes"),
    make("span", {}, far.toFixed(2)));
  const keys = Object.entries(KEYS).map(([kind, word]) => make("span", { class: "key" },
    make("i", { class: `dot ${kind}` }), word));
  const ring = make("span", { class: "key" }, make("i", { class: "dot open now" }), "this pair");
  return [line, ends, make("div", { class: "keys" }, ...keys, ring)];
}

/** A place for one view: three slices, of which one is large, or one picture. Gives its element and how to fill it. */
function viewer(name) {
  const slices = make("div", { class: "slices" });
  let pictures = [], large = 0;
  const draw = () => [...slices.children].forEach((shown, k) => {
    const enlarged = pictures.length === 1 || k === large;
    shown.classList.toggle("large", enlarged);
    shown.setAttribute("aria-pressed", String(enlarged));
    shown.disabled = enlarged; // it is large already
    paint(shown.firstChild, slice(pictures[k]), { side: enlarged ? 300 : 148 });
  });
  const fill = (images) => {
    [pictures, large] = [images.map(unpack), 0];
    slices.replaceChildren(...pictures.map((_, k) => {
      const words = pictures.length === 1 ? name : `${name}, slice ${k + 1} of ${pictures.length}: make it large`;
      const shown = button("", () => { large = k; draw(); }, { "aria-label": words });
      shown.append(make("canvas"));
      return shown;
    }));
    draw();
  };
  return { element: make("figure", { class: "view" }, slices, make("figcaption", {}, name)), fill };
}

function render({ model, el }) {
  const { pairs, limit, text } = model.get("state");
  const { board, controls, more, say } = frame(el, text);
  el.classList.add("exemplar");
  const views = [viewer("first view"), viewer("second view")];
  const question = make("strong", {}), network = make("p", {});
  let now, given;

  function deal(k) {
    now = k;
    question.textContent = `Pair ${now + 1} of ${pairs.length}. Same person?`;
    views[0].fill(pairs[now].first);
    views[1].fill(pairs[now].second);
    more.replaceChildren();
    for (const one of [yes, no]) { one.disabled = false; one.setAttribute("aria-pressed", "false"); }
    next.disabled = true;
    next.textContent = now + 1 < pairs.length ? "next pair" : "play again";
    say(now ? scoreWords(tally(pairs, limit, given), Infinity) : "Five of the ten pairs show the same person.");
  }

  function start() {
    given = [];
    deal(0);
  }

  function answer(same) {
    const pair = pairs[now];
    given[now] = same;
    tell(model, now, same, same === pair.same);
    (same ? yes : no).setAttribute("aria-pressed", "true");
    [yes.disabled, no.disabled, next.disabled] = [true, true, false];
    say(answerWords(pair, same));
    if (limit !== null) {
      network.textContent = networkWords(pair, limit);
      more.append(network, ...axis(pairs, limit, given, now));
    }
    more.append(make("p", { class: "score" }, scoreWords(tally(pairs, limit, given), pairs.length)));
    next.focus({ preventScroll: true });
  }

  function goOn() {
    if (now + 1 < pairs.length) deal(now + 1);
    else start();
    yes.focus({ preventScroll: true });
  }

  const yes = button("yes", () => answer(true)), no = button("no", () => answer(false));
  const next = button("next pair", goOn);
  board.append(...views.map((view) => view.element));
  controls.append(question, yes, no, next);
  start();
}

export default { render };
