// The map of the embedding: draws the step that the slider is at. Everything it shows is in #map-data.
(() => {
  const data = JSON.parse(document.getElementById("map-data").textContent);
  const box = document.getElementById("map");
  const svg = box.querySelector("svg");
  const slider = document.getElementById("map-step");
  const said = document.getElementById("map-said");
  const play = document.getElementById("map-play");
  const last = data.steps.length - 1;
  const make = (name, parent) => parent.appendChild(document.createElementNS("http://www.w3.org/2000/svg", name));
  const trails = make("g", svg), dots = make("g", svg);
  trails.setAttribute("class", "trails");
  trails.style.strokeOpacity = data.opacity;
  const points = data.groups.map((group, i) => {
    const trail = make("path", trails), dot = make("path", dots);
    dot.setAttribute("class", "dot");
    dot.setAttribute("d", data.shapes[group]);
    dot.style.color = trail.style.color = `var(--group${group})`;
    make("title", dot).textContent = data.classes[data.labels[i]];
    return { trail, dot };
  });
  const place = (step, i) => (2 * i < data.steps[step].length ? data.steps[step].slice(2 * i, 2 * i + 2) : null);

  function show(step) {
    points.forEach(({ trail, dot }, i) => {
      const now = place(step, i), before = step > 0 ? place(step - 1, i) : null;
      dot.classList.toggle("absent", !now);
      if (now) dot.style.transform = `translate(${now[0]}px, ${now[1]}px) scale(${data.size})`;
      if (now && before) trail.setAttribute("d", `M${before}L${now}`);
      else trail.removeAttribute("d");
    });
    slider.value = step + 1;
    slider.setAttribute("aria-valuetext", `after task ${data.after[step]} of ${data.after[last]}`);
    said.textContent = data.said[step];
    box.dataset.step = data.after[step];
  }

  let timer = null;
  function stop() {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
  }
  slider.addEventListener("input", () => { stop(); show(slider.valueAsNumber - 1); });
  play.addEventListener("click", () => {
    if (timer) return stop();
    show(slider.valueAsNumber > last ? 0 : slider.valueAsNumber - 1);
    play.textContent = "Stop";
    timer = setInterval(() => {
      if (slider.valueAsNumber > last) return stop();
      show(slider.valueAsNumber);
    }, 1400);
  });
  // A link such as report.html#map=2 opens the map after that task.
  const asked = () => data.after.indexOf(Number((location.hash.match(/^#map=(\d+)$/) || [])[1]));
  const follow = () => { if (asked() >= 0) { stop(); show(asked()); box.scrollIntoView(); } };
  addEventListener("hashchange", follow);
  box.hidden = false;
  show(last);
  follow();
})();
