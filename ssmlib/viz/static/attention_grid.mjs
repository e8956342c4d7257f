import { bytes, h, publish, readout, slider, stage, svg, toggle, whole } from "./common.mjs";

const SIDE = 100; // the picture's height; cells stay the same size until the grid needs more room

// Every length up to 64, then four to the octave.
function lengths(most) {
  const all = Array.from({ length: Math.min(64, most) }, (_, i) => i + 1);
  for (let n = 64; n < most; n *= 2) all.push(...[1.25, 1.5, 1.75, 2].map((f) => n * f));
  return [...all.filter((n) => n < most), most];
}

// The lower triangle, diagonal included: a staircase while steps can be seen, then a straight edge.
function triangle(n, unit) {
  if (n > 128) return `M0 0 L${n * unit} ${n * unit} H0 Z`;
  let path = "M0 0";
  for (let i = 1; i <= n; i += 1) path += ` H${i * unit} V${i * unit}`;
  return `${path} H0 Z`;
}

function render({ model, el }) {
  const { max_length, length, d_state, d } = model.get("data");
  const { body, say, stop } = stage(model, el, "Attention grid beside a state");
  const most = Math.max(64, d, d_state);
  const width = SIDE + 8 + (SIDE * d_state) / most;
  const picture = svg(width, SIDE, `
    <defs>${["score", "masked", "state"].map((name, i) => `
      <pattern id="${name}" patternUnits="userSpaceOnUse"><rect rx="0.2"
        fill="var(--${["attention", "line", "state"][i]})"/></pattern>`).join("")}
    </defs>
    <rect data-part="all"/><path data-part="kept" fill="url(#score)"/>
    <rect data-part="memory" x="${SIDE + 8}" fill="url(#state)"/>
    <rect data-part="equal" fill="none" stroke="var(--ink)" stroke-width="0.5" stroke-dasharray="1.6 1.2"/>
    <circle data-part="ring" cx="${SIDE + 8}" cy="0" r="3" fill="none" stroke="var(--state)"
      stroke-width="0.5"/>`);
  const equal = Math.sqrt(d_state * d);
  const numbers = readout([
    ["scores", "scores, n²", "attention"], ["causal", "causal ones, n(n + 1)/2"],
    ["bytes", "grid in fp16"], ["state", `state, ${d_state} × ${d}, at any n`, "state"],
    ["kept", "state in fp16"], ["ratio", "grid ÷ state"],
  ]);

  const draw = () => {
    const n = size.value;
    const unit = SIDE / Math.max(n, most);
    const gap = unit > 0.5 ? 0.14 * unit : 0;
    for (const pattern of picture.node.querySelectorAll("pattern")) {
      pattern.setAttribute("width", unit);
      pattern.setAttribute("height", unit);
      pattern.firstElementChild.setAttribute("width", unit - gap);
      pattern.firstElementChild.setAttribute("height", unit - gap);
    }
    const set = (name, values) => Object.entries(values).forEach(([key, value]) =>
      picture.part(name).setAttribute(key, value));
    const plain = unit < 0.2; // no cell can be seen: fill evenly
    const fill = (name, colour) => (plain ? `var(--${colour})` : `url(#${name})`);
    set("all", { width: n * unit, height: n * unit,
      fill: causal.value ? fill("masked", "line") : fill("score", "attention") });
    set("kept", { d: causal.value ? triangle(n, unit) : "", fill: fill("score", "attention") });
    set("memory", { width: d_state * unit, height: d * unit, fill: fill("state", "state") });
    const dashed = equal * unit > 3 ? equal * unit : 0;
    set("equal", { width: dashed, height: dashed });
    picture.part("ring").style.display = d * unit < 3 ? "" : "none";

    const scores = n * n;
    const kept = causal.value ? (n * (n + 1)) / 2 : scores;
    const ratio = scores / (d_state * d);
    numbers.set({ scores: whole(scores), causal: whole((n * (n + 1)) / 2), bytes: bytes(2 * scores),
      state: whole(d_state * d), kept: bytes(2 * d_state * d),
      ratio: ratio < 10 ? ratio.toPrecision(2) : whole(ratio) });
    picture.label(`A square of ${whole(n)} by ${whole(n)} scores, ${causal.value
      ? "its lower triangle filled" : "all of it filled"}; beside it, to the same scale, a state of ${
      d_state} by ${d}.`);
    say(`${whole(n)} tokens: ${whole(scores)} scores, ${whole(kept)} used, ${bytes(2 * scores)}. `
      + `The state stays at ${whole(d_state * d)} numbers.`);
    publish(model, { length: n, causal: causal.value, scores });
  };

  const marks = lengths(max_length);
  const size = slider("Tokens n", marks, length, whole, () => draw());
  const causal = toggle("causal: no token sees a later one", true, () => draw());
  const jumps = [8, 64, 1024, 131072].filter((n) => marks.includes(n)).map((n) =>
    h("button", { type: "button", "aria-label": `${whole(n)} tokens`,
      onclick: () => { size.value = n; draw(); } }, whole(n)));
  const legend = h("p", { class: "legend" }, ...[["attention", "score"], ["line", "masked"],
    ["state", "state, to the same scale"]].map(([colour, text]) =>
    h("span", {}, h("i", { style: `background: var(--${colour})` }), text)),
  h("span", {}, h("i", { class: "dashed" }), "as many cells as the state"));
  body.classList.add("two");
  body.append(h("div", {}, picture.box, legend),
    h("div", { class: "stack" }, size.node, h("div", { class: "row-of", role: "group", "aria-label": "Jump to" }, ...jumps), causal.node,
      numbers.node));
  draw();
  return stop;
}

export default { render };
