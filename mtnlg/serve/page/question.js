// What the person has asked, as the talk shows it: a long text is folded.

import { make, say } from "./words.js";

const LONG_PX = 320;

// Puts the question at the end of a turn that is in sight.
export function showQuestion(turn, text) {
  const heading = make("h3", { className: "unseen", say: "you" });
  const question = make("div", { className: "question" }, heading, make("p", { textContent: text }));
  turn.append(question);
  if (question.getBoundingClientRect().height > LONG_PX) turn.append(folder(question));
}

function folder(question) {
  const button = make("button", { type: "button", className: "quiet fold" });
  const fold = (isFolded) => {
    question.classList.toggle("folded", isFolded);
    button.dataset.say = isFolded ? "unfold" : "fold";
    button.textContent = say(button.dataset.say);
    button.setAttribute("aria-expanded", String(!isFolded));
  };
  button.addEventListener("click", () => fold(!question.classList.contains("folded")));
  fold(true);
  return button;
}
