// A reading on the page: how far it is, the verdict, the marked report, findings, warnings, answers.
// A click on a point or finding takes the viewer there. Every word goes in as text.

import { element, meaning, onLanguage, problem, say, word } from "./words.js";

const STAGES = ["read", "look", "findings", "review", "pictures"];
const IN_LUNG = /nodule|consolidation|opacity|pneumothorax|emphysema|lung/i;

class Reading {
  constructor(host, act) {
    this.host = host;
    this.act = act;
    host.classList.add("cr-reading");
    this.main = element("div");
    this.answers = element("div", "cr-answers");
    this.answers.setAttribute("aria-live", "polite");
    host.replaceChildren(this.main, this.answers);
    onLanguage(() => this.show(this.value, true));
  }

  /** What `reading_room` sends: {state, step, findings, points, reading, asked, decisions}. */
  show(value, again = false) {
    const { asked = [], decisions = {}, ...rest } = value ?? {};
    const made = JSON.stringify(rest);
    this.value = value;
    if (again || made !== this.made) {
      if (made !== this.made) this.decisions = { ...decisions };
      this.made = made;
      this.main.replaceChildren(...this.parts(rest));
      if (rest.state === "done") this.markSlices();
    }
    this.answers.replaceChildren(...asked.flatMap((one) => this.answer(one)));
  }

  *parts(value) {
    if (!value.state) return;
    if (value.state === "running") yield this.progress(value.step);
    if (value.state === "stopped") yield word(element("p", "cr-soft"), "was_stopped");
    const reading = value.reading ?? { findings: value.findings, points: value.points, alarms: [], warnings: [] };
    for (const alarm of reading.alarms) {
      yield role("alert", element("div", "cr-alarm", word(element("strong"), "out_of_range"), " ", ...meaning("OUT_OF_RANGE", alarm[0].toUpperCase() + alarm.slice(1))));
    }
    if (value.reading) yield this.verdict(reading);
    if (reading.passages?.length) yield this.report(reading);
    if (reading.points.length) yield element("ol", "cr-points", ...reading.points.map((p, i) => this.point(p, i, value.state)));
    if (!reading.alarms.length && (reading.findings.length || value.reading)) yield this.findings(reading.findings);
    if (reading.warnings.length) yield this.warnings(reading.warnings);
    if (value.reading) yield element("p", "cr-soft", this.cost(reading));
  }

  progress({ stage, done, total, words: said }) {
    const bar = element("progress");
    const at = Math.max(STAGES.indexOf(stage), 0);
    bar.max = STAGES.length;
    bar.value = at + (total ? done / total : 0);
    const words = `${say(`stage_${stage}`)}${total ? ` ${done} / ${total}` : "…"}`;
    bar.setAttribute("aria-label", words);
    const steps = role("status", element("div", "cr-progress", bar, element("span", "", words)));
    return said ? element("div", "", steps, element("p", "cr-soft cr-spoken", said)) : steps;
  }

  verdict({ agreement, points, alarms }) {
    const partly = alarms.length ? "verdict_outside" : "verdict_partly";
    const key = {
      agrees: "verdict_agrees", "no report": "verdict_no_report", abstained: partly,
      disagrees: points.length === 1 ? "verdict_differs_once" : "verdict_differs",
    }[agreement];
    const sign = { agrees: "✓", disagrees: "≠", abstained: "?", "no report": "–" }[agreement];
    return element("h2", `cr-verdict cr-${agreement.replace(" ", "-")}`, element("span", "", sign), say(key, { count: points.length }));
  }

  /** The report with its questionable sentences as buttons, and what it leaves out behind it. */
  report({ passages, points }) {
    const box = element("div", "cr-report");
    for (const { text, point } of passages) box.append(point === null ? text : this.mark(text, points[point], point));
    points.forEach((point, number) => {
      if (point.sentence === null) box.append("\n", this.mark(`+ ${point.correction ?? say("something_missing")}`, point, number));
    });
    return element("section", "", word(element("h3"), "report"), box);
  }

  mark(text, point, number) {
    const made = element("button", `cr-mark${point.sentence === null ? " cr-missing" : ""}`, text);
    made.type = "button";
    made.append(element("sup", "", say(`error_${point.type}`)));
    made.addEventListener("click", () => this.pick(number));
    return made;
  }

  /** One discrepancy: what the report says, what it should say, where to look, what one decides. */
  point(point, number, state) {
    const card = element("li", "cr-point");
    card.id = `cr-point-${number}`;
    const head = element("div", "cr-head", element("b", "", say(`error_${point.type}`)), element("span", "cr-soft", sure(point.probability)));
    const proof = point.evidence.find((one) => one.slice_index !== null);
    if (proof) head.append(this.jump(proof, () => this.pick(number)));
    const said = point.sentence === null ? say("says_nothing") : point.sentence;
    const wanted = point.correction ?? say(point.type === "insertion" ? "remove_it" : "no_correction");
    card.append(
      head,
      element("div", "cr-said", word(element("span", "cr-soft"), "report_says"), element("span", "", said)),
      element("div", "cr-wanted", word(element("span", "cr-soft"), "should_say"), element("span", "", wanted)),
    );
    if (state === "done") card.append(this.choice(number));
    return card;
  }

