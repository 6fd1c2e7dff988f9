// Plays a record's episode: the frames of the film strip, one after the other, in the picture above and on the curve.
window.dash_clientside = window.dash_clientside || {};
(function () {
  const STEP = 120; // milliseconds
  let timer = null;
  const frames = () => Array.from(document.querySelectorAll("#record-film .rs-frame"));
  // Of the frames only the shown one is a stop of the Tab key: an episode has many.
  const stops = () => frames().forEach((one) => (one.tabIndex = one.classList.contains("rs-now") ? 0 : -1));
  function show(frame) {
    frames().forEach((one) => one.classList.toggle("rs-now", one === frame));
    stops();
    frame.parentElement.scrollLeft = frame.offsetLeft - frame.parentElement.clientWidth / 2 + frame.clientWidth / 2;
    const image = document.getElementById("record-image");
    if (image) image.src = frame.querySelector("img").src;
    const curve = document.querySelector("#record-episode .js-plotly-plot");
    const step = Number(frame.querySelector("span").textContent);
    if (curve && window.Plotly) window.Plotly.relayout(curve, { "shapes[0].x0": step, "shapes[0].x1": step });
  }
  function stop() {
    clearInterval(timer);
    timer = null;
    const button = document.getElementById("record-play");
    const label = button && button.querySelector(".mantine-Button-label");
    if (label) label.textContent = "▶ Play";
  }
  Object.assign((window.dash_clientside.rollsight = window.dash_clientside.rollsight || {}), {
    showFrame: function () {
      setTimeout(() => {
        stops();
        const now = document.querySelector("#record-film .rs-now");
        if (now) now.parentElement.scrollLeft = now.offsetLeft - now.parentElement.clientWidth / 2;
      }, 50);
      return window.dash_clientside.no_update;
    },
    play: function (clicks) {
      if (timer || !clicks) {
        stop();
        return "▶ Play";
      }
      const all = frames();
      let place = all.findIndex((one) => one.classList.contains("rs-now"));
      if (place >= all.length - 1) place = -1;
      timer = setInterval(() => {
        place += 1;
        if (place >= all.length || !all[place].isConnected) return stop();
        show(all[place]);
      }, STEP);
      return "❚❚ Pause";
    },
  });
})();
