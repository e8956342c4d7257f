import { choice, h, publish, readout, slider, stage, svg } from "./common.mjs";

const STEPS = 48; // of the impulse response
const LIMIT = 1.3; // how far from the centre the plane is drawn
const EDGE = 1e-12; // how near to the unit circle is on it

const times = ([a, b], [c, d]) => [a * c - b * d, a * d + b * c];
const over = ([a, b], [c, d]) => [(a * c + b * d) / (c * c + d * d), (b * c - a * d) / (c * c + d * d)];
const plus = ([a, b], c) => [a + c, b];
const scaled = ([a, b], s) => [a * s, b * s];
const size = ([a, b]) => Math.hypot(a, b);

// e^z - 1 without the subtraction: expm1(x) cos y - 2 sin²(y/2) + i e^x sin y
const expm1 = ([x, y]) =>
  [Math.expm1(x) * Math.cos(y) - 2 * Math.sin(y / 2) ** 2, Math.exp(x) * Math.sin(y)];

// For h' = a h + x: [A_bar, B_bar] from z = a Δ and Δ.
const RULES = {
  zoh: (z, dt) => [plus(expm1(z), 1), size(z) ? scaled(over(expm1(z), z), dt) : [dt, 0]],
  exponential_euler: (z, dt) => [plus(expm1(z), 1), [dt, 0]],
  bilinear: (z, dt) => {
    const below = plus(scaled(z, -0.5), 1);
    return [over(plus(scaled(z, 0.5), 1), below), over([dt, 0], below)];
  },
  euler: (z, dt) => [plus(z, 1), [dt, 0]],
};

const short = (x) => {
  const plain = x === 0 || (Math.abs(x) >= 1e-3 && Math.abs(x) < 1e4);
  return (plain ? String(Number(x.toPrecision(4))) : x.toExponential(2).replace("+", "")).replaceAll("-", "−");
};
const complex = ([x, y]) => (y === 0 ? short(x) : `${short(x)} ${y < 0 ? "−" : "+"} ${short(Math.abs(y))}i`);

function verdict(radius, [x, y]) {
  if (!Number.isFinite(radius)) return "At the rule's pole, aΔ = 2: it has no answer here.";
  if (radius > 1 + EDGE) return "Unstable: every step makes the state larger.";
  if (radius >= 1 - EDGE) return "On the circle: nothing is ever forgotten.";
  if (x < -0.3 && Math.abs(y) < 0.3) return "Left half: the state changes sign at every step, and rings.";
  if (radius < 0.05) return "Near the centre: each token overwrites the state.";
  if (radius > 0.97) return "Near the circle: the state is kept almost whole.";
  return "Inside the circle: the state fades.";
}

