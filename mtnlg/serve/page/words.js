// What the page says, in English and Chinese, side by side.

const WORDS = {
  other_language: ["中文", "English"],
  mode: ["Mode", "模式"],
  chat: ["Chat", "对话"],
  complete: ["Complete", "续写"],
  fresh: ["New", "新建"],
  settings: ["Settings", "设置"],
  conversation: ["Conversation", "对话内容"],
  forget: ["Forget key", "忘记密钥"],
  welcome: ["What shall we write?", "写点什么？"],
  welcome_why: [
    "The model answers piece by piece. Point at a piece, or walk there with Tab and the arrow keys, to see what else it considered. " +
      "It can be wrong and sound certain.",
    "模型逐个词元作答。把鼠标移到词元上，或用 Tab 键和方向键走到那里，就能看到它还考虑过什么。模型可能说错，而且听起来很有把握。",
  ],
  no_template: [
    "Chat is off: this model has no chat template, so it was not taught to answer. It can continue a text.",
    "对话不可用：此模型没有对话模板，没有学过如何回答，但可以续写文本。",
  ],
  prompt_chat: ["Your message", "你的消息"],
  prompt_complete: ["The beginning of a text", "文本的开头"],
  send: ["Send", "发送"],
  stop: ["Stop", "停止"],
  send_key_chat: ["Enter sends · Shift + Enter: new line", "Enter 发送 · Shift + Enter 换行"],
  send_key_complete: ["Ctrl + Enter sends", "Ctrl + Enter 发送"],
  stop_key: ["Esc", "Esc"],
  you: ["You", "你"],
  answer: ["Answer: the arrow keys go from piece to piece", "回答：用方向键在词元间移动"],
  copy: ["Copy", "复制"],
  copied: ["Copied", "已复制"],
  again: ["Again", "重新生成"],
  edit: ["Edit", "编辑"],
  cut_it: ["Choose what to cut", "选择如何截短"],
  unfold: ["Show all of it", "显示全部"],
  fold: ["Show less", "收起"],
  shading: ["Shade pieces", "词元着色"],
  sure: ["sure", "确定"],
  unsure: ["unsure", "不确定"],

  system: ["Instructions", "指示"],
  system_why: ["What the model should be or do in every answer.", "希望模型在每个回答中扮演什么或做什么。"],
  temperature: ["Temperature", "温度"],
  temperature_why: ["0 takes the likeliest piece each time; higher is more varied, then wild.", "0 每次都选最可能的词元；越高越多样，太高则混乱。"],
  max_tokens: ["Longest answer", "最长回答"],
  max_tokens_why: ["In tokens: pieces of words, about four letters each.", "以词元计：一个词元约为一到两个汉字。"],
  top_p: ["Top-p", "Top-p"],
  top_p_why: ["Only the likeliest pieces that together reach this probability.", "只在概率合计达到此值的最可能词元中选择。"],
  top_k: ["Top-k", "Top-k"],
  top_k_why: ["Only this many of the likeliest pieces; 0 allows all.", "只在最可能的若干个词元中选择；0 表示不限。"],
  min_p: ["Min-p", "Min-p"],
  min_p_why: ["Drops pieces less likely than this share of the likeliest one.", "舍去概率低于最可能词元这一比例的词元。"],
  repetition_penalty: ["Against repetition", "抑制重复"],
  repetition_penalty_why: ["Above 1, pieces already used become less likely.", "大于 1 时，已出现过的词元更不容易再出现。"],
  seed: ["Seed", "随机种子"],
  seed_why: ["The same number gives the same answer again; empty: another each time.", "相同的数得到相同的回答；留空则每次不同。"],
  stop_texts: ["Stop at", "停止文本"],
  stop_texts_why: [
    "One text a line, up to four; the answer ends before it. \\n is a line break.",
    "每行一个，最多四个；回答在其之前结束。\\n 表示换行。",
  ],
  truncate: ["Too long a prompt", "提示过长时"],
  truncate_why: ["What to do when it does not fit the model. What was cut is always told.", "放不进模型时怎么办。删去的部分总会说明。"],
  truncate_error: ["say so", "报错"],
  truncate_left: ["cut its beginning", "删去开头"],
  truncate_middle: ["cut its middle", "删去中间"],
  slide: ["Write on past the model's length", "超出模型长度后继续写"],

  tokens: ["{0} tokens", "{0} 个词元"],
  speed: ["{0} tokens/s", "每秒 {0} 个词元"],
  first: ["first after {0} s", "首词元 {0} 秒"],
  seeded: ["seed {0}", "种子 {0}"],
  end_length: ["reached the longest answer", "已达最长回答"],
  end_stopped: ["stopped by you", "已由你停止"],
  cut: ["The prompt was too long: its tokens {0} to {1} were left out.", "提示过长：已略去其第 {0} 到第 {1} 个词元。"],
  slides: ["The beginning of the text was dropped to write on, {0} ×.", "为继续写作已丢弃文本开头，{0} 次。"],

  unreachable: ["The server cannot be reached.", "无法连接服务器。"],
  broken: ["The answer broke off: the server ended the stream.", "回答中断：服务器结束了传输。"],
  loading: ["The model is loading. This page goes on by itself when it is ready.", "模型正在加载，就绪后本页会自动继续。"],
  too_long: [
    "The server says: {0}. The setting “Too long a prompt” can cut it.",
    "服务器报告：{0}。可在设置“提示过长时”中选择截短。",
  ],
  failed_401: ["The server asks for a key.", "服务器需要密钥。"],
  failed_429: ["The server is busy. Try again in a moment.", "服务器繁忙，请稍后再试。"],
  failed_503: ["The server is not ready. Try again in a moment.", "服务器尚未就绪，请稍后再试。"],
  failed_504: ["The answer took too long, and the server ended it.", "回答耗时过长，已被服务器终止。"],
  failed: ["The server says: {0}", "服务器报告：{0}"],

  key_title: ["This server needs a key", "此服务器需要密钥"],
  key_why: ["Whoever runs it has the key. It is sent to this server only.", "密钥由服务器的管理者提供，只会发送给这台服务器。"],
  key: ["Key", "密钥"],
  remember: ["Remember it on this device", "在此设备上记住"],
  key_wrong: ["The server does not accept this key.", "服务器不接受此密钥。"],
  key_enter: ["Enter", "进入"],
};
const LANGUAGES = ["en", "zh-CN"];
const STORED = "mtnlg.language";

let current = LANGUAGES.indexOf(localStorage.getItem(STORED) ?? (navigator.language.startsWith("zh") ? "zh-CN" : "en"));
if (current < 0) current = 0;

export const language = () => LANGUAGES[current];

export function say(name, ...values) {
  return WORDS[name][current].replace(/\{(\d)\}/g, (_, i) => values[i]);
}

export function switchLanguage() {
  current = 1 - current;
  localStorage.setItem(STORED, language());
}

// Fills in every element that names its words: data-say its text, data-say-label its name, data-say-placeholder.
export function sayAll(root = document) {
  document.documentElement.lang = language();
  for (const e of root.querySelectorAll("[data-say]")) e.textContent = say(e.dataset.say);
  for (const e of root.querySelectorAll("[data-say-label]")) e.setAttribute("aria-label", say(e.dataset.sayLabel));
  for (const e of root.querySelectorAll("[data-say-placeholder]")) e.placeholder = say(e.dataset.sayPlaceholder);
}

// An element with properties; `say` names its words.
export function make(tag, { say: name, ...properties } = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  if (name) {
    element.dataset.say = name;
    element.textContent = say(name);
  }
  return element;
}
