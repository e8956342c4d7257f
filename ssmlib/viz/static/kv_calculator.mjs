import { bytes, choice, h, publish, readout, slider, stage, svg, whole } from "./common.mjs";

const ROW = 16; // GPUs in a row of the picture: two servers of eight
const SLOTS = 2 * ROW;
const CACHE = { float32: 4, bfloat16: 2, float8: 1 }; // bytes of a number
const WEIGHTS = { bfloat16: 2, int8: 1, int4: 0.5 };

// 2^from to 2^to, with so many parts to the octave.
const octaves = (from, to, parts) => Array.from({ length: (to - from) * parts + 1 }, (_, i) =>
  2 ** (from + Math.floor(i / parts)) * (1 + (i % parts) / parts));

const slots = Array.from({ length: SLOTS }, (_, i) =>
  ({ x: (i % ROW) * 20 + (i % ROW >= ROW / 2 ? 8 : 0), y: Math.floor(i / ROW) * 22 }));

// GPUs filled from the left; `parts` are [colour, how many GPUs full].
function filled(parts) {
  let from = 0;
  let markup = "";
  for (const [colour, amount] of parts) {
    const to = from + amount;
    for (let i = Math.floor(from); i < Math.min(to, SLOTS); i += 1) {
      const left = Math.max(from - i, 0);
      markup += `<rect x="${slots[i].x + 17 * left}" y="${slots[i].y}" height="18"
        width="${17 * (Math.min(to - i, 1) - left)}" fill="var(--${colour})"/>`;
    }
    from = to;
  }
  return markup;
}

function render({ model, el }) {
  const { models, selected, context, batch, gpu_bytes } = model.get("data");
  const { body, say, stop } = stage(model, el, "Memory calculator");
  const size = bytes(gpu_bytes).replace(/\.?0+ /, " ");
  const picture = svg(325, 40, `<g data-part="fill"></g>${slots.map(({ x, y }) => `<rect x="${x}"
    y="${y}" width="17" height="18" fill="none" stroke="var(--muted)" stroke-width="0.6"/>`).join("")}`);
  const more = h("p", { class: "legend" });
  const numbers = readout([["weights", "weights", "muted"], ["cache", "KV cache", "attention"],
    ["state", "state, in float32", "state"], ["total", "together"], ["token", "per token and request"],
    ["gpus", `GPUs of ${size} needed`], ["one", "requests that fit on one GPU"],
    ["eight", "requests that fit on eight"]]);

  const draw = () => {
    const m = models.find((candidate) => candidate.name === name.value);
    const n = length.value;
    const requests = many.value;
    const perToken = m.kv_values * CACHE[kept.value];
    const weights = m.parameters * WEIGHTS[stored.value];
    const [cache, state] = [perToken * n * requests, m.state_bytes * requests];
    const total = weights + cache + state;
    const gpus = Math.ceil(total / gpu_bytes);
    const fit = (devices) =>
      Math.max(0, Math.floor((devices * gpu_bytes - weights) / (perToken * n + m.state_bytes)));
    numbers.set({ weights: bytes(weights), cache: bytes(cache), state: bytes(state),
      total: bytes(total), token: `${whole(perToken)} B`, gpus: whole(gpus),
      one: whole(fit(1)), eight: whole(fit(8)) });
    picture.part("fill").innerHTML = filled([["muted", weights / gpu_bytes],
      ["attention", cache / gpu_bytes], ["state", state / gpu_bytes]]);
    more.textContent = `A box is a GPU of ${size}, a group a server of eight.${
      gpus > SLOTS ? ` ${whole(gpus - SLOTS)} GPUs more find no room here.` : ""}${
      n > m.context ? ` ${m.name} was trained for ${whole(m.context)} tokens.` : ""}`;
    picture.label(`${bytes(total)} fill ${whole(gpus)} GPUs of ${size}.`);
    say(`${m.name}, ${whole(n)} tokens, ${whole(requests)} requests: cache ${bytes(cache)}, state `
      + `${bytes(state)}, with weights ${bytes(total)}, ${whole(gpus)} GPUs.`);
    publish(model, { model: m.name, context: n, batch: requests, cache_bytes: cache,
      state_bytes: state, total_bytes: total, gpus });
  };

  const same = (names) => Object.keys(names).map((key) => [key, key]);
  const name = choice("Model", models.map((m) => [m.name, m.name]), selected, () => draw());
  const length = slider("Context in tokens", octaves(10, 20, 4), context, whole, () => draw());
  const many = slider("Requests at once", octaves(0, 8, 1), batch, whole, () => draw());
  const kept = choice("Cache in", same(CACHE), "bfloat16", () => draw());
  const stored = choice("Weights in", same(WEIGHTS), "bfloat16", () => draw());
  body.classList.add("two");
  body.append(h("div", { class: "wide" }, picture.box, more),
    h("div", { class: "stack" }, name.node, length.node, many.node,
      h("div", { class: "pair" }, kept.node, stored.node)),
    numbers.node);
  draw();
  return stop;
}

export default { render };
