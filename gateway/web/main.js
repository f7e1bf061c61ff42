// The page: follow the feed of docs/live.md, show every snapshot; ask for the key when the server does.

import { ServerError, events, rememberKey, request } from "./api.js";
import { startChat } from "./chat.js";
import { Plot } from "./plots.js";
import { Ring } from "./ring.js";
import { Batch, Blocks, States } from "./states.js";
import { Waterfall, milliseconds } from "./waterfall.js";

const RETRY_MS = 1000;

const find = (id) => document.getElementById(id);

const ring = new Ring(find("ring"));
const states = new States(find("states"));
const batch = new Batch(find("batch"), find("places"), find("batch-caption"));
const blocks = new Blocks(find("blocks"), find("blocks-caption"));
const waterfall = new Waterfall(find("waterfall"), find("request"), find("newer"));
const throughput = new Plot(find("plot-throughput"), [["out", "--decode"], ["in", "--prefill"]], "tok/s");
const latency = new Plot(find("plot-latency"), [["TTFT", "--queue"], ["between tokens", "--decode"]], "ms");

function show(snapshot) {
  const { processes, queues, batch: steps, blocks: kv, requests, series } = snapshot;
  showStatus(snapshot);
  ring.update(processes);
  states.update(requests, queues);
  batch.update(steps, queues);
  blocks.update(kv);
  waterfall.add(snapshot.ended);
  throughput.add(snapshot.time, [series.generated_tokens_s, series.prefill_tokens_s]);
  latency.add(snapshot.time, [series.ttft_ms?.mean ?? null, series.itl_ms?.mean ?? null]);
  showTiles(snapshot);
}

function showStatus({ model, draining, processes }) {
  const lost = processes.filter(({ state }) => state === "lost").map(({ name }) => name);
  const starting = processes.filter(({ state }) => state === "starting").map(({ name }) => name);
  find("model").textContent = model ?? "";
  if (draining) setStatus("draining", "");
  else if (lost.length) setStatus(`lost: ${lost.join(", ")}`, "lost");
  else if (starting.length) setStatus(`starting: ${starting.join(", ")}`, "");
  else setStatus("ready", "ready");
}

function setStatus(text, className) {
  find("status").textContent = text;
  find("status").className = `pill ${className}`;
}

let lastTtft = null; // of the tiles: a quiet server still shows its last figures
let lastItl = null;
let cached = { hit: 0, all: 0 };

function showTiles({ series, queues, blocks: kv, ended }) {
  lastTtft = series.ttft_ms?.mean ?? lastTtft;
  lastItl = series.itl_ms?.mean ?? lastItl;
  for (const { cached_tokens: hit, prompt_tokens: all } of ended) {
    if (all) cached = { hit: cached.hit + hit, all: cached.all + all };
  }
  find("tile-throughput").textContent = Math.round(series.generated_tokens_s).toLocaleString("en");
  find("tile-ttft").textContent = milliseconds(lastTtft);
  find("tile-itl").textContent = milliseconds(lastItl);
  find("tile-running").textContent = queues ? queues.prefill + queues.decode : "–";
  find("tile-waiting").textContent = queues ? queues.waiting + queues.held : "–";
  find("tile-cached").textContent = cached.all ? `${Math.round((100 * cached.hit) / cached.all)} %` : "–";
  find("tile-kv").textContent = kv ? `${((100 * kv.in_use) / kv.total).toFixed(1)} %` : "–";
}

/** Follow the feed for ever; come back when it breaks. */
async function follow() {
  for (;;) {
    try {
      const feed = events(await request("v1/events"));
      waterfall.clear(); // the first snapshot brings the latest of them again
      for await (const snapshot of feed) show(snapshot);
      setStatus("the server has ended the feed", "lost");
    } catch (error) {
      if (error instanceof ServerError && error.status === 401) {
        await askForKey();
        continue;
      }
      setStatus(error instanceof ServerError ? error.message : "the server cannot be reached", "lost");
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

let asked = false;

function askForKey() {
  const dialog = find("key-dialog");
  find("key-fault").hidden = !asked;
  asked = true;
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener(
      "close",
      () => {
        rememberKey(find("key").value);
        resolve();
      },
      { once: true },
    );
  });
}

startChat();
follow();
