import { bytes, choice, h, publish, readout, slider, stage, svg, whole } from "./common.mjs";

const WIDE = 660; // of the picture
const LAYER = { high: 34, gap: 2 };
const LAYERS = [8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 96];
const NONE = 1000; // more than there can be layers
const EVERY = [1, 2, 3, 4, 6, 8, 12, 16, 32, NONE]; // an attention layer in so many
const BYTES = { cache: 2, conv: 2, state: 4 }; // of a number

// 2^from to 2^to, with so many parts to the octave.
const octaves = (from, to, parts) => Array.from({ length: (to - from) * parts + 1 }, (_, i) =>
  2 ** (from + Math.floor(i / parts)) * (1 + (i % parts) / parts));

function flops(x) {
  const units = ["", "kilo", "mega", "giga", "tera", "peta", "exa", "zetta"];
  const power = Math.min(units.length - 1, Math.floor(Math.log10(x) / 3));
  return `${(x / 1000 ** power).toPrecision(3)} ${units[power]}FLOPs`;
}

const attends = (i, every) => i % every === Math.floor(every / 2);

// What `ssmlib.costs` counts, for t tokens after `past` others.
function work(s, attention, t, past) {
  const [q, kv, e] = [s.heads * s.head_dim, s.kv_heads * s.head_dim, 2 * s.d_model];
  const pairs = t * past + (t * (t + 1)) / 2;
  const looks = 2 * t * s.d_model * (q + 2 * kv) + 2 * t * q * s.d_model + 4 * q * pairs;
  const scans = t * e * (6 * s.d_model + 2 * s.conv + 4 * s.dt_rank + 4 * s.state + 9 * s.state);
  const mlps = 6 * t * s.d_model * s.hidden;
  return attention * looks + (s.layers - attention) * scans + s.layers * mlps;
}

function count(s, every, context, requests) {
  const attention = Array.from({ length: s.layers }, (_, i) => attends(i, every)).filter(Boolean).length;
  const cache = BYTES.cache * 2 * attention * s.kv_heads * s.head_dim * context * requests;
  const channel = BYTES.state * s.state + BYTES.conv * (s.conv - 1);
  const state = (s.layers - attention) * 2 * s.d_model * channel * requests;
  return { attention, cache, state, total: cache + state,
    token: work(s, attention, 1, context), prompt: work(s, attention, context, 0) };
}

// A line of words over parts of a bar, each [colour, share of the whole width].
function bar(called, told, parts) {
  const line = "display: flex; justify-content: space-between";
  const shape = (colour, share) => `display: block; margin: 0; border-radius: 0; height: 12px; ${
    share > 0 ? "min-width: 2px;" : ""} width: ${100 * share}%; background: var(--${colour})`;
  return h("div", {}, h("div", { style: line }, h("span", {}, called), h("b", {}, told)),
    h("div", { style: "display: flex" }, ...parts.map(([colour, share]) => h("i", { style: shape(colour, share) }))));
}

function render({ model, el }) {
  const { shapes, selected, every, context, requests } = model.get("data");
  const { body, say, stop } = stage(model, el, "Calculator for hybrids");
  const picture = svg(WIDE, LAYER.high, `<g data-part="layers"></g>`);
  const bars = h("div", { class: "stack", style: "gap: 6px; margin: 14px 0" });
  const told = h("p", { class: "told" });
  const numbers = readout([["attention", "attention layers", "attention"], ["scans", "Mamba layers", "state"],
    ["cache", "KV cache, two bytes a number", "attention"], ["state", "states, and what convolutions hold", "state"],
    ["total", "kept between two tokens"], ["least", "of what attention in every layer keeps"],
    ["token", "work for the next token"], ["prompt", "work for the whole context"],
    ["saved", "of the work with attention in every layer"]]);
  let shape = shapes.find((s) => s.name === selected);

  const draw = () => {
    const s = { ...shape, layers: layers.value, kv_heads: heads.value };
    const now = count(s, ratio.value, length.value, many.value);
    const all = count(s, 1, length.value, many.value);
    const none = count(s, NONE, length.value, many.value);
    const unit = WIDE / s.layers;
    picture.part("layers").innerHTML = Array.from({ length: s.layers }, (_, i) =>
      `<rect x="${i * unit}" y="0" width="${unit - LAYER.gap}" height="${LAYER.high}" rx="2"
        fill="var(--${attends(i, ratio.value) ? "attention" : "state"})"/>`).join("");
    const most = Math.max(all.total, now.total, none.total);
    bars.replaceChildren(...[["attention everywhere", all], ["as above", now], ["Mamba everywhere", none]].map(
      ([called, c]) => bar(called, bytes(c.total), [["attention", c.cache / most], ["state", c.state / most]])));
    const part = (x) => `${(100 * x).toPrecision(3)} %`;
    numbers.set({ attention: whole(now.attention), scans: whole(s.layers - now.attention),
      cache: bytes(now.cache), state: bytes(now.state), total: bytes(now.total), least: part(now.total / all.total),
      token: flops(now.token), prompt: flops(now.prompt), saved: part(now.prompt / all.prompt) });
    const twin = now.attention ? now.state / (now.cache / length.value) : 0;
    told.textContent = !now.attention ? "No cache: what is kept does not know how long the context is."
      : now.attention === s.layers ? "A cache in every layer: what is kept grows with every token."
        : `The cache is larger than the states from ${whole(Math.floor(twin) + 1)} tokens on.`;
    picture.label(`${whole(s.layers)} layers, ${whole(now.attention)} of them attention. Kept: ${
      bytes(all.total)} with attention everywhere, ${bytes(now.total)} as set, ${bytes(none.total)} with none.`);
    say(`${whole(now.attention)} of ${whole(s.layers)} layers attend: ${bytes(now.cache)} of cache, ${
      bytes(now.state)} of states. ${told.textContent}`);
    publish(model, { shape: shape.name, every: ratio.value % NONE, context: length.value, requests: many.value, ...now });
  };

  const begin = () => {
    shape = shapes.find((s) => s.name === name.value);
    [layers.value, heads.value, ratio.value] = [shape.layers, shape.kv_heads, shape.every || NONE];
    draw();
  };
  const name = choice("Start from", shapes.map((s) => [s.name, s.name]), selected, begin);
  const layers = slider("Layers", LAYERS, shape.layers, whole, () => draw());
  const words = (k) => (k === NONE ? "none" : k === 1 ? "every layer" : `1 in ${k}`);
  const ratio = slider("Attention in", EVERY, every || NONE, words, () => draw());
  const heads = slider("Heads of keys and values", [1, 2, 4, 8, 16, 32], shape.kv_heads, whole, () => draw());
  const length = slider("Context in tokens", [...octaves(10, 20, 2), 100000], context, whole, () => draw());
  const many = slider("Requests at once", octaves(0, 8, 1), requests, whole, () => draw());
  body.classList.add("two");
  body.append(h("div", { class: "wide" }, picture.box, bars, told),
    h("div", { class: "stack" }, name.node, ratio.node, layers.node, heads.node, length.node, many.node),
    numbers.node);
  draw();
  return stop;
}

export default { render };
