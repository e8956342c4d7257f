import { choice, h, publish, readout, slider, stage, svg } from "./common.mjs";

const WIDTH = 480;
const MIDDLE = 80;
const UNIT = 48; // pixels of one unit of the signal
const MOST = 1.6; // what fits into the picture
const BARS = 64;

const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
const short = (x) => (x < 100 ? x.toPrecision(2) : x.toExponential(1).replace("+", ""));
const sum = (values) => values.reduce((a, b) => a + b, 0);

// P_0(x) ... P_{n-1}(x)
function legendre(x, n) {
  const p = [1, x];
  for (let k = 1; k + 1 < n; k += 1) p.push(((2 * k + 1) * x * p[k] - k * p[k - 1]) / (k + 1));
  return p.slice(0, n);
}

function laguerre(age, n) {
  const p = [1, 1 - age];
  for (let k = 1; k + 1 < n; k += 1) p.push(((2 * k + 1 - age) * p[k] - k * p[k - 1]) / (k + 1));
  return p.slice(0, n);
}

const norm = (k) => Math.sqrt(2 * k + 1);
const onWindow = (age, n) => legendre(1 - 2 * age, n).map((p, k) => norm(k) * p);
const wave = (age, k) => (k === 0 ? 1
  : Math.SQRT2 * (k % 2 ? Math.cos : Math.sin)(2 * Math.PI * Math.ceil(k / 2) * (1 - age)));
const scaled = (i, k) => (i > k ? -norm(i) * norm(k) : i === k ? -(i + 1) : 0);
const turning = (i, k) => (i % 2 === 1 && k === i + 1 ? Math.PI * (i + 1)
  : k % 2 === 1 && i === k + 1 ? -Math.PI * (k + 1) : 0) - 2 * wave(0, i) * wave(0, k);

// A[i][k], B[i] and the basis of ssmlib.hippo; `oldest` is the last age that is kept.
const MEASURES = {
  legs: { basis: onWindow, oldest: 1, told: "All of the past, every part alike. The picture never loses its beginning; it grows coarser." },
  legt: { A: (i, k) => -norm(i) * norm(k) * (i < k && (k - i) % 2 ? -1 : 1), B: norm, basis: onWindow, oldest: 1,
    told: "The last window alike, and nothing before it." },
  fourier: { A: turning, B: (i) => 2 * wave(0, i), basis: (age, n) => Array.from({ length: n }, (_, k) => wave(age, k)),
    oldest: 1, told: "The last window as waves, which must meet at its two ends." },
  lagt: { A: (i, k) => (i >= k ? -1 : 0), B: () => 1, basis: laguerre, oldest: Infinity,
    told: "Exponentially fading. Old errors count for little, and become large." },
  warped: { A: scaled, B: norm, basis: (age, n) => onWindow(-Math.expm1(-age), n), oldest: Infinity,
    told: "The LegS matrices without 1/t, as S4 runs them: sharp for the recent past, blurred before." },
};

function times(a, b) {
  return a.map((row) => b[0].map((_, j) => sum(row.map((x, k) => x * b[k][j]))));
}

// [A_bar, B_bar] of the zero-order hold, by scaling, a Taylor series and squaring.
function hold(A, B, n, dt) {
  let m = Array.from({ length: n + 1 }, (_, i) => Array.from({ length: n + 1 }, (_, k) =>
    (i === n ? 0 : dt * (k === n ? B(i) : A(i, k)))));
  const one = m.map((row, i) => row.map((_, k) => Number(i === k)));
  const size = Math.max(...m.map((row) => sum(row.map(Math.abs))));
  const halvings = Math.max(0, Math.ceil(Math.log2(size)) + 2);
  m = m.map((row) => row.map((x) => x / 2 ** halvings));
  let e = one;
  for (let k = 10; k > 0; k -= 1) e = times(m.map((row) => row.map((x) => x / k)), e).map((row, i) => row.map((x, j) => x + one[i][j]));
  for (let k = 0; k < halvings; k += 1) e = times(e, e);
  return [e.slice(0, n).map((row) => row.slice(0, n)), e.slice(0, n).map((row) => row[n])];
}

