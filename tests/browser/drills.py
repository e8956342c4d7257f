"""What a reader does with each figure, by keyboard and by mouse, and the numbers that must show.

A drill takes a figure as a Playwright locator, whatever it started from.
"""

import math

from playwright.sync_api import Locator, expect


def value(figure: Locator, key: str) -> str:
    return figure.locator(f"[data-value={key}]").inner_text()


def shows(figure: Locator, key: str, text: str) -> None:
    expect(figure.locator(f"[data-value={key}]")).to_have_text(text)


def number(text: str) -> float:
    return float(text.replace("−", "-").replace(",", "").split()[0])


def said(slider: Locator) -> str:
    return slider.get_attribute("aria-valuetext")


def turn(slider: Locator, wanted: str) -> None:
    """By keyboard: to the slider's first mark, then right until it says `wanted`."""
    slider.press("Home")
    for _ in range(int(slider.get_attribute("max"))):
        if said(slider) == wanted:
            return
        slider.page.keyboard.press("ArrowRight")
    assert said(slider) == wanted


def click_at(slider: Locator, part: float) -> None:
    """By mouse: on the slider's track."""
    box = slider.bounding_box()
    slider.click(position={"x": 2 + part * (box["width"] - 4), "y": box["height"] / 2})


def drag(picture: Locator, start: tuple[float, float], end: tuple[float, float]) -> None:
    """By mouse: from one place in the picture to another, each in parts of its width and height."""
    picture.scroll_into_view_if_needed()
    box, mouse = picture.bounding_box(), picture.page.mouse
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in (start, end)]
    mouse.move(*places[0])
    mouse.down()
    mouse.move(*places[1], steps=8)
    mouse.up()


def attention_grid(figure: Locator) -> None:
    tokens = figure.get_by_label("Tokens n")
    turn(tokens, "64")
    shows(figure, "scores", "4,096")
    shows(figure, "causal", "2,080")
    shows(figure, "bytes", "8.192 kB")
    assert "64 by 64" in figure.get_by_role("img").get_attribute("aria-label")
    state = value(figure, "state")
    tokens.press("End")
    n = int(number(said(tokens)))
    shows(figure, "scores", f"{n * n:,}")
    shows(figure, "state", state)
    click_at(tokens, 0.5)
    middle = int(number(said(tokens)))
    assert 8 < middle < n
    shows(figure, "scores", f"{middle * middle:,}")
    figure.get_by_role("button", name="8 tokens", exact=True).click()
    shows(figure, "scores", "64")
    causal = figure.get_by_role("checkbox")
    path = figure.locator("[data-part=kept]")
    before = path.get_attribute("d")
    causal.press("Space")
    assert path.get_attribute("d") != before
    causal.check()
    assert path.get_attribute("d") == before


def kv_calculator(figure: Locator) -> None:
    figure.get_by_label("Model").select_option("Llama-3-70B")
    figure.get_by_label("Cache in").select_option("bfloat16")
    figure.get_by_label("Weights in").select_option("bfloat16")
    requests, context = figure.get_by_label("Requests"), figure.get_by_label("Context")
    turn(requests, "1")
    turn(context, "131,072")
    shows(figure, "cache", "42.95 GB")
    shows(figure, "token", "327,680 B")
    shows(figure, "weights", "141.1 GB")
    shows(figure, "gpus", "3")
    shows(figure, "one", "0")
    shows(figure, "eight", "11")
    click_at(requests, 1)
    shows(figure, "cache", "11.00 TB")
    turn(requests, "1")
    figure.get_by_label("Weights in").select_option("int4")
    shows(figure, "one", "1")
    figure.get_by_label("Model").select_option("Mamba-2.8B")
    shows(figure, "cache", "0 B")
    state = value(figure, "state")
    context.press("End")
    shows(figure, "state", state)