  choice(number) {
    const group = role("group", element("div", "cr-choice"));
    word(group, "your_decision", "label");
    for (const decision of ["accepted", "rejected"]) {
      const made = word(element("button", "cr-button"), decision);
      made.type = "button";
      const draw = () => made.setAttribute("aria-pressed", String(this.decisions[number] === decision));
      made.addEventListener("click", () => {
        this.decisions[number] = this.decisions[number] === decision ? "" : decision;
        for (const other of group.children) other.draw();
        this.act("decide", { number, decision: this.decisions[number] });
      });
      made.draw = draw;
      draw();
      group.append(made);
    }
    return group;
  }

  findings(found) {
    const section = element("section", "", word(element("h3"), "findings"));
    if (!found.length) {
      section.append(word(element("p"), "none_seen"));
      return section;
    }
    const table = element("table");
    const head = table.createTHead().insertRow();
    for (const key of ["finding", "side", "size", "slice_column", "sure"]) {
      head.append(Object.assign(word(element("th"), key), { scope: "col" }));
    }
    const body = table.createTBody();
    for (const one of found) {
      const row = body.insertRow();
      const cells = [say(one.name), one.side ? say(one.side) : "–", one.size_mm === null ? "–" : `${one.size_mm.toFixed(0)} mm`];
      for (const words of cells) row.insertCell().append(words);
      const look = () => this.look(one, name(one));
      row.insertCell().append(one.slice_index === null ? "–" : this.jump(one, look));
      row.insertCell().append(sure(one.probability) || "–");
    }
    section.append(table);
    return section;
  }

  /** A button that takes the viewer to a slice. */
  jump({ slice_index: slice }, act) {
    const made = element("button", "cr-jump", `${say("slice")} ${slice + 1}`);
    made.type = "button";
    made.addEventListener("click", act);
    return made;
  }

  /** Bring a point's card into sight and its evidence into the viewer. */
  pick(number) {
    const points = this.value.reading?.points ?? this.value.points;
    for (const card of this.main.querySelectorAll(".cr-point")) {
      card.classList.toggle("cr-picked", card.id === `cr-point-${number}`);
    }
    this.main.querySelector(".cr-picked")?.scrollIntoView({ block: "nearest" });
    const point = points[number];
    const proof = point.evidence.find((one) => one.slice_index !== null);
    if (proof) this.look(proof, point.correction ?? point.sentence ?? point.type);
  }

  look({ slice_index: slice, box }, label) {
    const viewer = theViewer();
    if (!viewer?.stack) return;
    const chest = viewer.stack.info.windows[viewer.stack.info.window].name === "lung";
    viewer.look({ slice, box, label, window: chest ? (IN_LUNG.test(label) ? "lung" : "mediastinum") : null });
    viewer.host.scrollIntoView({ block: "nearest" });
  }

  /** Outline everything there is to see. */
  markSlices() {
    const { findings, points } = this.value.reading;
    const proofs = new Map();
    const add = ({ slice_index: slice, box }, label) => {
      const key = JSON.stringify([slice, box]);
      if (slice !== null && box && !proofs.has(key)) proofs.set(key, { slice, box, label });
    };
    for (const one of findings) add(one, name(one));
    for (const one of points) for (const proof of one.evidence) add(proof, one.correction ?? one.type);
    theViewer()?.mark([...proofs.values()]);
  }

  warnings(listed) {
    return element("details", "cr-more", element("summary", "", `${say("warnings")} (${listed.length})`), element("ul", "", ...listed.map(problem)));
  }

  answer({ question, answer, num_encoded: encoded }) {
    const made = [element("p", "cr-asked", question), element("p", "cr-answered", answer || "…")];
    if (encoded !== null) made.push(element("p", "cr-soft", say(encoded ? "encoded_anew" : "nothing_encoded", { count: encoded })));
    return made;
  }

  cost({ model, usage, timings_s: timings }) {
    return `${model} · ${timings.total.toFixed(1)} s · ${say("questions_asked", { count: usage.questions })}`;
  }
}

function theViewer() {
  return document.querySelector(".cr-viewer")?.viewer;
}

function name({ side, name: finding }) {
  return [side && say(side), say(finding)].filter(Boolean).join(" ");
}

function sure(probability) {
  if (probability === null) return "";
  if (probability < 0.005) return "<1 %"; // nothing is certain
  return probability >= 0.995 ? ">99 %" : `${(100 * probability).toFixed(0)} %`;
}

function role(name, made) {
  made.setAttribute("role", name);
  return made;
}

/** Build the reading within an element; `act(name, data)` tells what was pressed. */
export function mount(host, act) {
  return new Reading(host, act);
}
