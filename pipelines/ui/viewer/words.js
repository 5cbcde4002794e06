// The page's fixed words in the browser, in the language the page is in; they follow when it changes.
// An element whose words are fixed carries their key, so that a switch finds it.

const table = await (await fetch(new URL("words.json", import.meta.url))).json();
const root = document.documentElement;
const column = () => Number((root.lang || navigator.language).toLowerCase().startsWith("zh"));

/** The words of a key; `{name}` in them is replaced by `values.name`. */
export function say(key, values = {}) {
  const words = table[key]?.[column()] ?? key;
  return words.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

/** Give an element the words of a key, or a label for screen readers. */
export function word(element, key, attribute = "text") {
  element.dataset[attribute === "text" ? "say" : "sayLabel"] = key;
  if (attribute === "text") element.textContent = say(key);
  else element.setAttribute("aria-label", say(key));
  return element;
}

/** Call `act` whenever the page changes its language. */
export function onLanguage(act) {
  new MutationObserver(act).observe(root, { attributeFilter: ["lang"] });
}

onLanguage(() => {
  for (const found of document.querySelectorAll("[data-say]")) found.textContent = say(found.dataset.say);
  for (const found of document.querySelectorAll("[data-say-label]")) {
    found.setAttribute("aria-label", say(found.dataset.sayLabel));
  }
});

/** A problem's own words, which are English; on a Chinese page behind what its code means. */
export function meaning(code, message) {
  if (!column()) return [message];
  const detail = element("span", "cr-soft", message);
  detail.lang = "en";
  return [`${say(code)} `, detail];
}

/** A problem as an item of a list. */
export function problem([code, message, about]) {
  const name = element("code", "", code);
  name.title = say(code);
  return element("li", "", name, " ", ...meaning(code, message), about ? ` (${about})` : "");
}

/** A new element with a class and children. */
export function element(tag, name = "", ...children) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  made.append(...children);
  return made;
}