def dt_dial(figure: Locator) -> None:
    step, real = figure.get_by_label("Step size"), figure.get_by_label("real part")
    figure.get_by_label("Rule").select_option("zoh")
    turn(figure.get_by_label("imaginary part"), "0")
    turn(real, "−1")
    for dt in ("0.01", "0.1", "1"):
        turn(step, dt)
        assert math.isclose(number(value(figure, "half")), math.log(2) / float(dt), rel_tol=1e-3)
        assert math.isclose(number(value(figure, "a_bar")), math.exp(-float(dt)), rel_tol=1e-3)
    point = figure.locator("[data-part=point]")
    right = float(point.get_attribute("cx"))
    click_at(step, 1)
    assert number(said(step)) == 10
    assert float(point.get_attribute("cx")) < right
    figure.get_by_label("Rule").select_option("euler")
    shows(figure, "a_bar", "−9")
    shows(figure, "half", "none")
    expect(figure.get_by_text("Unstable")).to_be_visible()


def state_heatmap(figure: Locator) -> None:
    place = figure.get_by_label("Tokens read")
    total = int(place.get_attribute("max")) + 1
    back, step = (figure.get_by_role("button", name=name, exact=True) for name in ("Back", "Step"))
    now = figure.locator("tr.now")
    turn(place, f"1 of {total}")
    back.press("Enter")
    assert said(place) == f"1 of {total}"
    step.click()
    step.press("Enter")
    assert said(place) == f"{min(3, total)} of {total}"
    back.click()
    assert said(place) == f"{min(2, total)} of {total}"
    assert now.count() == 1
    assert now.get_by_role("rowheader").inner_text() in figure.locator(".told").inner_text()
    assert figure.locator("tr.unread").count() == total - min(2, total)
    cells = now.locator("td").count()
    figure.locator("summary").click()
    assert figure.locator(".numbers span").count() == cells
    place.press("End")
    step.press("Enter")
    assert said(place) == f"{total} of {total}"
    assert now.locator("td").count() == cells
    figure.locator("summary").click()


def hippo_draw(figure: Locator) -> None:
    def control(name: str) -> Locator:
        return figure.get_by_label(name, exact=True)

    read, picture = control("Inputs read"), figure.get_by_role("img").first
    control("Signal").select_option("waves")
    control("Measure").select_option("legs")
    turn(control("Numbers n"), "16")
    read.press("End")
    coarse = number(value(figure, "old"))
    turn(control("Numbers n"), "64")
    shows(figure, "kept", "64")
    assert number(value(figure, "old")) < coarse / 10
    control("Measure").select_option("warped")
    assert number(value(figure, "new")) < number(value(figure, "old")) / 10
    control("Measure").select_option("legt")
    turn(control("Window or fading time, in inputs"), "80")
    shows(figure, "old", "not kept")
    control("Measure").select_option("legs")
    signal = figure.locator("[data-part=signal]")
    before = signal.get_attribute("points")
    drag(picture, (0.2, 0.2), (0.6, 0.8))
    assert signal.get_attribute("points") != before
    assert control("Signal").input_value() == "drawn"
    turn(read, "1")
    figure.get_by_role("button", name="Play").press("Enter")
    expect(figure.locator("[data-value=inputs]")).not_to_have_text("1 of 240")
    figure.get_by_role("button", name="Pause").press("Enter")


def s4_kernel(figure: Locator) -> None:
    def control(name: str) -> Locator:
        return figure.get_by_label(name, exact=True)

    step, weights = control("Step size Δ"), control("Weights C")
    control("Start").select_option("legs")
    turn(control("State size n"), "16")
    turn(control("Pole"), "1")
    weights.select_option("ones")
    shows(figure, "miss", "not fitted")
    for dt in ("0.008", "0.016", "0.128"):
        turn(step, dt)  # the real part of every pole is -1/2
        half = number(value(figure, "half"))
        assert math.isclose(half, 2 * math.log(2) / float(dt), rel_tol=6e-3)
    weights.select_option("echo")
    turn(control("State size n"), "32")
    assert number(value(figure, "miss")) > 0.8
    turn(step, "0.016")
    assert number(value(figure, "miss")) < 0.1
    control("Start").select_option("real")
    assert number(value(figure, "miss")) > 0.5
    shows(figure, "period", "none")
    poles = figure.locator("[data-part=poles]")
    before = poles.inner_html()
    turn(control("Set its turn, degrees per step"), "30")
    shows(figure, "period", "12")
    assert control("Start").input_value() == "moved"
    assert poles.inner_html() != before
    turn(control("Set its half-life, in steps"), "10")
    shows(figure, "half", "10")
    kernel = figure.locator("[data-part=kernel]")
    drawn = kernel.get_attribute("points")
    drag(figure.get_by_role("img").first, (0.8, 0.3), (0.5, 0.08))
    assert kernel.get_attribute("points") != drawn
    assert number(value(figure, "period")) < 5
    control("Signal").select_option("waves")
    control("Start").select_option("lin")
    assert control("Start").input_value() == "lin"
    turn(control("State size n"), "2")
    assert poles.locator("circle").count() == 1