function render({ model, el }) {
  const { dt, re, im, method, methods } = model.get("data");
  const { body, say, stop } = stage(model, el, "The dial of discretization");
  const plane = svg(200, 200, `
    <path d="M0 100 H200 M100 0 V200" stroke="var(--line)"/>
    <g fill="var(--muted)" font-size="9"><text x="181" y="111">1</text><text x="6" y="111">−1</text>
      <text x="104" y="19">i</text><text x="104" y="189">−i</text></g>
    <circle cx="100" cy="100" r="${100 / LIMIT}" fill="var(--panel)" fill-opacity="0.5"
      stroke="var(--muted)"/>
    <polyline data-part="spiral" fill="none" stroke="var(--state)" stroke-opacity="0.55"/>
    <g data-part="powers" fill="var(--state)" fill-opacity="0.55"></g>
    <circle data-part="point" r="6" fill="var(--linear)" stroke="var(--linear)" stroke-width="1.5"/>`);
  const response = svg(320, 112, `<path d="M0 56 H320" stroke="var(--line)"/>
    <path data-part="half" stroke="var(--input)" stroke-dasharray="4 4"/>
    <path data-part="stems" stroke="var(--state)" stroke-opacity="0.45" stroke-width="2"/>
    <g data-part="dots" fill="var(--state)"></g>`);
  const numbers = readout([["a_bar", "Ā", "linear"], ["radius", "|Ā|"], ["b_bar", "B̄, for B = 1"],
    ["half", "half-life", "input"]]);
  const told = h("p", { class: "told" });

  const place = ([x, y]) => [100 + (100 * x) / LIMIT, 100 - (100 * y) / LIMIT];
  const draw = () => {
    const step = steps.value;
    const a = [real.value, imaginary.value];
    const [aBar, bBar] = RULES[rule.value](scaled(a, step), step);
    const radius = size(aBar);
    const known = Number.isFinite(radius); // false at the rule's pole
    const half = radius < 1 - EDGE ? Math.LN2 / -Math.log(radius) : Infinity;
    const heard = [bBar];
    const powers = [[1, 0]];
    for (let k = 1; k < STEPS; k += 1) {
      powers.push(times(powers[k - 1], aBar));
      heard.push(times(powers[k], bBar));
    }

    const inside = radius <= LIMIT;
    const point = plane.part("point");
    point.style.display = known ? "" : "none";
    if (known) {
      const [px, py] = place(inside ? aBar : scaled(aBar, (0.97 * LIMIT) / radius));
      point.setAttribute("cx", px);
      point.setAttribute("cy", py);
      point.setAttribute("fill", `var(--${inside ? "linear" : "paper"})`);
    }
    const seen = powers.filter((p) => known && size(p) <= LIMIT).map(place);
    plane.part("spiral").setAttribute("points", seen.map((p) => p.join()).join(" "));
    plane.part("powers").innerHTML = seen.map(([x, y]) => `<circle cx="${x}" cy="${y}" r="2"/>`).join("");

    const top = size(bBar) || 1;
    const stems = heard.map(([x], k) => [((k + 0.5) * 320) / STEPS, 56 - (50 * x) / top])
      .filter(([, y]) => Number.isFinite(y));
    const dots = stems.filter(([, y]) => y > -2 && y < 114);
    response.part("stems").setAttribute("d",
      stems.map(([x, y]) => `M${x} 56 V${Math.min(Math.max(y, 0), 112)}`).join(" "));
    response.part("dots").innerHTML = dots.map(([x, y]) => `<circle cx="${x}" cy="${y}" r="2.6"/>`).join("");
    const line = ((half + 0.5) * 320) / STEPS;
    response.part("half").setAttribute("d", line < 320 ? `M${line} 0 V56` : "");

    const life = half === Infinity ? "none" : half < 0.01 ? "< 0.01 steps" : `${short(half)} steps`;
    const said = known ? { a_bar: complex(aBar), radius: short(radius), b_bar: complex(bBar) }
      : { a_bar: "none", radius: "none", b_bar: "none" };
    const where = radius > 1 + EDGE ? "outside" : radius < 1 - EDGE ? "inside" : "on";
    numbers.set({ ...said, half: life });
    told.textContent = verdict(radius, aBar);
    plane.label(known ? `A-bar at ${said.a_bar}, ${where} the unit circle.` : "There is no A-bar.");
    response.label(`Response to one token over ${STEPS} steps, half-life ${life}.`);
    say(`A-bar ${said.a_bar}, half-life ${life}. ${told.textContent}`);
    publish(model, { dt: step, re: a[0], im: a[1], method: rule.value, a_bar: known ? aBar : null,
      b_bar: known ? bBar : null, half_life: half === Infinity ? null : half });
  };

  const grid = (from, to, by) =>
    Array.from({ length: Math.round((to - from) / by) + 1 }, (_, i) => Math.round((from + i * by) * 1e6) / 1e6);
  const decades = grid(-3, 1, 0.05).map((x) => Number((10 ** x).toPrecision(3)));
  const steps = slider("Step size Δ", decades, dt, (x) => short(x), () => draw());
  const real = slider("Eigenvalue a, real part", grid(-4, 0.5, 0.1), re, short, () => draw());
  const imaginary = slider("Eigenvalue a, imaginary part", grid(0, 10, 0.25), im, short, () => draw());
  const rule = choice("Rule", methods, method, () => draw());
  plane.box.classList.add("small");
  body.classList.add("two");
  body.append(
    h("div", { class: "stack" }, plane.box, h("div", {}, response.box, h("p", { class: "legend" },
      `What one token leaves in the state, over ${STEPS} steps; dashed: its half-life`))),
    h("div", { class: "stack" }, steps.node, real.node, imaginary.node, rule.node, numbers.node, told));
  draw();
  return stop;
}

export default { render };
