import { bytes, choice, h, publish, readout, slider, stage, svg, toggle } from "./common.mjs";

const [WIDE, HIGH] = [340, 250];
const AREA = { left: 38, right: 330, top: 10, bottom: 206 };

const percent = (share) => `${(100 * share).toFixed(1)} %`;
const text = (x, y, words, anchor, more = "") =>
  `<text x="${x}" y="${y}" text-anchor="${anchor}" font-size="12" fill="var(--muted)" ${more}>${words}</text>`;

// Round numbers of bytes from the first to the last: 1, 2 and 5 times powers of ten, or powers alone.
function ticks(low, high) {
  const steps = high / low > 300 ? [1] : high / low > 20 ? [1, 3] : [1, 2, 5];
  const made = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
    for (const k of steps) {
      const size = k * 10 ** power;
      if (size >= low && size <= high) made.push(size);
    }
  }
  return made;
}

// Those that no model of as many bytes or fewer beats; `models` are in order of their bytes.
function front(models, test) {
  let best = -1;
  const order = [...models].sort((a, b) => a.bytes - b.bytes || b.accuracy[test] - a.accuracy[test]);
  return order.filter((m) => {
    const ahead = m.accuracy[test] > best;
    if (ahead) best = m.accuracy[test];
    return ahead;
  });
}

function mark([x, y], colour, shape, size, more = "") {
  const style = `stroke="var(--${colour})" fill="var(--${shape === "circle" ? colour : "paper"})" stroke-width="2" ${more}`;
  return shape === "circle" ? `<circle cx="${x}" cy="${y}" r="${size}" ${style}/>`
    : `<rect x="${x - size}" y="${y - size}" width="${2 * size}" height="${2 * size}" ${style}/>`;
}

