// What every figure shares. The host writes this in front of the figure's own module, since a module
// that came from a notebook's output has no siblings to import.

export function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

// An <svg> from markup; the HTML parser knows its namespace. `label` is what a screen reader says.
export function svg(width, height, markup = "") {
  const box = h("div", { class: "picture" });
  box.innerHTML = `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="">${markup}</svg>`;
  const node = box.firstElementChild;
  return { box, node, part: (name) => node.querySelector(`[data-part="${name}"]`),
    label: (text) => node.setAttribute("aria-label", text) };
}

let serial = 0;

function labelled(text, control, output) {
  control.id = `c${(serial += 1)}`;
  return h("div", { class: "control" },
    h("label", { for: control.id }, text), ...(output ? [output] : []), control);
}

// A range input over the marks, `start` among them; the thumb's place is an index into them, and
// `format` says the value in words.
export function slider(text, marks, start, format, change) {
  const values = [...new Set([...marks, start])].sort((a, b) => a - b);
  const input = h("input", { type: "range", min: 0, max: values.length - 1, step: 1 });
  const output = h("span", { class: "value", "aria-hidden": "true" });
  const api = { node: labelled(text, input, output), get value() { return values[input.value]; },
    set value(v) { input.value = values.indexOf(v); show(); } };
  const show = () => {
    output.textContent = format(api.value);
    input.setAttribute("aria-valuetext", output.textContent);
    input.style.setProperty("--filled", `${(100 * input.value) / Math.max(1, values.length - 1)}%`);
  };
  input.addEventListener("input", () => { show(); change(); });
  api.value = start;
  return api;
}

export function choice(text, options, start, change) {
  const select = h("select", { onchange: change },
    ...options.map(([value, name]) => h("option", { value, selected: value === start }, name)));
  return { node: labelled(text, select), get value() { return select.value; } };
}

export function toggle(text, start, change) {
  const input = h("input", { type: "checkbox", checked: start, onchange: change });
  return { node: h("label", { class: "toggle" }, input, text), get value() { return input.checked; } };
}

// A list of named numbers: readout([["key", "label", "colour"], ...]).set({ key: "text" })
export function readout(rows) {
  const cells = {};
  const node = h("dl", {});
  for (const [key, label, colour] of rows) {
    cells[key] = h("dd", { "data-value": key });
    node.append(h("div", { class: "row" },
      h("dt", {}, ...(colour ? [h("i", { style: `background: var(--${colour})` })] : []), label),
      cells[key]));
  }
  const set = (texts) => Object.entries(texts).forEach(([k, text]) => { cells[k].textContent = text; });
  return { node, set };
}

export const whole = (x) => Math.round(x).toLocaleString("en-US");

export function bytes(x) {
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  const power = x < 1000 ? 0 : Math.min(5, Math.floor(Math.log10(x) / 3));
  return `${power ? (x / 1000 ** power).toPrecision(4) : whole(x)} ${units[power]}`;
}

// Whether what lies behind the node is dark; where nothing is painted, whether its text is light.
function onDark(node) {
  const pen = h("canvas", { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true });
  const read = (colour) => {
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = colour;
    pen.fillRect(0, 0, 1, 1);
    const [r, g, b, alpha] = pen.getImageData(0, 0, 1, 1).data;
    return { light: 0.299 * r + 0.587 * g + 0.114 * b > 127, alpha };
  };
  for (let e = node; e; e = e.parentElement ?? e.getRootNode().host) {
    const behind = read(getComputedStyle(e).backgroundColor);
    if (behind.alpha > 127) return !behind.light;
  }
  return read(getComputedStyle(node).color).light;
}

// The figure's own tree, in the book's colours: { body, say, stop }. `say` is for screen readers, and
// waits until the reader has stopped moving things.
export function stage(model, el, title) {
  const palette = Object.entries(model.get("palette"));
  const colours = (i) => palette.map(([k, pair]) => `--${k}: var(--lt-${k}, ${pair[i]});`).join(" ");
  const host = h("div", { class: "lt-live" });
  const root = host.attachShadow({ mode: "open" });
  const style = h("style");
  style.textContent = `.lt { ${colours(0)} }\n.lt.dark { ${colours(1)} }\n${model.get("css")}`;
  const heard = h("p", { class: "hidden", "aria-live": "polite" });
  const body = h("div", { class: "body" });
  const frame = h("div", { class: "lt", role: "group", "aria-label": title }, body, heard);
  if (model.get("caption")) frame.append(h("p", { class: "caption" }, model.get("caption")));
  root.append(style, frame);
  el.append(host);

  const paint = () => frame.classList.toggle("dark", onDark(host));
  const watch = new MutationObserver(() => requestAnimationFrame(paint));
  for (const node of [document.documentElement, document.body]) {
    watch.observe(node, { attributes: true, attributeFilter: ["data-theme", "class", "style", "theme",
      "data-jp-theme-light", "data-vscode-theme-kind"] });
  }
  paint();
  let timer;
  const say = (text) => {
    clearTimeout(timer);
    timer = setTimeout(() => { heard.textContent = text; }, 500);
  };
  return { body, say, stop: () => { clearTimeout(timer); watch.disconnect(); } };
}

// Tell Python, where one listens, what the controls now say.
export function publish(model, value) {
  model.set("value", value);
  model.save_changes();
}
