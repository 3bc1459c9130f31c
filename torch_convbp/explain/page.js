// A slider under each picture of a sliding window; the page is complete without.
for (const slide of document.querySelectorAll(".slide")) {
  const sums = JSON.parse(slide.querySelector("script").textContent);
  const columns = Number(slide.dataset.columns);
  const [window_, entry] = slide.querySelectorAll("rect.window");
  const target = entry.ownerSVGElement;
  const unit = Number(entry.getAttribute("width"));

  const slider = document.createElement("input");
  slider.type = "range";
  slider.max = sums.length - 1;
  slider.setAttribute("aria-label", "Position of the window");
  slide.append(slider);

  function show(position) {
    for (const frame of [window_, entry]) {
      frame.setAttribute("x", unit * (position % columns));
      frame.setAttribute("y", unit * Math.floor(position / columns));
    }
    slider.value = position;
    slide.querySelector(".sum").textContent = sums[position];
  }

  // Pointing at an entry of the result shows where it comes from.
  function point(event) {
    const place = new DOMPoint(event.clientX, event.clientY).matrixTransform(
      target.getScreenCTM().inverse());
    const j = Math.floor(place.x / unit), i = Math.floor(place.y / unit);
    if (i >= 0 && j >= 0 && j < columns && i * columns + j < sums.length) show(i * columns + j);
  }

  target.classList.add("target");
  target.addEventListener("click", point);
  target.addEventListener("pointermove", (event) => { if (event.buttons) point(event); });
  slider.addEventListener("input", () => show(Number(slider.value)));
  show(Number(slide.dataset.start));
}
