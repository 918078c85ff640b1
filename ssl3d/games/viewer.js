// A volume, slice by slice: choose a plane, move the slider (or the wheel, or the arrow keys).
// State: image {shape, bytes}, classes (the same shape) or null, colours and names of the classes, text.

import { PLANES, choice, directions, frame, make, paint, rgb, slice, slider, unpack } from "./slices.js";

/** The slice that shows most of the classes, or the middle one. */
export function bestSlice(volume, classes, plane) {
  const n = volume.shape[PLANES[plane]];
  if (!classes) return Math.floor(n / 2);
  const counts = Array.from({ length: n }, (_, at) => slice(classes, plane, at).values.filter(Boolean).length);
  return counts.every((count) => count === 0) ? Math.floor(n / 2) : counts.indexOf(Math.max(...counts));
}

function render({ model, el }) {
  const state = model.get("state");
  const volume = unpack(state.image), classes = state.classes ? unpack(state.classes) : null;
  const colours = state.colours.map(rgb);
  const { board, controls, more, say } = frame(el, state.text);
  const canvas = make("canvas", { role: "img", tabindex: 0 });
  board.append(canvas);
  let plane = "axial", at = bestSlice(volume, classes, plane);

  const draw = () => {
    paint(canvas, slice(volume, plane, at), { side: 320, letters: state.directions ? directions(plane) : null,
      classes: classes && slice(classes, plane, at), colours });
    say(`${plane}, slice ${at + 1} of ${volume.shape[PLANES[plane]]}`);
    canvas.setAttribute("aria-label", `${state.text}: ${plane} slice ${at + 1}`);
  };
  const go = (to) => {
    at = Math.min(Math.max(to, 0), volume.shape[PLANES[plane]] - 1);
    place.set(at + 1);
    draw();
  };
  const place = slider("slice", { min: 1, max: volume.shape[2], value: at + 1 }, (to) => go(to - 1));
  const planes = choice("plane", Object.keys(PLANES), plane, (chosen) => {
    plane = chosen;
    place.input.max = volume.shape[PLANES[plane]];
    go(bestSlice(volume, classes, plane));
  });
  canvas.addEventListener("wheel", (event) => { event.preventDefault(); go(at + Math.sign(event.deltaY)); });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1 }[event.key];
    if (step) { event.preventDefault(); go(at + step); }
  });
  controls.append(planes.element, place.element);
  if (classes) more.append(...state.names.map(({ code, name }) => make("span", { class: "key" },
    make("i", { style: `background: ${state.colours[(code - 1) % state.colours.length]}` }), name)));
  draw();
}

export default { render };
