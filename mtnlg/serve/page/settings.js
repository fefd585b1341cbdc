// The controls of sampling: one row each, and what they add to a request.

import { make } from "./words.js";

const ROWS = [
  { name: "system", tag: "textarea", rows: 2, chatOnly: true },
  { name: "temperature", type: "range", min: 0, max: 2, step: 0.05 },
  { name: "max_tokens", type: "number", min: 1, value: 256, required: true },
  { name: "top_p", type: "range", min: 0.01, max: 1, step: 0.01, value: 0.95 },
  { name: "top_k", type: "number", min: 0, value: 0, required: true },
  { name: "min_p", type: "range", min: 0, max: 1, step: 0.01, value: 0 },
  { name: "repetition_penalty", type: "range", min: 1, max: 2, step: 0.01, value: 1 },
  { name: "seed", type: "number", min: 0, max: 2 ** 32 - 1 },
  { name: "stop_texts", tag: "textarea", rows: 2 },
  { name: "truncate", tag: "select", options: ["error", "left", "middle"] },
];
const TEMPERATURES = { chat: 0.2, complete: 0.8 }; // at first
const NUMBERS = ["temperature", "max_tokens", "top_p", "top_k", "min_p", "repetition_penalty"];

export class Settings {
  #form;
  #mode = null;
  #temperatures = { ...TEMPERATURES }; // of each mode its own

  constructor(form) {
    this.#form = form;
    const slide = [make("input", { type: "checkbox", name: "slide" }), make("span", { say: "slide" })];
    form.replaceChildren(...ROWS.map(row), make("label", { className: "tick" }, ...slide));
  }

  showFor(mode) {
    const { temperature } = this.#form.elements;
    if (mode !== this.#mode) {
      if (this.#mode) this.#temperatures[this.#mode] = temperature.value;
      temperature.value = this.#temperatures[mode];
      temperature.dispatchEvent(new Event("input"));
      this.#mode = mode;
    }
    for (const { name, chatOnly } of ROWS) if (chatOnly) this.#form.elements[name].closest(".row").hidden = mode !== "chat";
  }

  // context: tokens of a prompt and its answer together; the answer gets half of it at first, or less.
  fitTo(context) {
    const { max_tokens } = this.#form.elements;
    max_tokens.max = context - 1;
    max_tokens.value = Math.min(max_tokens.value, Math.ceil(context / 2));
  }

  // Where the person decides it.
  pointAt(name) {
    this.#form.closest("details").open = true;
    this.#form.elements[name].focus();
  }

  // Whether every value can be sent; otherwise the browser says which one cannot.
  isValid() {
    return this.#form.reportValidity();
  }

  system() {
    return this.#form.elements.system.value.trim();
  }

  body() {
    const { seed, stop_texts, truncate, slide } = this.#form.elements;
    const body = { truncate: truncate.value, slide: slide.checked };
    for (const name of NUMBERS) body[name] = this.#form.elements[name].valueAsNumber;
    if (seed.value) body.seed = seed.valueAsNumber;
    const stop = stop_texts.value.split("\n").filter((line) => line);
    if (stop.length) body.stop = stop.map((line) => line.replaceAll("\\n", "\n"));
    return body;
  }
}

function row({ name, tag = "input", chatOnly, options, ...properties }) {
  const id = `set-${name}`;
  const control = make(tag, { ...properties, id, name });
  control.setAttribute("aria-describedby", `${id}-why`);
  for (const value of options ?? []) control.append(make("option", { value, say: `truncate_${value}` }));
  const label = make("label", { htmlFor: id, say: name });
  const shown = make("output", { htmlFor: id });
  if (properties.type === "range") {
    const show = () => (shown.value = control.value);
    control.addEventListener("input", show);
    show();
  }
  return make("div", { className: "row" }, label, shown, control, make("small", { id: `${id}-why`, say: `${name}_why` }));
}
