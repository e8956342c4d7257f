import { choice, h, publish, readout, slider, stage, svg } from "./common.mjs";

const WIDTH = 480;
const HALF = 50; // pixels above and below the line of a plot
const RADIUS = 92; // pixels of the unit circle
const MIDDLE = 104;

const sum = (values) => values.reduce((a, b) => a + b, 0);
const size = (values) => Math.sqrt(sum(values.map((x) => x * x)));
const largest = (values) => Math.max(...values.map(Math.abs)) || 1;
const minus = (text) => text.replace("-", "−");
const short = (x) => minus(Math.abs(x) >= 1e-3 && Math.abs(x) < 1e4 ? String(Number(x.toPrecision(3)))
  : x.toExponential(1).replace("+", ""));

// a_bar of the zero-order hold, and twice the response 2 b_bar a_bar^i, as columns 2 Re and -2 Im.
const discrete = ([re, im], dt) => [Math.exp(dt * re) * Math.cos(dt * im), Math.exp(dt * re) * Math.sin(dt * im)];
function response([re, im], dt, steps) {
  const [ar, ai] = discrete([re, im], dt);
  const square = re * re + im * im;
  let [x, y] = [((ar - 1) * re + ai * im) / square, (ai * re - (ar - 1) * im) / square];
  const columns = [[], []];
  for (let i = 0; i < steps; i += 1) {
    columns[0].push(2 * x);
    columns[1].push(-2 * y);
    [x, y] = [x * ar - y * ai, x * ai + y * ar];
  }
  return columns;
}

// Least squares with a small ridge, by elimination: the weights of the columns that come nearest.
function fit(columns, wanted) {
  const dot = (u, v) => sum(u.map((x, i) => x * v[i]));
  const rows = columns.map((u) => [...columns.map((v) => dot(u, v)), dot(u, wanted)]);
  const ridge = 1e-9 * sum(rows.map((row, i) => row[i]));
  rows.forEach((row, i) => { row[i] += ridge; });
  rows.forEach((row, i) => rows.slice(i + 1).forEach((other) => {
    const share = other[i] / row[i];
    for (let k = i; k < row.length; k += 1) other[k] -= share * row[k];
  }));
  const c = [];
  for (let i = rows.length - 1; i >= 0; i -= 1) {
    c[i] = (rows[i].at(-1) - sum(rows[i].slice(i + 1, -1).map((x, k) => x * c[i + 1 + k]))) / rows[i][i];
  }
  return c;
}

const convolve = (K, x) => x.map((_, i) => sum(K.slice(0, i + 1).map((k, j) => k * x[i - j])));

