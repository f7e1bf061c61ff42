// The ring, drawn once and then only updated: five processes, the ways between them, and how busy each is.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 132;
const HEIGHT = 66;

// Where each process stands, by its left upper corner.
const PLACES = {
  gateway: [10, 85],
  tokenizer: [190, 10],
  scheduler: [392, 10],
  model: [578, 85],
  detokenizer: [291, 160],
};

// The ways of the messages: from, to, what travels, and the path.
const WAYS = [
  ["gateway", "tokenizer", "Generate", "M 76 85 C 76 50, 120 43, 184 43", 100, 34],
  ["tokenizer", "scheduler", "Submit", "M 322 43 L 386 43", 354, 36],
  ["scheduler", "model", "Plan", "M 524 36 C 600 36, 648 50, 648 79", 634, 36],
  ["model", "scheduler", "Result", "M 620 85 C 616 66, 576 58, 530 58", 560, 80],
  ["scheduler", "detokenizer", "Tokens", "M 458 76 C 458 130, 450 190, 429 190", 482, 140],
  ["detokenizer", "gateway", "Text", "M 291 193 C 150 193, 76 190, 76 157", 170, 208],
];

export class Ring {
  constructor(svg) {
    this.svg = svg;
    this.processes = {};
    this.ways = [];
    this.progress = new Map();
    svg.append(marker());
    for (const [from, to, label, d, x, y] of WAYS) {
      const way = node("path", { class: "way", d, "marker-end": "url(#tip)" });
      svg.append(way, text(label, x, y, "quiet", "middle"));
      this.ways.push({ from, to, way });
    }
    for (const [name, [x, y]] of Object.entries(PLACES)) this.processes[name] = this.draw(name, x, y);
  }

  draw(name, x, y) {
    const box = node("rect", { class: "process", x, y, width: WIDTH, height: HEIGHT, rx: 8 });
    const track = node("rect", { class: "load-track", x: x + 10, y: y + 28, width: WIDTH - 20, height: 7, rx: 3.5 });
    const load = node("rect", { class: "load", x: x + 10, y: y + 28, width: 0, height: 7, rx: 3.5 });
    const title = text(name, x + 10, y + 20);
    const share = text("", x + WIDTH - 10, y + 20, "quiet", "end");
    const note = text("", x + 10, y + 53, "quiet");
    this.svg.append(box, track, load, title, share, note);
    return { box, load, share, note };
  }

  /** `processes` as in the feed; several workers of one kind are shown as one, the busiest of them. */
  update(processes) {
    const moving = new Set();
    for (const [kind, { box, load, share, note }] of Object.entries(this.processes)) {
      const workers = processes.filter(({ name }) => kindOf(name) === kind);
      if (workers.length === 0) continue;
      if (workers.some((worker) => this.hasMoved(worker))) moving.add(kind);
      const state = workers.find((worker) => worker.state !== "ready")?.state ?? "ready";
      const busy = Math.max(...workers.map(({ loop_busy }) => loop_busy ?? 0));
      const inbox = sum(workers, "inbox_depth");
      const memory = sum(workers, "rss_bytes") / 2 ** 20;
      box.setAttribute("class", `process ${state}`);
      load.setAttribute("width", (WIDTH - 20) * busy);
      share.textContent = state === "ready" ? `${Math.round(busy * 100)} %` : state;
      note.textContent = `inbox ${inbox} · ${memory.toFixed(0)} MiB` + (workers.length > 1 ? ` · ×${workers.length}` : "");
    }
    for (const { from, to, way } of this.ways) way.classList.toggle("busy", moving.has(from) && moving.has(to));
  }

  /** Whether a process has made progress since its figures came last. */
  hasMoved({ name, progress, age_s: age }) {
    const before = this.progress.get(name);
    if (before !== undefined && before.progress === progress) return before.moved && age > 0.05 && age < 0.6;
    this.progress.set(name, { progress, moved: before !== undefined });
    return before !== undefined;
  }
}

/** Workers and ranks have a number behind their name. */
function kindOf(name) {
  return name.split(/[. ]/)[0];
}

function sum(items, field) {
  return items.reduce((total, item) => total + (item[field] ?? 0), 0);
}

function node(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

function text(content, x, y, className = "", anchor = "start") {
  const element = node("text", { x, y, class: className, "text-anchor": anchor });
  element.textContent = content;
  return element;
}

function marker() {
  const tip = node("marker", { id: "tip", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto-start-reverse" });
  tip.append(node("path", { d: "M 0 0 L 8 4 L 0 8 z", fill: "var(--quiet)" }));
  const defs = node("defs", {});
  defs.append(tip);
  return defs;
}
