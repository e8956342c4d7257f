"""A page as a reader opens it, and what went wrong while it was open."""

from urllib.parse import urlsplit

# sphinx-thebe loads its script twice, and the theme complains of a mode nobody has chosen yet.
THEME_NOISE = ("Identifier 'THEBE_JS_URL' has already been declared", "Got invalid theme mode")

# (axe's rule, what the element's HTML begins with): faults of the tools that write the pages, each
# as narrow as its element. The theme puts its logo outside of every landmark; docutils gives a
# citation a role that is deprecated, and links back from inside a list of such roles.
TOOLS_FAULTS = (
    ("region", '<img src="../_static/logo.svg"'),
    ("aria-allowed-role", '<div class="citation" '),
    ("aria-deprecated-role", '<div class="citation" '),
    ("aria-required-children", '<div role="list" class="citation-list">'),
)


class Visit:
    """A page in a context of its own, in which nothing but this machine can be reached.

    page: Playwright's page. left: requests that wanted to leave the machine, and were stopped.
    errors: what the console and the scripts complained of, less the theme's own noise.
    """

    def __init__(
        self, browser, url: str, *, width=1280, theme="light", scripts=True, reduced_motion=False
    ):
        self.left: list[str] = []
        self.errors: list[str] = []
        self.url = url
        self._context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=theme,
            java_script_enabled=scripts,
            reduced_motion="reduce" if reduced_motion else "no-preference",
        )
        self._context.set_default_timeout(10_000)
        self._context.route("**/*", self._route)
        self.page = self._context.new_page()
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self._note(str(error)))

    def __enter__(self) -> "Visit":
        self.page.goto(self.url, wait_until="load")
        return self

    def __exit__(self, *exception: object) -> None:
        self._context.close()

    def _route(self, route) -> None:
        address = urlsplit(route.request.url)
        if address.scheme in ("data", "blob") or address.hostname == "127.0.0.1":
            route.continue_()
        else:
            self.left.append(route.request.url)
            route.abort()

    def _console(self, message) -> None:
        if message.type in ("error", "warning"):
            self._note(f"{message.text} ({message.location.get('url', '')})")

    def _note(self, text: str) -> None:
        if not any(noise in text for noise in THEME_NOISE):
            self.errors.append(text)

    def figure(self, name: str):
        """The first interactive figure of that name, once it stands."""
        figure = self.page.locator(f"[data-lt-name={name}]").first
        figure.locator(".lt-live").wait_for()
        figure.locator("img").wait_for(state="detached")
        return figure

    def overflow(self, width: int) -> int:
        """By how many pixels the page is wider than a window of that width."""
        self.page.set_viewport_size({"width": width, "height": 900})
        return self.page.evaluate(
            "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() =>"
            " done(document.documentElement.scrollWidth - document.documentElement.clientWidth))))"
        )

    def axe(self, *only: str) -> list[str]:
        """axe-core's violations that are ours: rule, element and reason; of some rules, or all."""
        from axe_playwright_python.sync_playwright import Axe

        # preload would fetch style sheets from where they are not; the rest is for speed.
        options = {"preload": False, "resultTypes": ["violations"]}
        options |= {"runOnly": list(only)} if only else {}
        rules = Axe().run(self.page, options=options).response["violations"]
        return [
            f"{rule['id']}: {node['html']} {node['failureSummary']}"
            for rule in rules
            for node in rule["nodes"]
            if not any(rule["id"] == r and node["html"].startswith(h) for r, h in TOOLS_FAULTS)
        ]