function render({ model, el }) {
  const data = model.get("data");
  const steps = data.echo.length;
  const { body, say, stop } = stage(model, el, "Move the poles, watch the kernel");
  const points = (values, most) => values.map((x, i) =>
    `${(((i + 0.5) * WIDTH) / steps).toFixed(1)},${(HALF + 6 - (HALF * x) / most).toFixed(1)}`).join(" ");
  const plot = (lines) => svg(WIDTH, 2 * HALF + 12, `<path d="M0 ${HALF + 6} H${WIDTH}" stroke="var(--line)"/>
    <g fill="none" stroke-linejoin="round">${lines}</g>`);

  const disk = svg(2 * MIDDLE, 2 * MIDDLE, `
    <circle cx="${MIDDLE}" cy="${MIDDLE}" r="${RADIUS}" fill="var(--panel)" stroke="var(--line)"/>
    <path d="M0 ${MIDDLE} H${2 * MIDDLE} M${MIDDLE} 0 V${2 * MIDDLE}" stroke="var(--line)"/>
    <g data-part="mirror" fill="var(--state)" fill-opacity="0.25"></g>
    <g data-part="poles" fill="var(--state)"></g>
    <circle data-part="chosen" r="8" fill="none" stroke="var(--ink)" stroke-width="1.6"/>`);
  disk.box.classList.add("small");
  disk.node.style.touchAction = "none";
  disk.node.style.cursor = "grab";
  const kernelPlot = plot(`<polyline data-part="wanted" stroke="var(--muted)" stroke-dasharray="4 4" stroke-width="1.6"/>
    <polyline data-part="kernel" stroke="var(--state)" stroke-width="2.4"/>`);
  const signalPlot = plot(`<polyline data-part="signal" stroke="var(--input)" stroke-width="1.8"/>
    <polyline data-part="output" stroke="var(--linear)" stroke-width="2.4"/>`);
  const numbers = readout([["half", "half-life of the chosen pole, in steps"], ["period", "its period, in steps"],
    ["top", "largest value of the kernel", "state"], ["at", `kernel at step ${data.lag}`],
    ["miss", "distance from the echo, relative"]]);
  const told = h("p", { class: "told" });
  let poles = data.poles[data.init][data.n].map((a) => a.slice());

  const draw = () => {
    const dt = step.value;
    const which = Math.min(chosen.value, poles.length) - 1;
    const columns = poles.flatMap((a) => response(a, dt, steps));
    const fitted = weights.value === "echo";
    const C = fitted ? fit(columns, data.echo) : columns.map((_, k) => Number(k % 2 === 0));
    const K = data.echo.map((_, i) => sum(columns.map((column, k) => C[k] * column[i])));
    const x = data.signals[signal.value];
    const y = convolve(K, x);
    const miss = size(K.map((k, i) => k - data.echo[i])) / size(data.echo);

    const places = poles.map((a) => discrete(a, dt));
    const dots = (way) => places.map(([re, im]) =>
      `<circle cx="${MIDDLE + RADIUS * re}" cy="${MIDDLE - way * RADIUS * im}" r="4.5"/>`).join("");
    disk.part("poles").innerHTML = dots(1);
    disk.part("mirror").innerHTML = dots(-1);
    const [re, im] = places[which];
    disk.part("chosen").setAttribute("cx", MIDDLE + RADIUS * re);
    disk.part("chosen").setAttribute("cy", MIDDLE - RADIUS * im);
    const most = fitted ? Math.max(largest(K), largest(data.echo)) : largest(K);
    kernelPlot.part("kernel").setAttribute("points", points(K, most));
    kernelPlot.part("wanted").setAttribute("points", fitted ? points(data.echo, most) : "");
    signalPlot.part("signal").setAttribute("points", points(x, 1));
    signalPlot.part("output").setAttribute("points", points(y, Math.max(largest(y), fitted ? 1 : 0)));

    const angle = Math.atan2(im, re);
    const half = Math.LN2 / -(dt * poles[which][0]);
    numbers.set({ half: short(half), period: Math.abs(angle) < 1e-3 ? "none" : short((2 * Math.PI) / Math.abs(angle)),
      top: short(largest(K)), at: short(K[data.lag]), miss: fitted ? short(miss) : "not fitted" });
    const folded = poles.filter((a) => Math.abs(dt * a[1]) > Math.PI).length;
    told.textContent = folded ? `${folded} of ${poles.length} poles turn by more than half a circle per step: their pitch is not the one it seems.`
      : fitted && miss > 0.5 ? "No C makes these poles an echo." : fitted && miss < 0.3 ? "An echo: the output is the signal, late." : "";
    disk.label(`${poles.length} poles in the unit disk, and their mirror images; the chosen one has a half-life of ${short(half)} steps.`);
    kernelPlot.label(`The kernel over ${steps} steps, largest value ${short(largest(K))}.`);
    signalPlot.label("The signal, and its convolution with the kernel.");
    say(`Half-life ${short(half)} steps. ${fitted ? `Distance from the echo ${short(miss)}.` : `Kernel at step ${data.lag}: ${short(K[data.lag])}.`}`);
    publish(model, { init: init.value, n: 2 * poles.length, dt, weights: weights.value, signal: signal.value, poles, kernel: K, output: y, miss });
  };

  const nearest = (marks, x) => marks.reduce((a, b) => (Math.abs(b - x) < Math.abs(a - x) ? b : a));
  const halves = [1, 10, 100].flatMap((k) => [1, 1.5, 2, 3, 4, 5, 7].map((x) => k * x)).concat(1000);
  const degrees = Array.from({ length: 181 }, (_, k) => k);
  const show = () => { // the two sliders of the pole follow it
    const [re, im] = poles[Math.min(chosen.value, poles.length) - 1];
    const [x, y] = discrete([re, im], step.value);
    life.value = nearest(halves, Math.LN2 / (-re * step.value));
    turn.value = nearest(degrees, (Math.abs(Math.atan2(y, x)) * 180) / Math.PI);
    draw();
  };
  const own = () => { init.node.querySelector("select").value = "moved"; draw(); };
  const reset = () => {
    const name = init.value === "moved" ? data.init : init.value;
    init.node.querySelector("select").value = name;
    poles = data.poles[name][order.value].map((a) => a.slice());
    if (chosen.value > poles.length) chosen.value = poles.length;
    show();
  };
  const pole = () => poles[Math.min(chosen.value, poles.length) - 1];

  let held = false;
  const at = (event) => {
    const box = disk.node.getBoundingClientRect();
    const unit = (box.width * RADIUS) / (2 * MIDDLE);
    return [(event.clientX - box.left - box.width / 2) / unit, Math.abs((event.clientY - box.top - box.height / 2) / unit)];
  };
  const put = (event) => {
    const [x, y] = at(event);
    const rim = Math.min(Math.max(Math.hypot(x, y), 0.05), 0.9993);
    Object.assign(pole(), [Math.log(rim) / step.value, Math.atan2(y < 0.02 ? 0 : y, x) / step.value]);
    init.node.querySelector("select").value = "moved";
    show();
  };
  disk.node.addEventListener("pointerdown", (event) => {
    disk.node.setPointerCapture(event.pointerId);
    const [x, y] = at(event);
    const far = poles.map((a) => { const [re, im] = discrete(a, step.value); return Math.hypot(re - x, Math.abs(im) - y); });
    chosen.value = far.indexOf(Math.min(...far)) + 1;
    held = true;
    put(event);
  });
  disk.node.addEventListener("pointermove", (event) => { if (held) put(event); });
  for (const end of ["pointerup", "pointercancel"]) disk.node.addEventListener(end, () => { held = false; });

  const init = choice("Start", [...data.inits, ["moved", "your own poles"]], data.init, () => reset());
  const order = slider("State size n", data.sizes, data.n, String, () => reset());
  const marks = [1, 2, 4, 8, 16, 32, 64, 128, 200].map((x) => x / 1000);
  const step = slider("Step size Δ", marks, data.dt, String, () => show());
  const weights = choice("Weights C", data.choices, data.weights, () => draw());
  const signal = choice("Signal", data.presets, data.signal, () => draw());
  const chosen = slider("Pole", Array.from({ length: data.sizes.at(-1) / 2 }, (_, k) => k + 1), 1, String, () => {
    if (chosen.value > poles.length) chosen.value = poles.length;
    show();
  });
  const life = slider("Set its half-life, in steps", halves, halves[0], String,
    () => { pole()[0] = -Math.LN2 / (life.value * step.value); own(); });
  const turn = slider("Set its turn, degrees per step", degrees, 0, String,
    () => { pole()[1] = (turn.value * Math.PI) / (180 * step.value); own(); });
  const key = (colour, name) => h("span", {}, h("i", { style: `background: var(--${colour})` }), name);
  body.classList.add("two");
  body.append(
    h("div", { class: "stack" }, disk.box, init.node, order.node, step.node, chosen.node, life.node, turn.node),
    h("div", { class: "stack" }, h("div", {}, kernelPlot.box, h("p", { class: "legend" }, key("state", "the kernel"))),
      h("div", {}, signalPlot.box, h("p", { class: "legend" }, key("input", "the signal"), key("linear", "its output"))),
      weights.node, signal.node, numbers.node, told));
  show();
  return stop;
}

export default { render };