def selection_dial(figure: Locator) -> None:
    def control(name: str) -> Locator:
        return figure.get_by_label(name, exact=True)

    step, presets = control("Its step Δ"), control("All steps")
    control("Rule").select_option("zoh")
    turn(control("Eigenvalue a"), "−1")
    presets.select_option("alike")
    turn(control("Token"), "Ada")
    aged = number(value(figure, "share"))
    turn(step, "5")
    assert math.isclose(number(value(figure, "a_bar")), math.exp(-5), rel_tol=5e-3)
    assert presets.input_value() == "own"
    expect(figure.locator(".told")).to_contain_text("It resets")
    fresh = number(value(figure, "share"))
    presets.select_option("filler")
    assert aged < fresh < number(value(figure, "share"))
    presets.select_option("door")
    assert number(value(figure, "share")) > 98
    control("Rule").select_option("exponential_euler")
    shows(figure, "b_bar", "5")
    control("Rule").select_option("bilinear")
    expect(figure.locator(".told")).to_contain_text("That is no reset")
    control("Rule").select_option("zoh")
    turn(control("Eigenvalue a"), "0.25")
    expect(figure.locator(".told")).to_contain_text("It grows")
    turn(control("Eigenvalue a"), "−1")
    picture = figure.get_by_role("img").first
    drag(picture, (6.5 / 8, 0.51), (6.5 / 8, 0.32))  # in the row of steps, upwards
    assert said(control("Token")) == "call"
    assert number(said(step)) > 5
    drag(picture, (0.5 / 8, 0.1), (0.5 / 8, 0.12))  # elsewhere a press only chooses
    assert said(control("Token")) == "my"
    assert number(said(step)) == 0.001


def selection_text(figure: Locator) -> None:
    place, rows = (figure.get_by_label(name, exact=True) for name in ("Byte", "Steps of"))
    total = int(place.get_attribute("max")) + 1
    now = figure.locator(".bytes .now")
    place.press("Home")
    assert said(place) == f"1 of {total}"
    expect(figure.locator(".told")).to_contain_text("Byte 1:")
    first = value(figure, "step")
    place.press("ArrowRight")
    assert now.count() == 1
    assert math.isclose(
        number(value(figure, "half")), math.log(2) / number(value(figure, "step")), rel_tol=2e-2
    )
    figure.locator(".bytes span").first.click()
    shows(figure, "step", first)
    shade = now.get_attribute("style")
    options = rows.locator("option").count()
    rows.select_option(index=options - 1)
    assert (now.get_attribute("style") != shade) == (options > 1)
    assert number(value(figure, "range")) >= 1
    assert rows.locator("option:checked").inner_text() in figure.get_by_role(
        "img"
    ).first.get_attribute("aria-label")


