// The last two minutes as curves. uPlot draws them; it comes with the page (vendor/).

const SPAN_S = 120;
const TICKS_S = [105, 75, 45, 15]; // ages that are written below

export class Plot {
  /** `curves`: [label, colour variable] each; `unit` stands behind a value. */
  constructor(place, curves, unit) {
    this.place = place;
    this.data = [[], ...curves.map(() => [])];
    this.curves = curves;
    this.unit = unit;
    this.build();
    new ResizeObserver(() => this.plot.setSize(this.size())).observe(place);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.build());
  }

  /** A point in time (Unix seconds) with one value a curve; null is a gap. */
  add(time, values) {
    [time, ...values].forEach((value, index) => this.data[index].push(value));
    while (this.data[0][0] < time - SPAN_S) this.data.forEach((column) => column.shift());
    this.plot.setData(this.data);
    this.plot.setScale("x", { min: time - SPAN_S, max: time });
  }

  size() {
    return { width: Math.max(200, this.place.clientWidth), height: 150 };
  }

  build() {
    this.plot?.destroy();
    const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui" };
    const options = {
      ...this.size(),
      series: [
        {},
        ...this.curves.map(([label, name]) => ({
          label,
          stroke: colour(name),
          width: 1.5,
          spanGaps: false,
          points: { show: false },
          value: (_, value) => (value == null ? "–" : `${value.toFixed(value < 10 ? 1 : 0)} ${this.unit}`),
        })),
      ],
      axes: [
        { ...axis, splits: (plot) => TICKS_S.map((age) => plot.scales.x.max - age), values: () => TICKS_S.map(ago) },
        { ...axis, size: 46, space: 26 },
      ],
      legend: { markers: { width: 1 } },
      scales: { y: { range: (_, low, high) => [0, Math.max(1, (high ?? 1) * 1.1)] } },
      cursor: { y: false, points: { size: 5 } },
    };
    this.plot = new uPlot(options, this.data, this.place);
  }
}

function ago(seconds) {
  return `${seconds} s ago`;
}
