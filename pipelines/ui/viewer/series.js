// The study browser: which series there are, what is not used and why, what is known of the one
// that is open. `show(study)` takes what `Room.describe` gives; every word goes in as text.

import { takeFolders } from "./folder.js";
import { element, onLanguage, problem, say, word } from "./words.js";

const MASK = "••••••";

class SeriesList {
  constructor(host, act) {
    this.host = host;
    this.act = act;
    host.classList.add("cr-study");
    onLanguage(() => this.show(this.study));
  }

  show(study) {
    this.study = study;
    this.host.hidden = !study?.series;
    if (this.host.hidden) return;
    const open = [...this.host.querySelectorAll("details")].map((one) => one.open);
    const list = element("div", "cr-series");
    list.setAttribute("role", "group");
    word(list, "series_list", "label");
    list.append(...study.series.map((one) => this.row(one)));
    this.host.replaceChildren(list, ...this.more());
    [...this.host.querySelectorAll("details")].forEach((one, i) => (one.open = open[i] ?? false));
  }

  row(series) {
    const picture = element(series.thumbnail ? "img" : "span", "cr-thumb");
    if (series.thumbnail) Object.assign(picture, { src: series.thumbnail, alt: "" });
    const name = [series.modality || say("unknown"), bodyPart(series.body_part), plane(series.plane)];
    const size = `${series.num_slices} × ${series.rows} × ${series.columns}`;
    const gaps = series.slice_gaps_mm.map((mm) => mm.toFixed(2)).join(", ");
    const spacing = [gaps, ...(series.spacing_mm ?? []).map((mm) => mm.toFixed(2))].filter(Boolean).join(" × ");
    const facts = [size, spacing && `${spacing} mm`, series.kernel].filter(Boolean).join(" · ");
    const words = element("span", "cr-words", element("b", "", name.filter(Boolean).join(" ")), element("span", "", facts));
    const reason = series.is_volume ? say(`volume_of_${series.kind}`) : noVolume(series.reason);
    words.append(element("small", "", series.risky ? say("risky") : reason));
    const row = element("button", "cr-row", picture, words);
    row.type = "button";
    row.setAttribute("aria-pressed", String(series.key === this.study.chosen));
    row.addEventListener("click", () => this.act("choose", { key: series.key, allow: series.risky }));
    return row;
  }

  *more() {
    const { study } = this;
    if (study.series.length > 1) {
      const why = study.why.length ? study.why.map((wish) => say(wish)) : [say("the_first")];
      yield element("p", "cr-soft", `${say("opened_because")} ${why.join(say("comma"))}`);
    }
    if (study.flaws.length) yield this.listed("flaws", study.flaws);
    if (study.problems.length) yield this.listed("not_used", study.problems);
    yield this.about();
  }

  listed(key, problems) {
    const count = element("summary", "", `${say(key)} (${problems.length})`);
    return element("details", "cr-more", count, element("ul", "", ...problems.map(problem)));
  }

  /** What is known of the series; who it is of stays masked until asked for. */
  about() {
    const { facts, identifiers } = this.study;
    const list = element("dl", "cr-facts");
    for (const [name, value] of Object.entries(facts)) {
      if (value === null || value === "") continue;
      const told = name === "body_part" ? bodyPart : (one) => say(String(one));
      const shown = Array.isArray(value) ? value.map((v) => v.toFixed(2)).join(" × ") : told(value);
      list.append(element("dt", "", say(name)), element("dd", "", shown));
    }
    for (const [key, value] of Object.entries(identifiers ?? { PatientName: MASK, PatientID: MASK, PatientBirthDate: MASK })) {
      list.append(element("dt", "", say(key)), element("dd", identifiers ? "cr-revealed" : "", value || "–"));
    }
    const reveal = word(element("button", "cr-button"), identifiers ? "hide_identifiers" : "reveal_identifiers");
    reveal.type = "button";
    reveal.addEventListener("click", () => this.act("reveal", { shown: !identifiers }));
    return element("details", "cr-more", word(element("summary"), "about_series"), list, reveal);
  }
}

function plane(name) {
  return name ? say(name) : "";
}

function bodyPart(name) {
  const key = `body_${name.toLowerCase()}`;
  return say(key) === key ? name.toLowerCase() : say(key);
}

function noVolume(reason) {
  const n = /\d+/.exec(reason)?.[0] ?? "";
  return say(n ? reason.replace(n, "{n}") : reason, { n });
}

/** Build the study browser within an element; `act(name, data)` tells what was pressed. */
export function mount(host, act) {
  takeFolders("study-files");
  return new SeriesList(host, act);
}
