// The page: two talks (chat and completion), one of them shown; what the person does, and what follows.

import { Failure, key, request, write } from "./api.js";
import { Answer, reason } from "./answer.js";
import { Card } from "./card.js";
import { showQuestion } from "./question.js";
import { Settings } from "./settings.js";
import { make, sayAll, switchLanguage } from "./words.js";

const COPIED_MS = 1500;
const RETRY_MS = 2000;
const NEAR_PX = 120; // of the end: then the page follows

const $ = (id) => document.getElementById(id);
const settings = new Settings($("rows"));
const card = new Card($("card"));
// A turn is {question, answer, element}. In completion only the last one is kept.
const talks = { chat: { turns: [], draft: "" }, complete: { turns: [], draft: "" } };
let mode = "chat";
let model = null;
let running = null; // the AbortController of the answer being written
let isFollowing = true; // whether the page goes down with the text
let trouble = null;
let retry = 0; // the timer after which the server is asked again
let lastY = 0; // where it stood
let frame = 0; // in which it will: a layout for each token would be too slow

// --- a talk -----------------------------------------------------------------------------------------------------------------------

async function send() {
  const question = $("prompt").value;
  if (!model) return meet();
  if (running || !settings.isValid() || !(question.trim() || mode === "complete")) return;
  if (mode === "chat") $("prompt").value = "";
  else dropTurn();
  await answer(addTurn(question));
}

function addTurn(question) {
  const turn = { question, answer: null, element: make("div", { className: "turn" }) };
  talks[mode].turns.push(turn);
  $(mode).append(turn.element);
  showQuestion(turn.element, question);
  return turn;
}

function dropTurn() {
  const turn = talks[mode].turns.pop();
  turn?.element.remove();
  return turn;
}

async function answer(turn) {
  turn.answer?.element.remove();
  turn.answer = new Answer();
  turn.element.append(turn.answer.element);
  running = new AbortController();
  refresh();
  isFollowing = true;
  keepInSight();
  const failure = await follow(turn.answer, body(), running.signal);
  running = null;
  turn.answer.end(failure);
  refresh();
  keepInSight();
  if (failure?.status === 401) askForKey(true);
}

// What the failure was, if there was one.
async function follow(answer, body, signal) {
  try {
    for await (const delta of write(mode, body, signal)) {
      answer.add(delta);
      keepInSight();
    }
  } catch (error) {
    if (error.name === "AbortError") answer.finish = "stopped";
    else if (error instanceof Failure) return error;
    else throw error;
  }
  return null;
}

function keepInSight() {
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    if (isFollowing) scrollTo({ top: document.body.scrollHeight });
  });
}

function body() {
  const { turns } = talks[mode];
  const common = { model: model.id, ...settings.body() };
  if (mode === "complete") return { ...common, prompt: turns.at(-1).question };
  const system = settings.system();
  const messages = system ? [{ role: "system", content: system }] : [];
  for (const turn of turns) {
    const isLast = turn === turns.at(-1);
    if (!isLast && !turn.answer.text) continue; // it failed: most templates refuse two questions in a row
    messages.push({ role: "user", content: turn.question });
    if (!isLast) messages.push({ role: "assistant", content: turn.answer.text });
  }
  return { ...common, messages };
}

// --- what can be done ------------------------------------------------------------------------------------------------------------

// Shows what is possible now.
function refresh() {
  const { turns } = talks[mode];
  for (const name of Object.keys(talks)) $(name).hidden = name !== mode;
  $("welcome").hidden = turns.length > 0;
  $("fresh").disabled = !turns.length;
  $("forget").hidden = !key.get();
  const hadFocus = [$("send"), $("stop")].includes(document.activeElement);
  $("send").hidden = Boolean(running);
  $("stop").hidden = !running;
  $("hint").dataset.say = running ? "stop_key" : `send_key_${mode}`;
  if (hadFocus) (running ? $("stop") : $("send")).focus();
  for (const input of document.querySelectorAll("[name=mode]")) {
    input.checked = input.value === mode;
    const isOff = input.value === "chat" && model?.can_chat === false;
    input.disabled = Boolean(running) || isOff;
    input.setAttribute("aria-describedby", isOff ? "why" : "");
  }
  $("prompt").dataset.sayPlaceholder = $("prompt").dataset.sayLabel = `prompt_${mode}`;
  $("prompt").enterKeyHint = mode === "chat" ? "send" : "enter"; // of a phone's keyboard
  settings.showFor(mode);
  document.querySelector(".tools")?.remove();
  if (turns.length && !running) turns.at(-1).element.append(tools(turns.at(-1)));
  sayAll();
}

