// The explorer's frame follows the site's light or dark mode and is as high as its content.
const frame = document.getElementById("titn-explorer");
const DARK = { // JupyterLab's names, which the explorer reads
  "--jp-ui-font-color1": "#e6e8eb",
  "--jp-ui-font-color2": "#a3abb5",
  "--jp-border-color2": "#3b4148",
  "--jp-layout-color1": "#16191d",
  "--jp-layout-color2": "#23282e",
};

frame.addEventListener("load", () => {
  const page = frame.contentDocument;
  const explorer = page.getElementById("explorer");
  const follow = () => {
    const dark = document.documentElement.dataset.theme === "dark";
    for (const [name, value] of Object.entries(DARK)) {
      if (dark) page.documentElement.style.setProperty(name, value);
      else page.documentElement.style.removeProperty(name);
    }
    explorer.classList.toggle("light", !dark);
    page.body.style.background = dark ? DARK["--jp-layout-color1"] : "#fff";
    explorer.explorer.schedule(); // the small maps' numbers are drawn in the text's color
  };
  follow();
  explorer.explorer.rememberIn(window); // a link to this page can hold a view
  new MutationObserver(follow).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  new ResizeObserver(() => {
    frame.style.height = `${explorer.scrollHeight + 8}px`;
  }).observe(explorer);
});
