// One answer on the page: its text in shaded pieces, and the line below that says how it went.

import { Joiner } from "./tokens.js";
import { language, make, say } from "./words.js";

export class Answer {
  text = "";
  finish = null; // "stop", "length", or "stopped" by the person
  failure = null;
  #joiner = new Joiner();
  #tokensOf = new WeakMap(); // span -> tokens
  #begun = performance.now();
  #firstAt = null;
  #lastAt = null;
  #numTokens = 0;
  #told = {}; // cut, slides, seed and usage, as far as they were told
  #body = make("div", { className: "text" });
  #notes = make("p", { className: "note", hidden: true });
  #status = make("p", { className: "status" });
  #trouble = make("p", { className: "trouble", hidden: true });

  constructor() {
    this.#trouble.setAttribute("role", "alert");
    this.#body.setAttribute("role", "group");
    this.#body.dataset.sayLabel = "answer";
    this.#body.setAttribute("aria-label", say("answer"));
    this.element = make("article", { className: "answer" }, this.#body, this.#notes, this.#trouble, this.#status);
    this.element.setAttribute("aria-busy", "true");
    this.#body.addEventListener("keydown", (event) => this.#walk(event));
  }

  // delta: as api.js yields it.
  add({ text, tokens, finish, ...told }) {
    if (text || tokens.length) this.#lastAt = performance.now();
    this.#firstAt ??= this.#lastAt;
    this.text += text;
    this.#numTokens += tokens.length;
    for (const [name, value] of Object.entries(told)) if (value != null) this.#told[name] = value;
    if (finish) this.finish = finish;
    this.#append(this.#joiner.add(text, tokens));
    this.describe();
  }

  // failure: why there is no more, if it did not end by itself.
  end(failure = null) {
    this.failure = failure;
    this.#append(this.#joiner.add("", [], true));
    this.element.setAttribute("aria-busy", "false");
    this.describe();
  }

  tokensOf(span) {
    return this.#tokensOf.get(span);
  }

  // Writes the lines below anew: in the language of now.
  describe() {
    const { cut, slides, seed, usage } = this.#told;
    const notes = [];
    if (cut) notes.push(say("cut", cut.from + 1, cut.to));
    if (slides) notes.push(say("slides", slides));
    show(this.#notes, notes.join(" "));
    show(this.#trouble, this.failure ? reason(this.failure) : "");
    const parts = [];
    const number = (value, digits) => value.toLocaleString(language(), { maximumFractionDigits: digits });
    const secs = (this.#lastAt - this.#firstAt) / 1000;
    if (this.#numTokens) parts.push(say("tokens", number(usage?.completion_tokens ?? this.#numTokens)));
    if (this.#numTokens > 1 && secs > 0) parts.push(say("speed", number((this.#numTokens - 1) / secs, 1)));
    if (this.#firstAt) parts.push(say("first", number((this.#firstAt - this.#begun) / 1000, 2)));
    if (seed != null) parts.push(say("seeded", seed));
    if (this.finish === "length" || this.finish === "stopped") parts.push(say(`end_${this.finish}`));
    this.#status.textContent = parts.join(" · ");
  }

  #append(pieces) {
    for (const { text, tokens } of pieces) {
      const span = make("span", { textContent: text });
      const logprobs = tokens.map((token) => token.logprob).filter((logprob) => logprob != null);
      if (logprobs.length) {
        this.#tokensOf.set(span, tokens);
        span.className = "token";
        span.tabIndex = this.#body.querySelector(".token") ? -1 : 0;
        span.style.setProperty("--surprise", 1 - Math.exp(logprobs.reduce((sum, logprob) => sum + logprob)));
      }
      this.#body.append(span);
    }
  }

  // The whole answer is one stop of the Tab key; arrows go on from there.
  #walk(event) {
    const spans = [...this.#body.querySelectorAll(".token")];
    const here = spans.indexOf(document.activeElement);
    const to = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: spans.length - 1 }[event.key];
    if (here < 0 || !spans[to]) return;
    event.preventDefault();
    spans[here].tabIndex = -1;
    spans[to].tabIndex = 0;
    spans[to].focus();
  }
}

// A failure as one line.
export function reason({ status, code, message, isTooLong }) {
  if (code === "loading") return say("loading");
  if (isTooLong) return say("too_long", message);
  if (status === "unreachable" || status === "broken") return say(status);
  return [401, 429, 503, 504].includes(status) ? say(`failed_${status}`) : say("failed", message);
}

function show(element, text) {
  element.hidden = !text;
  if (element.textContent !== text) element.textContent = text;
}
