// The server's OpenAI-style API: the key, one request, one stream, and both endpoints' chunks in one shape.

const KEY = "mtnlg.key";
const NUM_LIKELIEST = 5;

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? localStorage.getItem(KEY),
  keep: (value, forever) => (forever ? localStorage : sessionStorage).setItem(KEY, value),
  forget() {
    sessionStorage.removeItem(KEY);
    localStorage.removeItem(KEY);
  },
};

// status: the server's answer, or "unreachable", "broken" (a stream without its end) or "failed" (an error inside a stream).
// code, param: as the server tells them.
export class Failure extends Error {
  constructor(status, { message = "", code = null, param = null } = {}) {
    super(message);
    Object.assign(this, { status, code, param });
  }

  get isTooLong() {
    return this.code === "context_length_exceeded" && this.param !== "max_tokens";
  }
}

export async function request(path, body, signal) {
  const headers = body ? { "Content-Type": "application/json" } : {};
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  const response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal }).catch(
    failAs("unreachable"),
  );
  if (response.ok) return response;
  const told = await response.json().catch(() => null);
  throw new Failure(response.status, told?.error ?? { message: `${response.status} ${response.statusText}` });
}

const failAs = (status) => (error) => {
  throw error.name === "AbortError" ? error : new Failure(status);
};

// Yields {text, tokens, finish, cut, slides, seed, usage} until the server says [DONE]. An abort of the signal throws AbortError.
export async function* write(mode, body, signal) {
  const chat = mode === "chat";
  const asked = chat ? { logprobs: true, top_logprobs: NUM_LIKELIEST } : { logprobs: NUM_LIKELIEST };
  const whole = { ...body, ...asked, stream: true, stream_options: { include_usage: true } };
  const response = await request(chat ? "v1/chat/completions" : "v1/completions", whole, signal);
  for await (const chunk of events(response)) {
    const choice = chunk.choices?.[0];
    const { cut, slides, seed, usage } = { ...chunk, ...choice };
    const text = (chat ? choice?.delta?.content : choice?.text) ?? "";
    const tokens = chat ? chatTokens(choice?.logprobs) : completionTokens(choice?.logprobs);
    yield { text, tokens, finish: choice?.finish_reason, cut, slides, seed, usage };
  }
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch(failAs("broken"));
    if (done) throw new Failure("broken");
    const parts = (rest + value).split(/\r?\n\r?\n/);
    rest = parts.pop();
    for (const part of parts) {
      const data = part.match(/^data: ?(.*)$/m)?.[1];
      if (data === "[DONE]") return;
      if (!data) continue;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Failure("failed", chunk.error);
      yield chunk;
    }
  }
}

const chatTokens = (logprobs) =>
  (logprobs?.content ?? []).map(({ bytes, logprob, top_logprobs }) => ({ bytes, logprob, likeliest: top_logprobs }));

// Here tokens are texts; one that is not whole UTF-8 is written as bytes:\xe4\xbd.
function completionTokens(logprobs) {
  return (logprobs?.tokens ?? []).map((text, i) => ({
    bytes: bytesOf(text),
    logprob: logprobs.token_logprobs[i],
    likeliest: Object.entries(logprobs.top_logprobs?.[i] ?? {}).map(([other, logprob]) => ({ bytes: bytesOf(other), logprob })),
  }));
}

function bytesOf(text) {
  const escaped = text.match(/^bytes:((?:\\x[0-9a-f]{2})+)$/i);
  return escaped ? escaped[1].slice(2).split("\\x").map((hex) => parseInt(hex, 16)) : [...new TextEncoder().encode(text)];
}
