// Renders the sections whose records exist, in order.

readPalette();
if (R.tokens) { state.at = Math.max(0, Math.min(T - 1, R.prompt_length - 1)); whole(); track(); lensSection(); heads(); }
anatomySection();
if (!R.tokens) document.getElementById("anatomy").append(el("h3", {}, "This model, and GPT-3"), numbers());
if (R.training) training();
if (R.shots) shots();

const again = () => { readPalette(); for (const draw of redraws) draw(); };
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
let resized = 0;
addEventListener("resize", () => { clearTimeout(resized); resized = setTimeout(again, 150); });
document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const isDark = root.style.colorScheme ? root.style.colorScheme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.style.colorScheme = isDark ? "light" : "dark";
  again();
});
if (R.tokens) lookAt(state.at); // Scroll only after the layout is complete.
document.documentElement.dataset.ready = "yes";
