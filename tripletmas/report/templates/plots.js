// Shows the value of a plot that is nearest to the pointer. Where values lie is in each plot's data-spots: x and y as
// parts of the picture, and what is said. The tables below the plots have the same for readers without a pointer.
(() => {
  const box = document.body.appendChild(document.createElement("div"));
  box.id = "value";
  box.hidden = true;
  const hide = () => { box.hidden = true; };
  const near = 28; // pixels
  document.querySelectorAll("[data-spots]").forEach((plot) => {
    const spots = JSON.parse(plot.dataset.spots), image = plot.querySelector("img");
    const show = (event) => {
      const frame = image.getBoundingClientRect();
      const away = ([x, y]) => Math.hypot(frame.left + x * frame.width - event.clientX, frame.top + y * frame.height - event.clientY);
      const best = spots.reduce((found, spot) => (away(spot) < away(found) ? spot : found));
      if (away(best) > near) return hide();
      box.textContent = best[2];
      box.hidden = false;
      const left = frame.left + best[0] * frame.width, top = frame.top + best[1] * frame.height;
      box.style.left = `${Math.max(8, Math.min(left + 12, innerWidth - box.offsetWidth - 8)) + scrollX}px`;
      box.style.top = `${(top > box.offsetHeight + 20 ? top - box.offsetHeight - 12 : top + 12) + scrollY}px`;
    };
    plot.addEventListener("pointermove", show);
    plot.addEventListener("pointerdown", show);
    plot.addEventListener("pointerleave", hide);
  });
  addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
})();
