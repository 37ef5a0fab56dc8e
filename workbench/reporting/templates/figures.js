// Draws each plotly figure of the page in the page's own colours, light or dark.
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const ink = () => getComputedStyle(document.body).getPropertyValue("--ink").trim();
  const line = () => getComputedStyle(document.body).getPropertyValue("--line").trim();
  const axes = (layout) => ["xaxis", "yaxis", ...Object.keys(layout).filter((k) => /^[xy]axis\d+$/.test(k))];

  function themed(layout) {
    const out = { ...layout, autosize: true, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)" };
    out.font = { ...layout.font, color: ink() };
    for (const axis of axes(layout)) {
      out[axis] = { ...layout[axis], gridcolor: line(), zerolinecolor: line(), linecolor: line() };
    }
    return out;
  }

  // only the page itself can hold a script element: markup of outputs is cleaned of them
  const figures = [...document.querySelectorAll("figure.plotly > script.plotly-json")].map((script) => ({
    div: script.parentElement.querySelector(".plot"),
    json: JSON.parse(script.textContent),
  }));
  const draw = () => figures.forEach(({ div, json }) =>
    Plotly.react(div, json.data, themed(json.layout), { responsive: true, displaylogo: false })
      .then(() => json.frames.length && Plotly.addFrames(div, json.frames)));
  draw();
  dark.addEventListener("change", draw);
})();
