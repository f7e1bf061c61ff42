// The latest requests, one bar each: where their time went. A click shows all that is known of one.

const SHOWN = 40;
const STAGES = [
  ["tokenize", "received_ms", "tokenized_ms"],
  ["queue", "tokenized_ms", "scheduled_ms"],
  ["prefill", "scheduled_ms", "first_token_ms"],
  ["decode", "first_token_ms", "finished_ms"],
];

export class Waterfall {
  constructor(list, details, newer) {
    this.list = list;
    this.details = details;
    this.newer = newer; // how many rows wait
    this.chosen = null; // the row whose details are shown
    this.waiting = [];
    this.pointed = false;
    list.addEventListener("pointerenter", () => (this.pointed = true));
    for (const left of ["pointerleave", "pointercancel"]) list.addEventListener(left, () => (this.pointed = false));
  }

  clear() {
    this.list.replaceChildren();
    this.details.hidden = true;
    this.chosen = null;
    this.waiting = [];
  }

  /**
   * Add sequences that have ended, as in the feed, the newest on top. While somebody points at the list they wait: a row
   * that moves between the press and the release of a button can't be clicked. They are shown with the first snapshot
   * after that, not at once, because a finger leaves the list just before its click.
   */
  add(ended) {
    this.waiting = [...this.waiting, ...ended].slice(-SHOWN);
    if (!this.pointed && this.waiting.length) {
      for (const sequence of this.waiting) this.list.prepend(this.row(sequence));
      while (this.list.children.length > SHOWN) this.list.lastChild.remove();
      this.waiting = [];
      this.scale();
    }
    this.newer.textContent = this.waiting.length ? `${this.waiting.length} newer when you point elsewhere` : "";
  }

  row(sequence) {
    const row = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-expanded", "false");
    const total = (sequence.ended_ms ?? sequence.finished_ms) - sequence.received_ms;
    const track = span("bar-track", "");
    button.append(span("name", nameOf(sequence)), track, span("note", noteOf(sequence, total)));
    button.addEventListener("click", () => this.choose(button, sequence));
    row.append(button);
    row.sequence = sequence;
    row.total = total;
    row.track = track;
    return row;
  }

  /** All bars share one scale, that of the longest. */
  scale() {
    const longest = Math.max(1, ...[...this.list.children].map((row) => row.total));
    for (const { sequence, track } of this.list.children) {
      track.replaceChildren();
      for (const [stage, from, to] of STAGES) {
        const [start, end] = [sequence[from], sequence[to]];
        if (start == null || end == null || end < start) continue;
        const bar = document.createElement("i");
        bar.className = stage;
        bar.style.left = `${(100 * (start - sequence.received_ms)) / longest}%`;
        bar.style.width = `${(100 * (end - start)) / longest}%`;
        bar.title = `${stage} ${milliseconds(end - start)}`;
        track.append(bar);
      }
    }
  }

  choose(button, sequence) {
    this.chosen?.setAttribute("aria-expanded", "false");
    if (this.chosen === button) {
      this.chosen = null;
      this.details.hidden = true;
      return;
    }
    this.chosen = button;
    button.setAttribute("aria-expanded", "true");
    this.details.replaceChildren(...factsOf(sequence).map(([name, value]) => fact(name, value)));
    this.details.hidden = false;
  }
}

function nameOf({ id, index }) {
  return index ? `${id} #${index}` : id;
}

function noteOf({ reason, output_tokens: tokens }, total) {
  return `${tokens} tok · ${milliseconds(total)} · ${reason}`;
}

function factsOf(sequence) {
  const facts = [["request", nameOf(sequence)], ["ended by", sequence.reason]];
  if (sequence.status) facts.push(["status", sequence.status]);
  facts.push(["prompt tokens", sequence.prompt_tokens ?? "–"], ["of them cached", sequence.cached_tokens ?? "–"]);
  facts.push(["output tokens", sequence.output_tokens]);
  for (const [stage, from, to] of STAGES) {
    if (sequence[from] != null && sequence[to] != null) facts.push([stage, milliseconds(sequence[to] - sequence[from])]);
  }
  if (sequence.first_token_ms) facts.push(["first token after", milliseconds(sequence.first_token_ms - sequence.received_ms)]);
  if (sequence.batch_size) facts.push(["mean batch", sequence.batch_size.toFixed(1)]);
  if (sequence.execution_ms) facts.push(["runner at work", milliseconds(sequence.execution_ms)]);
  if (sequence.preemptions) facts.push(["preempted", `${sequence.preemptions} times`]);
  return facts;
}

function fact(name, value) {
  const pair = document.createElement("div");
  const [term, definition] = [document.createElement("dt"), document.createElement("dd")];
  term.textContent = name;
  definition.textContent = value;
  pair.append(term, definition);
  return pair;
}

export function milliseconds(value) {
  if (value == null) return "–";
  if (value >= 10_000) return `${(value / 1000).toFixed(1)} s`;
  return `${value.toFixed(value < 10 ? 1 : 0)} ms`;
}

function span(className, content) {
  const made = document.createElement("span");
  made.className = className;
  made.textContent = content;
  return made;
}
