// The small card beside a token: how likely it was, and what else might have stood there.

import { decode, isHalf } from "./tokens.js";
import { language, make } from "./words.js";

const GAP_PX = 8;
const VISIBLE = { "\n": "↵", "\r": "␍", "\t": "⇥", " ": "␣" };

export class Card {
  #element;
  #anchor = null;

  constructor(element) {
    this.#element = element;
  }

  show(anchor, tokens) {
    this.hide();
    this.#anchor = anchor;
    anchor.setAttribute("aria-describedby", this.#element.id);
    const together = Math.exp(tokens.reduce((sum, { logprob }) => sum + logprob, 0));
    const text = visible(tokens.flatMap(({ bytes }) => [...bytes]));
    const head = make("p", {}, make("code", { textContent: text }), make("b", { textContent: percent(together) }));
    this.#element.replaceChildren(head, ...tokens.map(bars));
    this.#element.hidden = false;
    this.follow();
  }

  hide() {
    this.#anchor?.removeAttribute("aria-describedby");
    this.#anchor = null;
    this.#element.hidden = true;
  }

  // Above the token where there is room, else below; never out of the window.
  follow() {
    if (!this.#anchor) return;
    const at = this.#anchor.getClientRects()[0];
    const { offsetWidth: width, offsetHeight: height, style } = this.#element;
    const above = at.top - height - GAP_PX;
    style.left = `${Math.max(GAP_PX, Math.min(at.left, innerWidth - width - GAP_PX))}px`;
    style.top = `${above >= GAP_PX ? above : at.bottom + GAP_PX}px`;
  }
}

function bars({ bytes, logprob, likeliest }) {
  const text = visible(bytes);
  const rows = (likeliest ?? []).map((other) => [visible(other.bytes), Math.exp(other.logprob), same(other.bytes, bytes)]);
  if (!rows.some(([, , chosen]) => chosen)) rows.push([text, Math.exp(logprob), true]);
  return make("ul", {}, ...rows.map(bar));
}

function bar([text, probability, chosen]) {
  const fill = make("i", {});
  fill.style.width = `${100 * probability}%`;
  const name = make("code", { textContent: text });
  return make("li", { className: chosen ? "chosen" : "" }, name, make("span", { className: "bar" }, fill), percent(probability));
}

const same = (a, b) => a.length === b.length && [...a].every((byte, i) => byte === b[i]);

// Bytes that are no whole characters as hexadecimal numbers, white space as signs.
function visible(bytes) {
  const text = decode(bytes);
  if (isHalf(bytes) || text.includes("\ufffd")) return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
  return text.replace(/^ | $|[\n\r\t]/g, (sign) => VISIBLE[sign]) || "∅";
}

function percent(probability) {
  if (probability < 1e-4) return `< ${percent(1e-4)}`;
  const digits = probability < 0.01 ? 2 : probability < 0.1 ? 1 : 0;
  return probability.toLocaleString(language(), { style: "percent", maximumFractionDigits: digits });
}
