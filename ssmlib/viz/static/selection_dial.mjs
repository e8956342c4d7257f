import { choice, h, publish, readout, slider, stage, svg } from "./common.mjs";

const COLUMN = 40; // pixels a token
const BARS = 13; // their width
const LOW = -3; // log10 of the smallest and the largest step
const HIGH = 1;
const TALL = 56; // the largest step's bar
const FLOOR = 144; // where its row ends
const HALF = 36; // pixels above and below the line of the state, and of its weights

// For h' = a h + x: [A_bar, B_bar]. A real a is all that a gate needs.
const RULES = {
  zoh: (a, dt) => [Math.exp(a * dt), a ? Math.expm1(a * dt) / a : dt],
  exponential_euler: (a, dt) => [Math.exp(a * dt), dt],
  bilinear: (a, dt) => [(1 + (a * dt) / 2) / (1 - (a * dt) / 2), dt / (1 - (a * dt) / 2)],
};

const short = (x) => {
  const plain = x === 0 || (Math.abs(x) >= 1e-3 && Math.abs(x) < 1e4);
  return (plain ? String(Number(x.toPrecision(3))) : x.toExponential(1).replace("+", "")).replaceAll("-", "−");
};
const percent = (x) => `${(100 * x).toFixed(1)} %`;

// The state after each token, and the weight that each token has in the last one.
function read(x, steps, a, rule) {
  const pairs = steps.map((dt) => RULES[rule](a, dt));
  const states = [];
  pairs.forEach(([aBar, bBar], t) => states.push((t ? aBar * states[t - 1] : 0) + bBar * x[t]));
  const weights = pairs.map(([, bBar], t) => pairs.slice(t + 1).reduce((w, [aBar]) => w * aBar, bBar));
  return { pairs, states, weights };
}

function verdict([aBar, bBar], rule) {
  if (aBar > 1) return "It grows: this token multiplies the old state.";
  if (aBar === 1) return "It adds: nothing that was there fades.";
  if (aBar < -0.3) return "It turns: the old state comes back with its sign changed. That is no reset.";
  if (aBar < 0.05) {
    const louder = rule === "exponential_euler" ? ` at ${short(bBar)} times its size` : "";
    return `It resets: of the old state hardly anything is left, and the token is written${louder}.`;
  }
  if (aBar > 0.97) return "It holds: the token passes by, and the old state stays.";
  return "It mixes: a part of the old state, a part of the token.";
}