function render({ model, el }) {
  const { tests, families, models, ...first } = model.get("data");
  const { body, say, stop } = stage(model, el, "Recall against bytes of state");
  const look = Object.fromEntries(families.map(([key, name, colour, shape]) => [key, { name, colour, shape }]));
  const sizes = models.map((m) => m.bytes);
  const [low, high] = [Math.min(...sizes) / 1.4, Math.max(...sizes) * 1.4];
  const at = (size, share) => [
    AREA.left + (Math.log(size / low) / Math.log(high / low)) * (AREA.right - AREA.left),
    AREA.bottom - share * (AREA.bottom - AREA.top)];
  const grid = [0, 0.25, 0.5, 0.75, 1].map((share) => {
    const y = at(low, share)[1];
    return `<path d="M${AREA.left} ${y} H${AREA.right}" stroke="var(--line)"/>${text(AREA.left - 5, y + 4, `${100 * share} %`, "end")}`;
  }).join("") + ticks(low, high).map((size) => {
    const x = at(size, 0)[0];
    return `<path d="M${x} ${AREA.bottom} v5" stroke="var(--muted)"/>${text(x, AREA.bottom + 19, bytes(size).replace(/\.?0+ /, " "), "middle")}`;
  }).join("") + text((AREA.left + AREA.right) / 2, HIGH - 6, "bytes of state for one sequence", "middle");
  const picture = svg(WIDE, HIGH, `${grid}<path data-part="chance" stroke="var(--muted)" stroke-dasharray="5 4"/>
    <path data-part="front" fill="none" stroke="var(--muted)" stroke-width="1.5"/>
    <g data-part="points"></g><g data-part="chosen"></g>`);
  const told = h("p", { class: "told" });
  const numbers = readout([["model", "model"], ["bytes", "bytes of state"], ["share", "right answers"],
    ["interval", "95 % interval"], ["seeds", "seeds"], ["lr", "learning rate"], ["shown", "models shown"]]);
  const room = h("div");
  let chosen = models[first.model];
  let place;

  const shown = () => models.filter((m) => shows[m.family].value);
  const label = (m) => `${look[m.family].name}, ${m.name}`;

  const draw = () => {
    const test = Number(asked.value);
    const some = shown();
    const ahead = front(some, test);
    const spot = (m) => at(m.bytes, m.accuracy[test]);
    picture.part("chance").setAttribute("d", `M${AREA.left} ${at(low, tests[test].chance)[1]} H${AREA.right}`);
    picture.part("front").setAttribute("d", ahead.map((m, i) => {
      const [x, y] = spot(m);
      return i ? `H${x} V${y}` : `M${x} ${y}`;
    }).join(" ") + (ahead.length ? ` H${AREA.right}` : ""));
    picture.part("points").innerHTML = some.map((m) => mark(spot(m), look[m.family].colour, look[m.family].shape, 4)).join("");
    if (!some.includes(chosen)) {
      picture.part("chosen").innerHTML = "";
      numbers.set({ model: "none", bytes: "none", share: "none", interval: "none", seeds: "none", lr: "none", shown: `0 of ${models.length}` });
      told.textContent = "No family is shown.";
      picture.label("No model is shown.");
      say(told.textContent);
      return;
    }
    const [x, y] = spot(chosen);
    const [least, most] = [chosen.low[test], chosen.high[test]];
    const whisker = least === null ? "" : `<path d="M${x} ${at(low, least)[1]} V${at(low, most)[1]}" stroke="var(--ink)" stroke-width="2"/>`;
    picture.part("chosen").innerHTML = `${whisker}${mark([x, y], "ink", look[chosen.family].shape, 7, 'fill-opacity="0"')}`;
    numbers.set({ model: label(chosen), bytes: bytes(chosen.bytes), share: percent(chosen.accuracy[test]),
      interval: least === null ? "none, of one seed" : `${percent(least)} to ${percent(most)}`, seeds: String(chosen.seeds),
      lr: `${chosen.lr}, of ${chosen.lrs} tried`, shown: `${some.length} of ${models.length}` });
    const better = some.filter((m) => m.bytes <= chosen.bytes && m.accuracy[test] > chosen.accuracy[test]);
    const best = better.sort((a, b) => b.accuracy[test] - a.accuracy[test])[0];
    told.textContent = best ? `With no more bytes, ${label(best)} gets ${percent(best.accuracy[test])}.`
      : "No model shown gets more right with as many bytes or fewer.";
    picture.label(`${some.length} models, asked about ${tests[test].name}; chosen is ${label(chosen)}: ${bytes(chosen.bytes)}, ${percent(chosen.accuracy[test])} right.`);
    say(`${label(chosen)}: ${bytes(chosen.bytes)}, ${percent(chosen.accuracy[test])} right. ${told.textContent}`);
    publish(model, { model: label(chosen), bytes: chosen.bytes, accuracy: chosen.accuracy[test], test });
  };

  const rebuild = () => { // the slider has the models that are shown; the chosen one stays, if it can
    const some = shown();
    if (some.length && !some.includes(chosen)) {
      chosen = some.reduce((a, b) => (Math.abs(b.bytes - chosen.bytes) < Math.abs(a.bytes - chosen.bytes) ? b : a));
    }
    if (some.length) {
      place = slider("Model, by bytes", some.map((_, i) => i), some.indexOf(chosen),
        (i) => `${i + 1} of ${some.length}`, () => { chosen = some[place.value]; draw(); });
      room.replaceChildren(place.node);
    } else room.replaceChildren();
    draw();
  };
  const point = (event) => {
    const frame = picture.node.getBoundingClientRect();
    const [x, y] = [((event.clientX - frame.left) / frame.width) * WIDE, ((event.clientY - frame.top) / frame.height) * HIGH];
    const test = Number(asked.value);
    const away = (m) => { const [a, b] = at(m.bytes, m.accuracy[test]); return Math.hypot(a - x, b - y); };
    const some = shown();
    if (!some.length) return;
    const nearest = some.reduce((a, b) => (away(b) < away(a) ? b : a));
    if (away(nearest) < 16 && nearest !== chosen) {
      chosen = nearest;
      place.value = some.indexOf(chosen);
      draw();
    }
  };
  picture.node.addEventListener("pointermove", point);
  picture.node.addEventListener("pointerdown", point);

  const asked = choice("Asked about", tests.map((t, i) => [String(i), t.name]), String(first.test), draw);
  const shows = Object.fromEntries(families.map(([key, name]) => [key, toggle(name, true, rebuild)]));
  for (const [key, , colour, shape] of families) {
    const sign = h("i", { style: shape === "circle" ? `background: var(--${colour}); border-radius: 50%`
      : `border: 2.5px solid var(--${colour})` });
    shows[key].node.insertBefore(sign, shows[key].node.lastChild);
  }
  body.classList.add("two");
  body.append(
    h("div", { class: "stack" }, picture.box, told),
    h("div", { class: "stack" }, asked.node, room, numbers.node),
    h("div", { class: "wide row-of", style: "gap: 4px 22px" }, ...families.map(([key]) => shows[key].node)));
  rebuild();
  return stop;
}

export default { render };