def scan_tree(figure: Locator) -> None:
    def control(name: str) -> Locator:
        return figure.get_by_label(name, exact=True)

    back, step = (figure.get_by_role("button", name=name, exact=True) for name in ("Back", "Step"))
    turn(control("Entries"), "8")
    turn(control("Follow one entry"), "none")
    for name, rounds, work in (
        ("loop", 7, 7),
        ("Hillis–Steele", 3, 17),
        ("Blelloch", 5, 11),
        ("chunks of four", 5, 10),
    ):
        control("Algorithm").select_option(name)
        assert said(control("Rounds done")) == f"{rounds} of {rounds}"
        shows(figure, "work", f"{work} of {work}")
        expect(figure.locator(".told")).to_have_text("8 of 8 entries are finished.")
        assert figure.locator("[data-part=cells] rect").count() == 36
        turn(control("Rounds done"), f"0 of {rounds}")
        assert figure.locator("[data-part=cells] rect").count() == 8
        back.press("Enter")
        step.press("Enter")
        shows(figure, "round", f"1 of {rounds}")
        back.click()
        shows(figure, "work", f"0 of {work}")
    turn(control("Follow one entry"), "entry 6")
    control("Algorithm").select_option("Blelloch")
    expect(figure.locator(".told")).to_contain_text("inputs 1 to 6; 5 combinations lead to it")
    assert figure.locator("[data-part=path] path").count() == 5
    click_at(control("Rounds done"), 0.5)
    assert 0 < int(said(control("Rounds done")).split()[0]) < 5
    turn(control("Entries"), "2")
    shows(figure, "work", "1 of 1")
    assert said(control("Follow one entry")) == "entry 2"
    turn(control("Rounds done"), "0 of 1")
    figure.get_by_role("button", name="Play").press("Enter")
    expect(figure.locator("[data-value=round]")).to_have_text("1 of 1")
    turn(control("Entries"), "16")


def ssd_blocks(figure: Locator) -> None:
    def control(name: str) -> Locator:
        return figure.get_by_label(name)

    size = control("Chunk size")
    matrix = figure.locator("[data-part=cells] >> xpath=ancestor::*[name()='svg']")
    turn(size, "256 tokens")
    row, column = control("Row"), control("Column")
    turn(row, "chunk 6 of 8")
    turn(column, "chunk 3 of 8")
    shows(figure, "steps", "8")
    shows(figure, "masks", "524,288")
    shows(figure, "states", "65,536")
    assert figure.locator("[data-part=cells] rect").count() == 28
    told = figure.locator(".told")
    expect(told.first).to_contain_text("tokens 1,281 to 1,536 read tokens 513 to 768")
    expect(told.last).to_contain_text("ages over 2 whole chunks")
    assert "from chunk 3 to chunk 6" in matrix.get_attribute("aria-label")
    turn(row, "chunk 1 of 8")  # the column stays on or below the diagonal
    assert said(column) == "chunk 1 of 8"
    expect(told.first).to_contain_text("under the mask")
    turn(size, "1 token")
    shows(figure, "steps", "2,048")
    turn(size, "2,048 tokens")
    shows(figure, "steps", "1")
    assert said(row) == said(column) == "chunk 1 of 1"
    click_at(size, 0.8)
    turn(size, "512 tokens")
    matrix.scroll_into_view_if_needed()
    picture = matrix.bounding_box()
    place = {"x": 0.2 * picture["width"], "y": 0.9 * picture["height"]}
    matrix.click(position=place)
    assert (said(row), said(column)) == ("chunk 4 of 4", "chunk 1 of 4")
    matrix.click(position={"x": place["y"], "y": place["x"]})  # nothing lies above the diagonal
    assert said(row) == "chunk 4 of 4"


