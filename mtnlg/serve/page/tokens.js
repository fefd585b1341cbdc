// Tokens as text: a character whose bytes lie in several tokens is one piece.

const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

export const decode = (bytes) => decoder.decode(Uint8Array.from(bytes));

// Whether the last character lacks bytes.
export function isHalf(bytes) {
  for (let back = 1; back <= 3 && back <= bytes.length; back++) {
    const byte = bytes[bytes.length - back];
    if (byte >> 6 === 0b10) continue;
    return byte <= 0xf4 && back < (byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc2 ? 2 : 1);
  }
  return false;
}

// Matches what a stream tells: whole texts, and tokens whose bytes may run ahead of them.
export class Joiner {
  #text = ""; // told, but no token for it yet
  #open = []; // tokens of a character that lacks bytes
  #ahead = []; // pieces whose text has not been told yet

  // The new pieces {text, tokens}; their texts are the told text. tokens: [] where nothing is known. last: nothing more comes.
  add(text, tokens, last = false) {
    this.#text += text;
    for (const token of tokens) {
      this.#open.push(token);
      const bytes = this.#open.flatMap((t) => [...t.bytes]);
      if (isHalf(bytes)) continue;
      this.#ahead.push({ text: decode(bytes), tokens: this.#open });
      this.#open = [];
    }
    const pieces = [];
    while (this.#ahead.length && this.#text.startsWith(this.#ahead[0].text)) {
      const piece = this.#ahead.shift();
      this.#text = this.#text.slice(piece.text.length);
      if (piece.text) pieces.push(piece);
    }
    const partly = this.#ahead[0]?.text.startsWith(this.#text);
    if (this.#text && (last || !(partly || this.#open.length))) {
      pieces.push({ text: this.#text, tokens: partly ? this.#ahead[0].tokens : [] });
      this.#text = "";
      this.#ahead = [];
    }
    return pieces;
  }
}
