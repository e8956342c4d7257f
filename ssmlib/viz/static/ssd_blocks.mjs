import { bytes, h, publish, readout, slider, stage, svg, whole } from "./common.mjs";

const EDGE = 16; // room for the strips of x and y
const SIDE = 300; // of the matrix
const GRID = 64; // chunks up to which single blocks are drawn
const READ = { wide: 340, high: 120 };

const times = (k, f) => Array.from({ length: k }, (_, i) => f(i));
const plural = (k, one, more) => `${whole(k)} ${k === 1 ? one : more}`;

function flops(x) {
  const units = ["", " thousand", " million", " billion", " trillion"];
  const power = Math.min(4, Math.floor(Math.log10(x) / 3));
  return power ? `${(x / 1000 ** power).toPrecision(4)}${units[power]}` : whole(x);
}

const box = (x, y, w, high, colour, more = "") =>
  `<rect x="${x}" y="${y}" width="${w}" height="${high}" fill="var(--${colour})" ${more}/>`;
const text = (x, y, words, anchor = "middle", colour = "ink") =>
  `<text x="${x}" y="${y}" text-anchor="${anchor}" font-size="13" fill="var(--${colour})">${words}</text>`;

// The lower triangle: masked blocks on the diagonal, each half empty, and what lies below them.
function triangle(count) {
  const unit = SIDE / count;
  if (count > GRID) {
    const path = `M0 0 V${SIDE} H${SIDE} Z`;
    return `<path d="${path}" fill="var(--state)"/><path d="M0 0 L${SIDE} ${SIDE}" stroke="var(--attention)"/>`;
  }
  const gap = Math.min(1.5, unit / 8);
  const cells = times(count, (i) => times(i, (j) =>
    box(j * unit, i * unit, unit - gap, unit - gap, "state")).join("")
    + `<path d="M${i * unit} ${i * unit} v${unit - gap} h${unit - gap} Z" fill="var(--attention)"/>`);
  return cells.join("");
}

// A block and the two matrices that it is the product of, to one scale.
function asMatrix(chunk, state, diagonal) {
  const scale = Math.min(0.5, 88 / chunk, 70 / state);
  const [q, n] = [Math.max(6, chunk * scale), Math.max(6, state * scale)];
  const middle = (READ.high - 20) / 2;
  const square = (x) => (diagonal
    ? `<path d="M${x} ${middle - q / 2} v${q} h${q} Z" fill="var(--attention)"/>`
    : box(x, middle - q / 2, q, q, "state"));
  const parts = diagonal ? "C Bᵀ" : "aged C times aged Bᵀ";
  return `${square(10)}${text(q + 24, middle + 5, "=")}${diagonal ? text(q + 38, middle + 5, "mask ∘", "start") : ""}
    ${box(q + (diagonal ? 92 : 40), middle - q / 2, n, q, "linear")}
    ${box(q + n + (diagonal ? 100 : 48), middle - n / 2, q, n, "input")}
    ${text(10, READ.high - 4, `${parts}: (${chunk} × ${state}) (${state} × ${chunk})`, "start", "muted")}`;
}

// Chunks as boxes, and the state on its way from the one that is written to the one that reads.
function asStates(count, row, column) {
  const passed = row - column;
  const shown = Math.min(passed + 1, 5);
  const wide = 44;
  const at = (k) => 4 + k * (wide + 26);
  const name = (k) => (k < shown - 1 || passed === k ? column + k + 1 : row + 1);
  const parts = times(shown, (k) => {
    const last = k === shown - 1 && passed > 0;
    const skip = last && passed > shown - 1;
    const colour = k === 0 ? "input" : last ? "linear" : "line";
    const arrow = k ? `<path d="M${at(k) - 23} 40 h19 m-6 -5 l6 5 l-6 5" fill="none" stroke="var(--state)" stroke-width="2.5" ${skip ? 'stroke-dasharray="3 3"' : ""}/>` : "";
    return `${arrow}<rect x="${at(k)}" y="18" width="${wide}" height="44" rx="5" fill="none" stroke="var(--${colour})" stroke-width="2.5"/>${
      text(at(k) + wide / 2, 45, whole(name(k)))}`;
  });
  const under = passed ? text(at(0) + wide / 2, 80, "written") + text(at(shown - 1) + wide / 2, 80, "read")
    : text(at(0), 80, "a loop of its own", "start");
  return parts.join("") + under;
}

