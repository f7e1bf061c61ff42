// The conversation: what was said, one answer as it streams in, and what that answer cost.

import { ServerError, events, request } from "./api.js";

const find = (id) => document.getElementById(id);

export function startChat() {
  const chat = new Chat();
  find("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    chat.pressed();
  });
  find("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      find("ask").requestSubmit();
    }
  });
  find("clear").addEventListener("click", () => chat.clear());
}

class Chat {
  constructor() {
    this.messages = [];
    this.running = null; // the AbortController of the answer that streams
  }

  /** The one button: sends, or stops what is being answered. */
  pressed() {
    if (this.running) {
      this.running.abort();
      return;
    }
    const question = find("question").value.trim();
    if (question) this.ask(question);
  }

  clear() {
    this.running?.abort();
    this.messages = [];
    find("turns").replaceChildren();
  }

  async ask(question) {
    find("question").value = "";
    if (this.messages.length === 0) find("turns").replaceChildren();
    this.messages.push({ role: "user", content: question });
    addTurn("user", question);
    const turn = addTurn("assistant", "");
    this.running = new AbortController();
    find("send").textContent = "stop";
    try {
      const text = await this.stream(turn);
      this.messages.push({ role: "assistant", content: text });
    } catch (error) {
      this.messages.pop();
      addFault(turn, error);
    } finally {
      this.running = null;
      find("send").textContent = "send";
      find("question").focus();
    }
  }

  /** Stream one answer into its turn. Returns its text, also when it was cut short. */
  async stream(turn) {
    const { text, reasoning, cost } = parts(turn);
    const body = {
      messages: this.messages,
      temperature: Number(find("temperature").value),
      max_tokens: Number(find("max-tokens").value),
      stream: true,
      stream_options: { include_usage: true },
    };
    try {
      const response = await request("v1/chat/completions", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(body),
        signal: this.running.signal,
      });
      for await (const event of events(response)) {
        if (event.error) throw new ServerError(event.error.code, event.error.message);
        const delta = event.choices[0]?.delta ?? {};
        reasoning.textContent += delta.reasoning_content ?? "";
        text.textContent += delta.content ?? "";
        if (event.timings) cost.textContent = costOf(event.timings);
        follow();
      }
    } catch (error) {
      if (error.name !== "AbortError") throw error;
      cost.textContent = "stopped";
    }
    return text.textContent;
  }
}

function addTurn(role, content) {
  const turn = document.createElement("article");
  turn.className = `turn ${role}`;
  for (const name of ["reasoning", "text", "cost"]) {
    const part = document.createElement("p");
    part.className = name;
    turn.append(part);
  }
  parts(turn).text.textContent = content;
  find("turns").append(turn);
  follow();
  return turn;
}

function parts(turn) {
  const [reasoning, text, cost] = turn.children;
  return { reasoning, text, cost };
}

function addFault(turn, error) {
  const { cost } = parts(turn);
  cost.classList.add("fault");
  cost.textContent = error instanceof ServerError ? error.message : "the server cannot be reached";
}

function costOf(timings) {
  const speed = timings.tokens_per_second ? `, ${timings.tokens_per_second.toFixed(0)} tokens/s` : "";
  const cached = timings.cached_tokens ? ` (${timings.cached_tokens} cached)` : "";
  return (
    `first token after ${timings.ttft_ms.toFixed(0)} ms, ${timings.prompt_tokens} tokens in${cached}, ` +
    `${timings.completion_tokens} out${speed}`
  );
}

function follow() {
  const turns = find("turns");
  turns.scrollTop = turns.scrollHeight;
}
