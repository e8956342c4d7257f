"""An interactive figure, hosted two ways: inlined in a page without a kernel, or as a live widget.

A figure is one ES module in `static/`, in anywidget's form (`export default { render }`), and the
JSON it draws. As a notebook output it carries everything it needs: the module, the data, and a
still picture for where scripts do not run.
"""

import base64
import hashlib
import html
import io
import json
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssmlib.palette import PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Still

STATIC = Path(__file__).parent / "static"

# Finds its own figures, so that no id can occur twice; the still picture goes only after a render.
BOOT = """\
(() => {
  const boxes = document.querySelectorAll('[data-lt-figure="%(uid)s"]:not([data-lt-ready])');
  const { module, state } = %(payload)s;
  const url = URL.createObjectURL(new Blob([module], { type: "text/javascript" }));
  const model = () => {
    const values = { ...state };
    return { get: (key) => values[key], set: (key, value) => { values[key] = value; },
      save_changes() {}, on() {}, off() {} };
  };
  for (const box of boxes) {
    box.setAttribute("data-lt-ready", "");
    import(url).then(async (figure) => {
      const el = document.createElement("div");
      box.prepend(el);
      await figure.default.render({ model: model(), el });
      box.querySelector("img").remove();
    }).catch((error) => console.error("%(name)s: the still picture stays", error));
  }
})();"""


@dataclass(frozen=True)
class Figure:
    """One interactive figure; show it by making it the last line of a cell.

    name: the module in `static/`. data: what it draws, as JSON. alt: the still picture in words.
    caption: what to move and what to see. draw: makes the still picture, a Matplotlib figure.
    """

    name: str
    data: dict[str, Any]
    alt: str
    caption: str
    draw: Callable[[], "Still"]

    @property
    def uid(self) -> str:
        """Eight hexadecimal digits that depend on the figure's content alone."""
        content = json.dumps([self.name, self.data, self.alt, self.caption], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:8]

    @cached_property
    def png(self) -> bytes:
        """The still picture."""
        still, file = self.draw(), io.BytesIO()
        with warnings.catch_warnings():  # a token may be in a script that Matplotlib's font lacks
            told = "Glyph .* missing|Matplotlib currently does not support"
            warnings.filterwarnings("ignore", told, UserWarning)
            still.savefig(file, format="png", dpi=120, metadata={"Software": None})
        return file.getvalue()

    def html(self) -> str:
        """The figure as a piece of a page: no file, no network, no id."""
        state = self._state() | {"caption": ""}  # it stands below, scripts or no scripts
        payload = json.dumps({"module": source(self.name), "state": state}, ensure_ascii=False)
        script = BOOT % {
            "uid": self.uid,
            "name": self.name,
            "payload": payload.replace("<", "\\u003c"),  # no "</script>", no "<!--"
        }
        picture = base64.b64encode(self.png).decode()
        return (
            f'<figure class="lt-figure" data-lt-figure="{self.uid}" data-lt-name="{self.name}"'
            ' style="margin: 0">\n'
            f'<img class="lt-still" alt="{html.escape(self.alt)}"'
            ' style="max-width: 100%; height: auto; border-radius: 8px"'
            f' src="data:image/png;base64,{picture}">\n'
            f"<script>{script}</script>\n"
            f"<figcaption>{html.escape(self.caption)}</figcaption>\n</figure>"
        )

    def widget(self) -> Any:
        """The same figure as an `anywidget`, whose `value` follows the controls.

        Raises ImportError without the anywidget package.
        """
        try:
            import anywidget
            import traitlets
        except ImportError as error:
            raise ImportError(
                "widget() needs the anywidget package: pip install 'ssmlib[live]'"
            ) from error

        traits = {key: traitlets.Any().tag(sync=True) for key in (*self._state(), "value")}
        kind = type(self.name, (anywidget.AnyWidget,), {"_esm": source(self.name), **traits})
        return kind(value={}, **self._state())

    def _state(self) -> dict[str, Any]:
        css = (STATIC / "figure.css").read_text(encoding="utf-8")
        return {"data": self.data, "caption": self.caption, "palette": PALETTE, "css": css}

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        picture = base64.b64encode(self.png).decode()
        return {"text/html": self.html(), "image/png": picture, "text/plain": self.alt}


def source(name: str) -> str:
    """The figure's module with what it imports from common.mjs written in front: one file."""
    common = (STATIC / "common.mjs").read_text(encoding="utf-8")
    module = (STATIC / f"{name}.mjs").read_text(encoding="utf-8")
    common = re.sub(r"^export ", "", common, flags=re.MULTILINE)
    return common + re.sub(r'^import \{[^}]*\} from "\./common\.mjs";\n', "", module)
