// The controls of a viewer: layout, window, tools, slice slider; and what a screen reader is told.

import { element, say, word } from "./words.js";

const TOOLS = ["window", "scroll", "pan", "zoom", "measure"];
const QUIET_MS = 400; // a screen reader is told of a slice once one rests on it

export class Toolbar {
  constructor(viewer) {
    this.viewer = viewer;
    this.tool = matchMedia("(pointer: coarse)").matches ? "scroll" : "window";
    this.bar = element("div", "cr-bar");
    this.bar.setAttribute("role", "toolbar");
    word(this.bar, "tools", "label");
    this.layout = this.select("layout", (value) => {
      viewer.wanted = value; // also of the studies opened after this one
      viewer.arrange(value);
    });
    this.windows = this.select("preset", (value) => viewer.choose(Number(value)));
    this.tools = TOOLS.map((tool) => this.button(`tool_${tool}`, () => this.take(tool)));
    this.invertButton = this.button("invert", () => viewer.invert());
    this.cineButton = this.button("cine", () => viewer.cine());
    this.resetButton = this.button("reset", () => viewer.reset());
    const group = element("div", "cr-tools");
    group.setAttribute("role", "group");
    word(group, "drag_does", "label");
    group.append(...this.tools);
    this.bar.append(
      this.layout.parentNode, this.windows.parentNode, group, this.invertButton, this.cineButton, this.resetButton,
    );
    this.makeFoot();
    this.take(this.tool);
  }

  makeFoot() {
    const { viewer } = this;
    this.foot = element("div", "cr-foot");
    this.ticks = element("div", "cr-ticks");
    this.ticks.setAttribute("aria-hidden", "true");
    this.slider = element("input", "cr-slider");
    this.slider.type = "range";
    this.slider.min = "1";
    word(this.slider, "slice", "label");
    this.slider.addEventListener("input", () => viewer.go(viewer.active, Number(this.slider.value) - 1));
    this.number = element("output", "cr-number");
    this.told = element("div", "cr-told");
    this.told.setAttribute("role", "status");
    const rail = element("div", "cr-rail");
    rail.append(this.ticks, this.slider);
    this.foot.append(rail, this.number, this.told);
  }

  button(key, act) {
    const made = word(element("button", `cr-button cr-${key}`), key);
    made.type = "button";
    made.addEventListener("click", act);
    return made;
  }

  select(key, act) {
    const made = element("select", `cr-select cr-${key}`);
    made.addEventListener("change", () => act(made.value));
    element("label", "cr-label", word(element("span"), key), made);
    return made;
  }

  take(tool) {
    this.tool = tool;
    for (const [i, name] of TOOLS.entries()) this.tools[i].setAttribute("aria-pressed", String(name === tool));
  }

  /** Another volume, or none. */
  volumeChanged() {
    const { viewer } = this;
    const { stack } = viewer;
    for (const control of [this.layout, this.windows, this.slider, ...this.bar.querySelectorAll("button")]) {
      control.disabled = !stack;
    }
    this.foot.hidden = !stack;
    if (!stack) return;
    const planes = stack.info.panes.map((plane) => [plane.name, say(plane.name)]);
    fill(this.layout, planes.length > 1 ? [["all", say("all_planes")], ...planes] : planes);
    const named = stack.info.windows.map((window, i) => [
      String(i), window.file ? `${say("of_file")}: ${window.name}` : say(window.name),
    ]);
    fill(this.windows, [["-1", say("own_window")], ...named]);
    this.windowChanged(stack.info.window);
    this.inverted();
    this.marked();
  }

  windowChanged(number) {
    this.windows.value = String(number);
  }

  inverted() {
    this.invertButton.setAttribute("aria-pressed", String(this.viewer.inverted));
  }

  cine(runs) {
    this.cineButton.setAttribute("aria-pressed", String(runs));
    word(this.cineButton, runs ? "stop_cine" : "cine");
  }

  /** Another layout or another pane in focus. */
  arranged() {
    this.layout.value = this.viewer.layout;
    const { active } = this.viewer;
    if (!active) return;
    this.slider.max = String(active.count);
    this.marked();
    this.moved();
  }

  moved() {
    const { active } = this.viewer;
    if (!active) return;
    const { viewer } = this;
    this.slider.value = String(active.index + 1);
    const words = `${say(active.plane.name)} ${say("slice")} ${active.index + 1} / ${active.count}`;
    this.slider.setAttribute("aria-valuetext", words);
    this.number.textContent = `${active.index + 1} / ${active.count}`;
    for (const pane of viewer.shownPanes) {
      const name = `${say(pane.plane.name)} ${say("slice")} ${pane.index + 1} / ${pane.count}. `;
      pane.canvas.setAttribute("aria-label", name + say("keys"));
    }
    clearTimeout(this.quiet);
    this.quiet = setTimeout(() => (this.told.textContent = words), QUIET_MS);
  }

  /** Ticks where there is evidence, along the stored slices. */
  marked() {
    const { active, evidence } = this.viewer;
    const own = active && active.plane.axes[0] === 0 ? evidence : [];
    this.ticks.replaceChildren(
      ...own.map(({ slice }) => {
        const tick = element("i");
        tick.style.left = `${(100 * slice) / Math.max(active.count - 1, 1)}%`;
        return tick;
      }),
    );
  }

  loaded() {
    const { stack } = this.viewer;
    this.foot.style.setProperty("--loaded", `${(100 * stack.numThere) / stack.info.shape[0]}%`);
  }
}

function fill(select, options) {
  select.replaceChildren(...options.map(([value, words]) => new Option(words, value)));
}
