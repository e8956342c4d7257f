import { choice, h, publish, readout, slider, stage, svg } from "./common.mjs";

const WIDTH = 480;
const TALL = 96;
const DEEPEST = 42; // percent of colour under a letter that must stay readable
const STYLE = `.bytes { margin: 0; font: 14px/1.65 ui-monospace, monospace; white-space: pre-wrap; word-break: break-all;
  cursor: pointer; }
.bytes span { padding: 2px 0; background: color-mix(in oklab, var(--linear) var(--much), var(--panel)); }
.bytes .now { outline: 2px solid var(--ink); outline-offset: 1px; border-radius: 2px; }`;

const minus = (text) => text.replace("-", "−");
const short = (x) => minus(x !== 0 && Math.abs(x) < 1e-3 ? x.toExponential(1) : String(Number(x.toPrecision(3))));
const NAMES = { "\n": "newline", " ": "space" };
const spoken = (letter) => NAMES[letter] ?? `“${letter}”`;

function render({ model, el }) {
  const { text, rows, row, place } = model.get("data");
  const { body, say, stop } = stage(model, el, "The steps that a model chose, byte by byte");
  const letters = [...text];
  const logs = rows.map(({ steps }) => steps.map(Math.log));
  const means = logs.map((values) => values.reduce((a, b) => a + b) / values.length);
  const away = logs.map((values, r) => values.map((v) => v - means[r]));
  // one scale for all rows, so that a row that hardly moves looks as if it hardly moved
  const sizes = away.flat().map(Math.abs).sort((a, b) => a - b);
  const most = sizes[Math.floor(0.98 * (sizes.length - 1))] || 1;
  const within = (v) => Math.min(Math.max(v / most, -1), 1);

  const cells = letters.map((letter, i) => h("span", { "data-i": i }, letter === "\n" ? "⏎" : letter));
  const page = h("div", { class: "bytes", role: "img" });
  cells.forEach((cell, i) => page.append(cell, ...(letters[i] === "\n" ? [h("br")] : [])));
  const x = (i) => ((i + 0.5) * WIDTH) / letters.length;
  const y = (v) => TALL / 2 - (TALL / 2 - 4) * within(v);
  const line = svg(WIDTH, TALL, `
    <path d="M0 ${TALL / 2} H${WIDTH}" stroke="var(--muted)" stroke-dasharray="5 4"/>
    <path data-part="here" stroke="var(--ink)"/>
    <polyline data-part="steps" fill="none" stroke="var(--linear)" stroke-width="1.1" stroke-linejoin="round"/>`);
  const numbers = readout([["step", "Δ here", "linear"], ["times", "over the passage's mean"],
    ["half", "half-life of the mode a = −1, in bytes"], ["range", "largest over smallest, in this row"]]);
  const told = h("p", { class: "told" });

  const paint = () => {
    const r = Number(shown.value);
    away[r].forEach((v, i) => cells[i].style.setProperty("--much", `${(DEEPEST * (0.5 + 0.5 * within(v))).toFixed(1)}%`));
    line.part("steps").setAttribute("points", away[r].map((v, i) => `${x(i).toFixed(1)},${y(v).toFixed(1)}`).join(" "));
    const range = Math.exp(Math.max(...logs[r]) - Math.min(...logs[r]));
    numbers.set({ range: short(range) });
    page.setAttribute("aria-label", `${letters.length} bytes of text, each shaded by its step in ${rows[r].name}.`);
    line.label(`The steps of ${rows[r].name} along the passage, by powers; dashed, their mean. Largest over smallest ${short(range)}.`);
    draw();
  };
  const draw = () => {
    const r = Number(shown.value);
    const i = at.value - 1;
    cells.forEach((cell, k) => { cell.className = k === i ? "now" : ""; });
    line.part("here").setAttribute("d", `M${x(i)} 0 V${TALL}`);
    const step = rows[r].steps[i];
    const times = Math.exp(away[r][i]);
    numbers.set({ step: short(step), times: short(times), half: short(Math.LN2 / step) });
    const after = i ? ` after ${spoken(letters[i - 1])}` : "";
    told.textContent = `Byte ${i + 1}: ${spoken(letters[i])}${after}, ${short(times)} times the mean step.`;
    say(told.textContent);
    publish(model, { row: r, place: i, letter: letters[i], step, times });
  };

  const shown = choice("Steps of", rows.map(({ name }, r) => [String(r), name]), String(row), () => paint());
  const at = slider("Byte", letters.map((_, i) => i + 1), place + 1, (i) => `${i} of ${letters.length}`, () => draw());
  page.addEventListener("pointerdown", (event) => {
    const cell = event.composedPath()[0];
    if (cell.dataset?.i === undefined) return;
    at.value = Number(cell.dataset.i) + 1;
    draw();
  });
  body.append(h("style", {}, STYLE), page,
    h("div", {}, line.box, h("p", { class: "legend" },
      h("span", {}, h("i", { style: "background: var(--linear)" }), "Δ along the passage"),
      h("span", {}, "dashed: the mean, as a model with one Δ would have it"))),
    h("div", { class: "pair" }, shown.node, at.node), numbers.node, told);
  paint();
  return stop;
}

export default { render };