function tools(turn) {
  const copy = button("copy", async () => {
    await navigator.clipboard.writeText(turn.answer.text);
    copy.dataset.say = "copied";
    sayAll(copy.parentElement);
    setTimeout(() => {
      copy.dataset.say = "copy";
      sayAll(copy.parentElement);
    }, COPIED_MS);
  });
  const again = button("again", () => {
    $("send").focus();
    answer(turn);
  });
  const edit = button("edit", () => {
    $("prompt").value = dropTurn().question;
    refresh();
    $("prompt").focus();
  });
  copy.disabled = !turn.answer.text || !navigator.clipboard; // which browsers have on https and on this machine only
  const cut = button("cut_it", () => settings.pointAt("truncate"));
  const more = [...(mode === "chat" ? [edit] : []), ...(turn.answer.failure?.isTooLong ? [cut] : [])];
  return make("div", { className: "tools" }, copy, again, ...more);
}

const button = (say, onclick) => make("button", { say, onclick, type: "button", className: "quiet" });

function enter(wanted) {
  talks[mode].draft = $("prompt").value;
  mode = wanted;
  $("prompt").value = talks[mode].draft;
  card.hide();
  refresh();
}

// --- the key and the model ---------------------------------------------------------------------------------------------------------

function askForKey(isWrong) {
  $("wrong").hidden = !isWrong;
  $("key").value = "";
  $("door").showModal();
}

// Why there is no model to ask.
function showTrouble(failure) {
  trouble = failure;
  $("trouble").hidden = !failure;
  $("trouble").className = failure?.code === "loading" ? "note" : "trouble";
  $("trouble").textContent = failure ? reason(failure) : "";
}

async function meet() {
  clearTimeout(retry);
  showTrouble(null);
  try {
    await request("ready");
    model = (await (await request("v1/models")).json()).data[0];
  } catch (failure) {
    if (failure.status === 401) return askForKey(Boolean(key.get()));
    showTrouble(failure);
    retry = setTimeout(meet, RETRY_MS);
    return;
  }
  $("model").textContent = model.id;
  document.title = `${model.id} · mtnlg`;
  settings.fitTo(model.context);
  $("why").hidden = model.can_chat;
  if (!model.can_chat) mode = "complete";
  refresh();
  $("prompt").focus();
}

// --- what the person does ----------------------------------------------------------------------------------------------------------

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("rows").addEventListener("submit", (event) => event.preventDefault());
$("stop").addEventListener("click", () => running?.abort());
$("fresh").addEventListener("click", () => {
  running?.abort();
  while (dropTurn());
  refresh();
  $("prompt").focus();
});
$("language").addEventListener("click", () => {
  switchLanguage();
  sayAll();
  showTrouble(trouble);
  card.hide();
  for (const { turns } of Object.values(talks)) for (const turn of turns) turn.answer.describe();
});
$("forget").addEventListener("click", () => {
  key.forget();
  location.reload();
});
$("modes").addEventListener("change", (event) => enter(event.target.value));
$("shading").addEventListener("change", (event) => document.body.classList.toggle("plain", !event.target.checked));
$("door").addEventListener("close", () => {
  if (!$("key").value) return;
  key.keep($("key").value, $("remember").checked);
  meet();
});
document.addEventListener("keydown", (event) => {
  if (event.isComposing || event.keyCode === 229) return; // keys of an input method, as Chinese is written with; 229: Safari's last one
  const isPlain = !(event.shiftKey || event.altKey) && event.target === $("prompt") && mode === "chat";
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey || isPlain) && !$("door").open) {
    event.preventDefault();
    $("composer").requestSubmit();
  }
  if (event.key === "Escape") {
    card.hide();
    running?.abort();
  }
});

function showCard({ target }) {
  const span = target.closest?.(".token");
  const turn = span && talks[mode].turns.find(({ answer }) => answer.tokensOf(span));
  if (turn) card.show(span, turn.answer.tokensOf(span));
  else card.hide();
}
for (const name of ["pointerover", "focusin", "click"]) $("talk").addEventListener(name, showCard);
for (const name of ["pointerleave", "focusout"]) $("talk").addEventListener(name, () => card.hide());
document.addEventListener("scroll", () => {
  card.follow();
  // Its own way down is told late, when the text may have grown already: only a reader goes up.
  if (document.body.scrollHeight - innerHeight - scrollY < NEAR_PX) isFollowing = true;
  else if (scrollY < lastY) isFollowing = false;
  lastY = scrollY;
});

$("settings").open = matchMedia("(min-width: 60rem)").matches;
refresh();
meet();
