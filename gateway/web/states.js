// Where the requests are, the step at work, and the KV blocks: bars and a map of squares.

const STATES = ["tokenizing", "held", "waiting", "preempted", "prefill", "decode", "detokenizing"];

export class States {
  constructor(list) {
    this.rows = STATES.map((state) => {
      const row = document.createElement("li");
      const fill = element("div", "fill");
      const track = element("div", "track");
      const count = element("output", "");
      track.append(fill);
      row.append(element("span", "", state), track, count);
      list.append(row);
      return { state, fill, count };
    });
  }

  /** `requests` as in the feed; `queues` has the true numbers of those states of which only some are listed. */
  update(requests, queues) {
    const counts = Object.fromEntries(STATES.map((state) => [state, 0]));
    for (const { state } of requests) counts[state] += 1;
    for (const state of ["waiting", "prefill", "decode"]) counts[state] = queues?.[state] ?? counts[state];
    const most = Math.max(8, ...Object.values(counts));
    for (const { state, fill, count } of this.rows) {
      fill.style.width = `${(100 * counts[state]) / most}%`;
      count.textContent = counts[state];
    }
  }
}

/** A bar of three parts: prefill, decode, and what is left. */
class Bar {
  constructor(bar) {
    this.parts = ["prefill", "decode", "rest"].map((name) => bar.appendChild(element("div", name)));
  }

  show(prefill, decode, all) {
    const widths = [prefill, decode, Math.max(0, all - prefill - decode)];
    this.parts.forEach((part, index) => (part.style.flexGrow = widths[index]));
  }
}

const NO_STEP = { prefills: 0, decodes: 0, prefill_tokens: 0, decode_tokens: 0 };

export class Batch {
  constructor(tokens, places, caption) {
    this.tokens = new Bar(tokens);
    this.places = new Bar(places);
    this.caption = caption;
  }

  /** `batch` and `queues` as in the feed: the newest step in flight, and all that run. */
  update(batch, queues) {
    const step = batch?.in_flight.at(-1);
    const { prefills, decodes, prefill_tokens: prefill, decode_tokens: decode } = step ?? NO_STEP;
    this.tokens.show(prefill, decode, batch?.budget ?? 1);
    this.places.show(queues?.prefill ?? 0, queues?.decode ?? 0, batch?.slots ?? 1);
    this.caption.textContent = step
      ? `${counted(prefills, "prefill")} of ${counted(prefill, "token")}, ${counted(decodes, "decode")}`
      : "none in flight";
  }
}

function counted(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

const CELL_COLOURS = ["--free", "--cached", "--used", "--shared"]; // by the digits of the feed

export class Blocks {
  constructor(canvas, caption) {
    this.canvas = canvas;
    this.caption = caption;
    this.drawn = "";
  }

  /** `blocks` as in the feed. */
  update(blocks) {
    if (!blocks) return;
    const { total, in_use: used, shared, cached, free } = blocks;
    this.caption.textContent =
      `${used} in use (${shared} shared), ${cached} cached, ${free} free of ${total}, ${blocks.block_size} tokens each` +
      (blocks.blocks_a_cell > 1 ? `; a square is ${blocks.blocks_a_cell}` : "");
    const width = this.canvas.clientWidth;
    const picture = `${blocks.cells} ${width} ${matchMedia("(prefers-color-scheme: dark)").matches}`;
    if (picture === this.drawn) return;
    this.drawn = picture;
    this.draw(blocks.cells, width);
  }

  draw(cells, width) {
    const pitch = Math.max(5, Math.min(12, Math.floor(Math.sqrt((width * 110) / cells.length))));
    const columns = Math.max(1, Math.floor(width / pitch));
    const height = Math.ceil(cells.length / columns) * pitch;
    const scale = devicePixelRatio;
    this.canvas.width = width * scale;
    this.canvas.height = height * scale;
    this.canvas.style.height = `${height}px`;
    const style = getComputedStyle(this.canvas);
    const colours = CELL_COLOURS.map((name) => style.getPropertyValue(name));
    const pen = this.canvas.getContext("2d");
    pen.scale(scale, scale);
    for (let index = 0; index < cells.length; index += 1) {
      pen.fillStyle = colours[cells[index]];
      pen.fillRect((index % columns) * pitch, Math.floor(index / columns) * pitch, pitch - 1, pitch - 1);
    }
  }
}

function element(name, className, content = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = content;
  return made;
}