function render({ model, el }) {
  const { tokens, x, dt, a, rule, token, rules, presets } = model.get("data");
  const width = COLUMN * tokens.length;
  const { body, say, stop } = stage(model, el, "A step for each token");
  const title = (y, text) => `<text x="0" y="${y}" font-size="11" fill="var(--muted)">${text}</text>`;
  const picture = svg(width, 276, `
    <rect data-part="column" y="0" width="${COLUMN}" height="276" rx="4" fill="var(--panel)"/>
    ${title(10, "token x")}${title(82, "step Δ, by powers of ten")}${title(166, "state h")}
    <path d="M0 44 H${width} M0 ${FLOOR} H${width} M0 212 H${width}" stroke="var(--line)"/>
    <g data-part="inputs" fill="var(--input)"></g>
    <g data-part="steps" fill="var(--linear)"></g>
    <g data-part="states" fill="var(--state)"></g>
    <g font-size="11.5" text-anchor="middle" fill="var(--ink)">${tokens.map((name, t) =>
    `<text x="${(t + 0.5) * COLUMN}" y="270">${name}</text>`).join("")}</g>`);
  picture.node.style.touchAction = "pan-y";
  picture.node.style.cursor = "pointer";
  const made = svg(width, 2 * HALF + 4, `<path d="M0 ${HALF + 2} H${width}" stroke="var(--line)"/>
    <g data-part="weights" fill="var(--state)"></g>`);
  const numbers = readout([["a_bar", "Ā: kept of the old state", "linear"], ["b_bar", "B̄: how it is written"],
    ["after", "state after it", "state"], ["share", `${tokens[3]}'s share of the last state`]]);
  const told = h("p", { class: "told" });
  let steps = dt.slice();

  const bars = (values, middle, most, half) => values.map((v, t) => {
    const tall = Math.min((half * Math.abs(v)) / most, half + 6);
    return `<rect x="${(t + 0.5) * COLUMN - BARS / 2}" width="${BARS}" y="${v > 0 ? middle - tall : middle}" height="${tall}"/>`;
  }).join("");
  const largest = (values) => Math.max(...values.map(Math.abs)) || 1;

  const draw = () => {
    const t = which.value - 1;
    const { pairs, states, weights } = read(x, steps, pole.value, law.value);
    const share = Math.abs(weights[3]) / weights.reduce((sum, w) => sum + Math.abs(w), 0);
    picture.part("column").setAttribute("x", t * COLUMN);
    picture.part("inputs").innerHTML = bars(x, 44, largest(x), 26);
    picture.part("steps").innerHTML = steps.map((step, i) => {
      const tall = 2 + (TALL * (Math.log10(step) - LOW)) / (HIGH - LOW);
      return `<rect x="${(i + 0.5) * COLUMN - BARS / 2}" width="${BARS}" y="${FLOOR - tall}" height="${tall}"/>`;
    }).join("");
    picture.part("states").innerHTML = bars(states, 212, Math.max(largest(states), largest(x)), HALF);
    made.part("weights").innerHTML = bars(weights, HALF + 2, largest(weights), HALF);
    numbers.set({ a_bar: short(pairs[t][0]), b_bar: short(pairs[t][1]), after: short(states[t]), share: percent(share) });
    told.textContent = `“${tokens[t]}”. ${verdict(pairs[t], law.value)}`;
    picture.label(`Tokens, steps and states; chosen: ${tokens[t]}, with a step of ${short(steps[t])}.`);
    made.label(`Weights of the ${tokens.length} tokens in the last state; ${tokens[3]} has ${percent(share)} of them.`);
    say(`${tokens[t]}, step ${short(steps[t])}. ${verdict(pairs[t], law.value)} ${tokens[3]}'s share ${percent(share)}.`);
    publish(model, { dt: steps, a: pole.value, rule: law.value, token: t, states, weights, share });
  };

  const marks = Array.from({ length: 41 }, (_, i) => Number((10 ** (LOW + i / 10)).toPrecision(2)));
  const nearest = (value) => marks.reduce((p, q) => (Math.abs(Math.log(q / value)) < Math.abs(Math.log(p / value)) ? q : p));
  steps = steps.map(nearest);
  const select = () => preset.node.querySelector("select");
  const choose = (t) => {
    which.value = t + 1;
    step.value = steps[t];
    draw();
  };
  const put = (value) => {
    steps[which.value - 1] = value;
    select().value = "own";
    choose(which.value - 1);
  };

  const which = slider("Token", tokens.map((_, t) => t + 1), token + 1, (t) => tokens[t - 1], () => choose(which.value - 1));
  const step = slider("Its step Δ", marks, steps[token], short, () => put(step.value));
  const preset = choice("All steps", [...presets.map(([key, name]) => [key, name]), ["own", "your own"]], "own", () => {
    const found = presets.find(([key]) => key === preset.value);
    if (found) steps = found[2].map(nearest);
    choose(which.value - 1);
  });
  const known = presets.find(([, , values]) => values.every((v, t) => nearest(v) === steps[t]));
  if (known) select().value = known[0];
  const law = choice("Rule", rules, rule, () => draw());
  const pole = slider("Eigenvalue a", [-16, -8, -4, -2, -1, -0.5, -0.25, 0, 0.25], a, short, () => draw());

  let held = false;
  const at = (event) => {
    const box = picture.node.getBoundingClientRect();
    const t = Math.floor((tokens.length * (event.clientX - box.left)) / box.width);
    const y = (276 * (event.clientY - box.top)) / box.height;
    return [Math.min(Math.max(t, 0), tokens.length - 1), y];
  };
  const level = (y) => nearest(10 ** Math.min(Math.max(LOW + ((FLOOR - 2 - y) / TALL) * (HIGH - LOW), LOW), HIGH));
  picture.node.addEventListener("pointerdown", (event) => {
    const [t, y] = at(event);
    choose(t);
    held = y > 74 && y < FLOOR + 4; // in the row of steps a press sets the step, elsewhere it chooses
    if (!held) return;
    picture.node.setPointerCapture(event.pointerId);
    put(level(y));
  });
  picture.node.addEventListener("pointermove", (event) => { if (held) put(level(at(event)[1])); });
  for (const end of ["pointerup", "pointercancel"]) picture.node.addEventListener(end, () => { held = false; });

  body.classList.add("two");
  body.append(
    h("div", { class: "stack" }, picture.box, h("div", {}, made.box, h("p", { class: "legend" },
      "The last state, taken apart: the weight of each token in it"))),
    h("div", { class: "stack" }, which.node, step.node, preset.node, law.node, pole.node, numbers.node, told));
  draw();
  return stop;
}

export default { render };