def recall_pareto(figure: Locator) -> None:
    asked, place = (
        figure.get_by_label(name, exact=True) for name in ("Asked about", "Model, by bytes")
    )
    chance, total = figure.locator("[data-part=chance]"), int(place.get_attribute("max")) + 1
    picture = figure.get_by_role("img").first
    points = figure.locator("[data-part=points] > *")
    assert points.count() == total
    shows(figure, "shown", f"{total} of {total}")
    place.press("Home")
    name, first = value(figure, "model"), number(value(figure, "share"))
    assert said(place) == f"1 of {total}"
    expect(figure.locator(".told")).to_contain_text("No model shown gets more right")
    if asked.locator("option").count() > 1:
        before = chance.get_attribute("d"), points.first.evaluate("e => e.outerHTML")
        asked.select_option(index=1)
        told = asked.locator("option:checked").inner_text()
        assert told in picture.get_attribute("aria-label")
        assert (chance.get_attribute("d"), points.first.evaluate("e => e.outerHTML")) != before
        asked.select_option(index=0)
        assert number(value(figure, "share")) == first
    place.press("End")
    assert said(place) == f"{total} of {total}"
    assert value(figure, "model") != name
    picture.scroll_into_view_if_needed()
    dot = points.first.bounding_box()
    picture.page.mouse.move(dot["x"] + dot["width"] / 2, dot["y"] + dot["height"] / 2)
    shows(figure, "model", name)  # pointing chooses, and the slider follows
    assert said(place) == f"1 of {total}"
    families = figure.get_by_role("checkbox")
    for family in families.all():
        family.press("Space")
    assert points.count() == 0
    shows(figure, "model", "none")
    expect(figure.locator(".told")).to_have_text("No family is shown.")
    families.last.check()
    assert 0 < points.count() < total or families.count() == 1
    shows(figure, "shown", f"{points.count()} of {total}")
    assert value(figure, "model").startswith(figure.locator("label.toggle").last.inner_text())
    for family in families.all():
        family.check()
    assert points.count() == total


def hybrid_calculator(figure: Locator) -> None:
    from ssmlib.viz.hybrids import SHAPES, mix_costs

    def control(name: str) -> Locator:
        return figure.get_by_label(name, exact=True)

    def counted(name: str, every: int, context: int) -> None:
        wanted = mix_costs(SHAPES[name], every, context)
        shows(figure, "attention", str(wanted["attention"]))
        for key, told in (("cache", "GB"), ("state", "MB")):
            shown = value(figure, key)
            assert shown.endswith(told)
            unit = {"GB": 1e9, "MB": 1e6}[told]
            assert math.isclose(number(shown) * unit, wanted[key], rel_tol=1e-3)
        powers = {"mega": 1e6, "giga": 1e9, "tera": 1e12, "peta": 1e15, "exa": 1e18}
        for key in ("token", "prompt"):
            shown = value(figure, key)
            power = powers[shown.split()[1].removesuffix("FLOPs")]
            assert math.isclose(number(shown) * power, wanted[key], rel_tol=5e-3)

    ratio, context = control("Attention in"), control("Context in tokens")
    turn(control("Requests at once"), "1")
    control("Start from").select_option("7B, a key for every head")
    turn(context, "100,000")
    turn(ratio, "1 in 2")
    counted("7B, a key for every head", 2, 100_000)
    shows(figure, "cache", "26.21 GB")
    turn(ratio, "none")
    shows(figure, "cache", "0 B")
    shows(figure, "state", "18.35 MB")
    expect(figure.locator(".told")).to_contain_text("No cache")
    control("Start from").select_option("Jamba v0.1, dense MLPs")
    assert said(ratio) == "1 in 8"
    turn(context, "262,144")
    counted("Jamba v0.1, dense MLPs", 8, 262_144)
    shows(figure, "cache", "4.295 GB")
    shows(figure, "attention", "4")
    ratio.press("Home")
    shows(figure, "saved", "100 %")
    turn(ratio, "1 in 4")
    shows(figure, "cache", "8.590 GB")
    assert "8 of them attention" in figure.get_by_role("img").first.get_attribute("aria-label")
    assert figure.locator("[data-part=layers] rect").count() == 32
    turn(control("Layers"), "64")
    shows(figure, "scans", "48")
    turn(control("Heads of keys and values"), "32")
    shows(figure, "cache", "68.72 GB")
    click_at(context, 0.5)
    click_at(control("Requests at once"), 1)
    assert number(value(figure, "state")) > 1


DRILLS = {
    "attention_grid": attention_grid,
    "kv_calculator": kv_calculator,
    "dt_dial": dt_dial,
    "state_heatmap": state_heatmap,
    "hippo_draw": hippo_draw,
    "s4_kernel": s4_kernel,
    "selection_dial": selection_dial,
    "selection_text": selection_text,
    "scan_tree": scan_tree,
    "ssd_blocks": ssd_blocks,
    "hybrid_calculator": hybrid_calculator,
    "recall_pareto": recall_pareto,
}
