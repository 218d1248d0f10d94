// A mark or band with data-tip tells its values where the pointer is.
const tip = document.getElementById("tip");

function show(event) {
  const mark = event.target.closest("[data-tip]");
  tip.hidden = !mark;
  if (!mark) return;
  tip.textContent = mark.dataset.tip;
  const { offsetWidth: width, offsetHeight: height } = tip;
  const room = document.documentElement.clientWidth;
  const left = Math.min(event.clientX + 14, room - width - 8);
  const above = event.clientY - height - 12;
  tip.style.left = `${Math.max(left, 8)}px`;
  tip.style.top = `${above < 8 ? event.clientY + 18 : above}px`;
}

document.addEventListener("pointermove", show);
document.addEventListener("pointerdown", show);
document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
