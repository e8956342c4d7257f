// What the pages need beyond the theme: landmarks for those who listen, and wide plots on a phone.
document.addEventListener("DOMContentLoaded", () => {
  const sidebar = document.getElementById("pst-primary-sidebar");
  if (sidebar && sidebar.localName === "div") { // no landmark on a wide page, with the way home in it
    sidebar.setAttribute("role", "complementary");
    sidebar.setAttribute("aria-label", "The book");
  }
  for (const part of document.querySelectorAll(".citation-list, .citation")) {
    part.removeAttribute("role"); // DPUB-ARIA 1.1 has retired it
  }
});

window.addEventListener("load", () => {
  if (!matchMedia("(max-width: 768px)").matches) return;
  for (const plot of document.querySelectorAll(".cell_output figure > img")) {
    if (plot.naturalWidth < 1050) continue; // two panels or more: too small to read when made to fit
    const box = document.createElement("div");
    box.className = "lt-wide";
    box.tabIndex = 0;
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", "A wide figure; scroll sideways");
    plot.replaceWith(box);
    box.append(plot);
  }
});