// Coefficients after each of the first inputs, for a measure that does not change with time.
function invariant({ A, B }, u, n, dt) {
  const [aBar, bBar] = hold(A, B, n, dt);
  let c = Array(n).fill(0);
  return u.map((x) => { c = aBar.map((row, i) => sum(row.map((a, k) => a * c[k])) + bBar[i] * x); return c; });
}

// LegS after k inputs: a sum over the jumps of the held signal.
function uniform(u, k, n) {
  const c = Array(n).fill(0);
  for (let j = 0; j < k; j += 1) {
    const p = legendre((2 * j) / k - 1, n + 1);
    const jump = u[j] - (j ? u[j - 1] : 0);
    for (let i = 0; i < n; i += 1) c[i] += (jump * (p[i ? i - 1 : 0] - p[i + 1])) / (2 * norm(i));
  }
  return c;
}

function render({ model, el }) {
  const data = model.get("data");
  const steps = Object.values(data.signals)[0].length;
  const { body, say, stop } = stage(model, el, "Draw a signal, watch it being remembered");
  const at = (j) => ((j + 0.5) * WIDTH) / steps;
  const high = (x) => MIDDLE - UNIT * Math.min(Math.max(x, -2 * MOST), 2 * MOST);
  const line = (points) => points.map(([j, x]) => `${at(j).toFixed(1)},${high(x).toFixed(1)}`).join(" ");

  const picture = svg(WIDTH, 2 * MIDDLE, `
    <defs><clipPath id="lt-hippo-box"><rect width="${WIDTH}" height="${2 * MIDDLE}"/></clipPath></defs>
    <rect width="${WIDTH}" height="${2 * MIDDLE}" fill="var(--panel)" fill-opacity="0.5" stroke="var(--line)"/>
    <path d="M0 ${MIDDLE} H${WIDTH}" stroke="var(--line)"/>
    <g clip-path="url(#lt-hippo-box)" fill="none" stroke-linejoin="round">
      <polyline data-part="future" stroke="var(--muted)" stroke-dasharray="2 5" stroke-width="1.5"/>
      <polyline data-part="signal" stroke="var(--input)" stroke-width="1.8"/>
      <polyline data-part="memory" stroke="var(--state)" stroke-width="2.4"/></g>
    <path data-part="now" stroke="var(--ink)" stroke-width="1.2"/>`);
  picture.node.style.touchAction = "none";
  picture.node.style.cursor = "crosshair";
  const bars = svg(WIDTH, 70, `<path d="M0 35 H${WIDTH}" stroke="var(--line)"/>
    <g data-part="bars" fill="var(--state)"></g>`);
  const numbers = readout([["kept", "numbers in memory", "state"], ["inputs", "inputs read", "input"],
    ["old", "error, oldest third of the past"], ["new", "error, newest third"]]);
  const told = h("p", { class: "told" });

  let signal = data.signals[data.preset].slice();
  let rows = null;
  let timer = null;

  const coefficients = (k, n, dt) => {
    if (measure.value === "legs") return uniform(signal, k, n);
    rows ??= invariant(MEASURES[measure.value], signal, n, dt);
    return rows[k - 1];
  };
  const draw = () => {
    const { basis, oldest, told: sentence } = MEASURES[measure.value];
    const n = measure.value === "fourier" ? size.value + 1 - (size.value % 2) : size.value;
    const k = place.value;
    const dt = 1 / span.value;
    const c = coefficients(k, n, dt);
    const past = [];
    for (let j = 0; j < k; j += 1) {
      const age = (k - j - 0.5) * (measure.value === "legs" ? 1 / k : dt);
      if (age <= oldest) past.push([j, sum(basis(age, n).map((p, i) => p * c[i]))]);
    }
    const error = (from, to) => {
      const part = past.filter(([j]) => j >= from && j < to);
      return part.length < to - from || !part.length ? null
        : Math.sqrt(sum(part.map(([j, x]) => (x - signal[j]) ** 2)) / part.length);
    };
    const third = Math.max(1, Math.floor(k / 3));
    const [old, recent] = [error(0, third), error(k - third, k)];

    picture.part("signal").setAttribute("points", line(signal.slice(0, k).map((x, j) => [j, x])));
    picture.part("future").setAttribute("points", line(signal.map((x, j) => [j, x]).slice(k - 1)));
    picture.part("memory").setAttribute("points", line(past));
    picture.part("now").setAttribute("d", `M${(k * WIDTH) / steps} 0 V${2 * MIDDLE}`);
    const most = Math.max(...c.map(Math.abs)) || 1;
    const width = WIDTH / Math.max(n, 8);
    bars.part("bars").innerHTML = c.map((x, i) => { const y = (32 * x) / most;
      return `<rect x="${i * width}" y="${35 - Math.max(y, 0)}" width="${0.8 * width}" height="${Math.abs(y)}"/>`; }).join("");
    const said = (x) => (x === null ? "not kept" : short(x));
    numbers.set({ kept: String(n), inputs: `${k} of ${steps}`, old: said(old), new: said(recent) });
    told.textContent = sentence;
    span.node.querySelector("input").disabled = measure.value === "legs";
    picture.label(`The signal up to input ${k} of ${steps}, and its reconstruction from ${n} numbers; draw here to change it.`);
    bars.label(`The ${n} coefficients, the largest ${short(most)}.`);
    say(`${k} inputs in ${n} numbers. Error in the oldest third ${said(old)}, in the newest ${said(recent)}.`);
    publish(model, { preset: preset.value, measure: measure.value, n, window: span.value, inputs: k,
      coefficients: c, error_oldest: old, error_newest: recent });
  };
  const again = () => { rows = null; draw(); };
  const pause = () => {
    clearInterval(timer);
    timer = null;
    play.textContent = still() ? "Show all" : "Play";
  };
  const go = (k) => { place.value = Math.min(k, steps); draw(); };
  const start = () => {
    if (timer) { pause(); return; }
    if (still()) { go(steps); return; }
    if (place.value === steps) go(1);
    play.textContent = "Pause";
    timer = setInterval(() => {
      if (!play.isConnected || place.value === steps) pause();
      else go(place.value + 2);
    }, 50);
  };

  let last = null;
  const put = (event) => {
    const box = picture.node.getBoundingClientRect();
    const j = Math.min(Math.max(Math.floor(((event.clientX - box.left) / box.width) * steps), 0), steps - 1);
    const y = ((event.clientY - box.top) / box.height) * 2 * MIDDLE;
    const x = Math.min(Math.max((MIDDLE - y) / UNIT, -MOST), MOST);
    const [from, start] = last ?? [j, x];
    const many = Math.abs(j - from) || 1;
    for (let i = 0; i <= many; i += 1) signal[Math.round(from + ((j - from) * i) / many)] = start + ((x - start) * i) / many;
    last = [j, x];
    again();
  };
  picture.node.addEventListener("pointerdown", (event) => {
    picture.node.setPointerCapture(event.pointerId);
    pause();
    preset.node.querySelector("select").value = "drawn";
    last = null;
    put(event);
  });
  picture.node.addEventListener("pointermove", (event) => { if (last && event.buttons) put(event); });
  for (const end of ["pointerup", "pointercancel"]) picture.node.addEventListener(end, () => { last = null; });

  const preset = choice("Signal", [...data.presets, ["drawn", "your own drawing"]], data.preset, () => {
    signal = (data.signals[preset.value] ?? signal).slice();
    again();
  });
  const measure = choice("Measure", data.measures, data.measure, again);
  const size = slider("Numbers n", [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, BARS], data.n, String, again);
  const span = slider("Window or fading time, in inputs", [20, 30, 40, 60, 80, 120, 160, 240], data.window, String, again);
  const place = slider("Inputs read", Array.from({ length: steps }, (_, i) => i + 1), steps, String,
    () => { pause(); draw(); });
  const play = h("button", { type: "button", onclick: start });
  pause();
  const key = (colour, name) => h("span", {}, h("i", { style: `background: var(--${colour})` }), name);
  body.classList.add("two");
  body.append(
    h("div", { class: "wide" }, picture.box, h("p", { class: "legend" }, key("input", "the signal"),
      key("state", "what the numbers still tell of it"), h("span", {}, "Draw with the pointer."))),
    h("div", { class: "row-of wide" }, play, h("div", { class: "grow" }, place.node)),
    h("div", { class: "stack" }, preset.node, measure.node, size.node, span.node),
    h("div", { class: "stack" }, h("div", {}, bars.box, h("p", { class: "legend" }, "The numbers in memory")),
      numbers.node, told));
  draw();
  return () => { pause(); stop(); };
}

export default { render };