function render({ model, el }) {
  const data = model.get("data");
  const { body, say, stop } = stage(model, el, "A matrix in blocks, each read two ways");
  const total = EDGE + SIDE + 2;
  const picture = svg(total, total, `<g transform="translate(${EDGE} ${EDGE})">
    <g data-part="cells"></g>
    <rect data-part="x" y="-11" height="7" fill="var(--input)"/><rect data-part="y" x="-11" width="7" fill="var(--linear)"/>
    <rect data-part="block" fill="none" stroke="var(--ink)" stroke-width="2.5"/></g>`);
  const matrix = svg(READ.wide, READ.high, `<g data-part="factors"></g>`);
  const states = svg(READ.wide, 90, `<g data-part="chain"></g>`);
  const numbers = readout([
    ["steps", "chunks, one after the other"], ["flops", "FLOPs in matrix products"],
    ["masks", "numbers in masked blocks", "attention"], ["states", "numbers in states between chunks", "state"],
    ["apart", "bytes moved, four passes"], ["fused", "bytes moved, one pass"]]);
  const readings = { matrix: h("p", { class: "told" }), states: h("p", { class: "told" }) };
  const places = { row: h("div"), column: h("div") };
  let [row, column] = data.block.map((k) => k - 1);
  let rows;
  let columns;

  const tell = (chunk) => {
    const passed = row - column;
    const span = (k) => (chunk === 1 ? `token ${whole(k + 1)}`
      : `tokens ${whole(k * chunk + 1)} to ${whole((k + 1) * chunk)}`);
    if (!passed) {
      readings.matrix.textContent = chunk === 1 ? `As a matrix: one number, C·B of ${span(row)} with itself.`
        : `As a matrix: ${span(row)} read each other, ${chunk} × ${chunk} numbers under the mask. Step 1.`;
      readings.states.textContent = `As states: the recurrence through this chunk alone, from a state of zero.`;
      return;
    }
    const thin = chunk > data.state ? `of rank ${data.state} at most, a product of two thin matrices`
      : `with only ${data.state} numbers for each token of x in between, which all rows below share`;
    readings.matrix.textContent = `As a matrix: ${span(row)} read ${span(column)} by ${chunk} × ${chunk} numbers, ${thin}.`;
    readings.states.textContent = `As states: chunk ${whole(column + 1)} is written into a state of ${data.state} × ${
      data.head_dim} (step 2), the state ages over ${plural(passed - 1, "whole chunk", "whole chunks")} (step 3), and chunk ${
      whole(row + 1)} reads it (step 4).`;
  };

  const draw = () => {
    const chunk = size.value;
    const count = data.length / chunk;
    const unit = SIDE / count;
    const set = (name, values) => Object.entries(values).forEach(([key, value]) => picture.part(name).setAttribute(key, value));
    const seen = Math.max(unit, 3);
    set("block", { x: column * unit - 1, y: row * unit - 1, width: seen + 1, height: seen + 1 });
    set("x", { x: column * unit, width: seen });
    set("y", { y: row * unit, height: seen });
    matrix.part("factors").innerHTML = asMatrix(chunk, data.state, row === column);
    states.part("chain").innerHTML = asStates(count, row, column);
    tell(chunk);
    const cost = data.costs[chunk];
    numbers.set({ steps: whole(cost.steps), flops: flops(cost.flops), masks: whole(cost.masks),
      states: whole(cost.states), apart: bytes(cost.apart), fused: bytes(cost.fused) });
    picture.label(`${plural(count, "masked block", "masked blocks")} on the diagonal and ${
      plural((count * (count - 1)) / 2, "block", "blocks")} below it; marked is the one from chunk ${whole(column + 1)} to chunk ${whole(row + 1)}.`);
    matrix.label(readings.matrix.textContent);
    states.label(readings.states.textContent);
    say(`Chunks of ${whole(chunk)}: ${flops(cost.flops)} FLOPs. ${readings.matrix.textContent} ${readings.states.textContent}`);
    publish(model, { chunk, row: row + 1, column: column + 1, ...cost });
  };

  const choose = (i, j) => { // the sliders follow: a column lies at most at the row's diagonal
    [row, column] = [i, Math.min(j, i)];
    const words = (all) => (k) => `chunk ${whole(k + 1)} of ${whole(all)}`;
    const count = data.length / size.value;
    if (rows.value !== row) rows.value = row;
    columns = slider("Column: the chunk of x that is read", times(row + 1, (k) => k), column, words(count),
      () => { column = columns.value; draw(); });
    places.column.replaceChildren(columns.node);
    draw();
  };
  const rebuild = () => { // chunks of another size: the block keeps its place in the matrix
    const [count, before] = [data.length / size.value, rows ? rows.count : data.length / data.chunk];
    const moved = (k) => Math.min(count - 1, Math.floor(((k + 0.5) * count) / before));
    const [i, j] = [moved(row), moved(column)];
    picture.part("cells").innerHTML = triangle(count);
    rows = slider("Row: the chunk of y that is written", times(count, (k) => k), i,
      (k) => `chunk ${whole(k + 1)} of ${whole(count)}`, () => choose(rows.value, column));
    rows.count = count;
    places.row.replaceChildren(rows.node);
    choose(i, j);
  };
  const point = (event) => {
    const frame = picture.node.getBoundingClientRect();
    const count = data.length / size.value;
    const place = (from, start, extent) => Math.floor((((from - start) / extent) * total - EDGE) * (count / SIDE));
    const [j, i] = [place(event.clientX, frame.left, frame.width), place(event.clientY, frame.top, frame.height)];
    if (i >= 0 && i < count && j >= 0 && j <= i && (i !== row || j !== column)) choose(i, j);
  };
  picture.node.addEventListener("pointermove", point);
  picture.node.addEventListener("pointerdown", point);

  const size = slider("Chunk size", Object.keys(data.costs).map(Number), data.chunk, (q) => plural(q, "token", "tokens"), rebuild);
  const key = (colour, name) => h("span", {}, h("i", { style: `background: var(--${colour})` }), name);
  body.classList.add("two");
  body.append(
    h("div", { class: "stack" }, picture.box, h("p", { class: "legend" }, key("attention", "masked"),
      key("state", "low rank"), key("input", "x, across"), key("linear", "y, down"))),
    h("div", { class: "stack" }, size.node, places.row, places.column, numbers.node),
    h("div", { class: "stack" }, matrix.box, readings.matrix),
    h("div", { class: "stack" }, states.box, readings.states));
  rebuild();
  return stop;
}

export default { render };
