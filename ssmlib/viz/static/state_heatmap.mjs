import { h, publish, slider, stage } from "./common.mjs";

const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
const short = (x) => x.toFixed(2).replace("-", "−");

function render({ model, el }) {
  const { tokens, states } = model.get("data");
  const size = states[0].length;
  const most = Math.max(...states.flat().map(Math.abs)) || 1;
  const { body, say, stop } = stage(model, el, "A hidden state reads its tokens");

  const cell = (x) => h("td", { class: x < 0 ? "minus" : "plus",
    style: `--much: ${((100 * Math.abs(x)) / most).toFixed(1)}%` }, h("span", { class: "hidden" }, short(x)));
  const rows = states.map((state, t) => h("tr", {}, h("th", { scope: "row" }, tokens[t]), ...state.map(cell)));
  const widest = Math.max(...tokens.map((token) => token.length));
  const table = h("table", { "aria-label": `The state's ${size} numbers after each token` },
    h("colgroup", {}, h("col", { style: `width: ${Math.min(widest, 12) * 0.62 + 1.2}em` })),
    h("tbody", {}, ...rows));
  const told = h("p", { class: "told" });
  const list = h("p", { class: "numbers" });

  let timer = null;
  const pause = () => {
    clearInterval(timer);
    timer = null;
    play.textContent = still() ? "Show all" : "Play";
  };
  const draw = () => {
    const t = place.value;
    rows.forEach((row, i) => {
      row.className = i + 1 === t ? "now" : i + 1 < t ? "read" : "unread";
      row.toggleAttribute("aria-current", i + 1 === t);
    });
    back.setAttribute("aria-disabled", t === 1); // a disabled button would drop the keyboard's focus
    next.setAttribute("aria-disabled", t === tokens.length);
    const state = states[t - 1];
    told.textContent = `After “${tokens[t - 1]}” the memory holds ${size} numbers, as after every other token.`;
    list.replaceChildren(...state.map((x) => h("span", {}, short(x))));
    say(told.textContent);
    publish(model, { step: t, token: tokens[t - 1], state });
  };
  const go = (t) => {
    place.value = Math.min(Math.max(t, 1), tokens.length);
    draw();
  };
  const start = () => {
    if (timer) { pause(); return; }
    if (still()) { go(tokens.length); return; }
    if (place.value === tokens.length) go(1);
    play.textContent = "Pause";
    timer = setInterval(() => {
      if (!table.isConnected || place.value === tokens.length) pause();
      else go(place.value + 1);
    }, 900);
  };

  const place = slider("Tokens read", tokens.map((_, i) => i + 1), 1,
    (t) => `${t} of ${tokens.length}`, () => { pause(); draw(); });
  const back = h("button", { type: "button", onclick: () => { pause(); go(place.value - 1); } }, "Back");
  const next = h("button", { type: "button", onclick: () => { pause(); go(place.value + 1); } }, "Step");
  const play = h("button", { type: "button", onclick: start });
  pause();
  body.append(
    h("div", {}, table, h("p", { class: "legend" },
      h("span", {}, h("i", { style: "background: var(--state)" }), "positive"),
      h("span", {}, h("i", { class: "hollow" }), "negative"),
      h("span", {}, "outlined: the row in memory"))),
    h("div", { class: "row-of" }, back, next, play, h("div", { class: "grow" }, place.node)),
    h("div", {}, told, h("details", {}, h("summary", {}, "Its numbers"), list)));
  draw();
  return () => { pause(); stop(); };
}

export default { render };
