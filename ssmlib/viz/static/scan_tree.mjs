import { choice, h, publish, readout, slider, stage, svg } from "./common.mjs";

const WIDTH = 480;
const BELOW = 132; // pixels of the triangle of what each entry holds

const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
const times = (k, f) => Array.from({ length: k }, (_, i) => f(i));

// For each round the first input that every entry holds, before it and after it.
function firsts(rounds, n) {
  const rows = [times(n, (j) => j)];
  for (const pairs of rounds) {
    const before = rows.at(-1);
    const after = before.slice();
    for (const [i, j] of pairs) after[j] = before[i];
    rows.push(after);
  }
  return rows;
}

// The pairs that entry j of the result is made of, as "round:left:right".
function ancestors(rounds, j) {
  const made = new Set();
  let wanted = new Set([j]);
  for (let r = rounds.length - 1; r >= 0; r -= 1) {
    for (const [i, k] of rounds[r].filter(([, right]) => wanted.has(right))) {
      made.add(`${r}:${i}:${k}`);
      wanted = new Set([...wanted, i]);
    }
  }
  return made;
}

function render({ model, el }) {
  const data = model.get("data");
  const { body, say, stop } = stage(model, el, "A scan, round by round");
  const tree = svg(WIDTH, 100, `<g data-part="columns" stroke="var(--line)"></g>
    <g data-part="todo" stroke="var(--line)" fill="var(--line)"></g>
    <g data-part="done" stroke="var(--state)" fill="var(--state)"></g>
    <g data-part="now" stroke="var(--attention)" fill="var(--attention)" stroke-width="2"></g>
    <g data-part="path" fill="none" stroke="var(--input)" stroke-width="5" stroke-opacity="0.45" stroke-linecap="round"></g>`);
  const held = svg(WIDTH, BELOW, `<g data-part="cells"></g>`);
  const numbers = readout([["round", "rounds, one after the other"], ["now", "combinations in this round", "attention"],
    ["work", "combinations so far", "state"], ["loop", "a loop needs, in as many rounds"]]);
  const told = h("p", { class: "told" });
  const places = { rounds: h("div", { class: "grow" }), entry: h("div") };
  let place;
  let follow;
  let timer = null;

  const rounds = () => data.rounds[algorithm.value][size.value];
  const draw = () => {
    const [n, all, r] = [size.value, rounds(), place.value];
    const [x, row] = [(j) => ((j + 0.5) * WIDTH) / n, Math.max(9, Math.min(34, 290 / all.length))];
    const dot = Math.min(5, WIDTH / n / 4, row / 3);
    const y = (k) => 8 + k * row;
    const marks = (pairs, k) => pairs.map(([i, j]) => `<path d="M${x(i)} ${y(k)} L${x(j)} ${y(k + 1)} M${x(j)} ${y(k)} V${y(k + 1)}"/>
      <circle cx="${x(j)}" cy="${y(k + 1)}" r="${dot}" stroke="none"/>`).join("");
    const some = (from, to) => all.slice(from, to).map((pairs, k) => marks(pairs, from + k)).join("");
    tree.node.setAttribute("viewBox", `0 0 ${WIDTH} ${y(all.length) + 8}`);
    tree.part("columns").innerHTML = times(n, (j) => `<path d="M${x(j)} ${y(0)} V${y(all.length)}"/>`).join("");
    tree.part("done").innerHTML = some(0, Math.max(0, r - 1));
    tree.part("now").innerHTML = r ? some(r - 1, r) : "";
    tree.part("todo").innerHTML = some(r, all.length);
    const wanted = follow.value ? ancestors(all, follow.value - 1) : new Set();
    tree.part("path").innerHTML = all.flatMap((pairs, k) => pairs.filter(([i, j]) => wanted.has(`${k}:${i}:${j}`))
      .map(([i, j]) => `<path d="M${x(i)} ${y(k)} L${x(j)} ${y(k + 1)}"/>`)).join("");

    const first = firsts(all, n)[r];
    const written = new Set(r ? all[r - 1].map(([, j]) => j) : []);
    const [wide, high] = [WIDTH / n, BELOW / n];
    held.part("cells").innerHTML = first.flatMap((from, j) => times(j - from + 1, (k) =>
      `<rect x="${j * wide}" y="${(from + k) * high}" width="${wide - 1}" height="${high - 1}" fill="var(--${
        follow.value === j + 1 ? "input" : written.has(j) ? "attention" : "state"})"/>`)).join("");

    const count = (list) => list.reduce((a, pairs) => a + pairs.length, 0);
    const work = `${count(all.slice(0, r))} of ${count(all)}`;
    const complete = first.filter((from) => from === 0).length;
    numbers.set({ round: `${r} of ${all.length}`, now: String(r ? all[r - 1].length : 0), work, loop: String(n - 1) });
    const whose = follow.value ? `Entry ${follow.value} holds inputs ${first[follow.value - 1] + 1} to ${follow.value}` : `${complete} of ${n} entries are finished`;
    told.textContent = follow.value && wanted.size ? `${whose}; ${wanted.size === 1 ? "1 combination leads" : `${wanted.size} combinations lead`} to it in all.` : `${whose}.`;
    back.setAttribute("aria-disabled", r === 0);
    next.setAttribute("aria-disabled", r === all.length);
    tree.label(`${all.length} rounds of combinations on ${n} entries; ${r} are done.`);
    held.label(`Which inputs each of the ${n} entries holds: ${complete} hold all up to their own.`);
    say(`Round ${r} of ${all.length}, ${work} combinations. ${told.textContent}`);
    publish(model, { algorithm: algorithm.value, n, round: r, follow: follow.value, first });
  };

  const pause = () => {
    clearInterval(timer);
    timer = null;
    play.textContent = still() ? "Show all" : "Play";
  };
  const go = (r) => {
    place.value = Math.min(Math.max(r, 0), rounds().length);
    draw();
  };
  const start = () => {
    if (timer) { pause(); return; }
    if (still()) { go(rounds().length); return; }
    if (place.value === rounds().length) go(0);
    play.textContent = "Pause";
    timer = setInterval(() => {
      if (!play.isConnected || place.value === rounds().length) pause();
      else go(place.value + 1);
    }, 800);
  };
  const rebuild = () => { // how many rounds there are depends on both choices
    const all = rounds().length;
    const entry = Math.min(follow ? follow.value : data.follow, size.value);
    place = slider("Rounds done", times(all + 1, (r) => r), all, (r) => `${r} of ${all}`, () => { pause(); draw(); });
    follow = slider("Follow one entry", times(size.value + 1, (j) => j), entry, (j) => (j ? `entry ${j}` : "none"), draw);
    places.rounds.replaceChildren(place.node);
    places.entry.replaceChildren(follow.node);
    pause();
    draw();
  };

  const algorithm = choice("Algorithm", Object.keys(data.rounds).map((name) => [name, name]), data.algorithm, rebuild);
  const size = slider("Entries", data.lengths, data.length, String, rebuild);
  const back = h("button", { type: "button", onclick: () => { pause(); go(place.value - 1); } }, "Back");
  const next = h("button", { type: "button", onclick: () => { pause(); go(place.value + 1); } }, "Step");
  const play = h("button", { type: "button", onclick: start });
  const key = (colour, name) => h("span", {}, h("i", { style: `background: var(--${colour})` }), name);
  body.classList.add("two");
  body.append(
    h("div", { class: "wide" }, tree.box, h("p", { class: "legend" }, key("attention", "this round"),
      key("state", "done"), key("line", "still to come"), key("input", "what leads to the followed entry"))),
    h("div", { class: "row-of wide" }, back, next, play, places.rounds),
    h("div", { class: "stack" }, algorithm.node, size.node, places.entry, told),
    h("div", { class: "stack" }, h("div", {}, held.box, h("p", { class: "legend" },
      "What each entry (a column) holds, first input on top")), numbers.node));
  rebuild();
  return () => { pause(); stop(); };
}

export default { render };
