"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const MISSING = 65535;
  const MAX_PANELS_AT_FIRST = 12;
  const MAX_BANDS_AT_FIRST = 8; // more of them hide each other

  // ------------------------------------------------------------------------------------------------- small helpers

  function element(name, options = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(options)) {
      if (key in made) made[key] = value;
      else made.setAttribute(key, value);
    }
    made.append(...children);
    return made;
  }

  /** A line in a learner's style: the places of its colour and of its dashes. */
  function swatch([colour, dashes]) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("class", "swatch");
    svg.setAttribute("viewBox", "0 0 26 10");
    svg.setAttribute("aria-hidden", "true");
    const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    const attributes = { x1: 1, y1: 5, x2: 25, y2: 5, class: `colour-${colour}` };
    const dash = data.dashes[dashes];
    if (dash) attributes["stroke-dasharray"] = dash;
    for (const [key, value] of Object.entries(attributes)) line.setAttribute(key, value);
    svg.append(line);
    return svg;
  }

  const styles = getComputedStyle(document.documentElement);
  const colour = (name) => styles.getPropertyValue(`--${name}`).trim();

  function withOpacity(hex, opacity) {
    return hex + Math.round(255 * opacity).toString(16).padStart(2, "0");
  }

  const whole = (number) => Math.round(number).toLocaleString("en");

  /** Three digits: 0.123, 41.2, 2.3e-5. */
  function short(value) {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    return size !== 0 && (size < 1e-2 || size >= 1e5)
      ? value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e")
      : String(Number(value.toPrecision(3)));
  }

  const power = (value) => (value < 1 ? value.toExponential().replace("e+", "e") : short(value));

  function engineering(value) {
    for (const [factor, sign] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]])
      if (Math.abs(value) >= factor) return Number((value / factor).toPrecision(6)) + sign;
    return String(Number(value.toPrecision(6)));
  }

  // ---------------------------------------------------------------------------------------------------------- data

  function unpack(text, scale) {
    const bytes = atob(text);
    const values = new Array(bytes.length / 2);
    const low = scale.log ? Math.log(scale.low) : scale.low;
    const width = (scale.log ? Math.log(scale.high) : scale.high) - low;
    for (let i = 0; i < values.length; i++) {
      const number = bytes.charCodeAt(2 * i) + 256 * bytes.charCodeAt(2 * i + 1);
      const value = low + (width * number) / (MISSING - 1);
      values[i] = number === MISSING ? null : scale.log ? Math.exp(value) : value;
    }
    return values;
  }

  const numbers = (x) =>
    Array.isArray(x) ? x : Array.from({ length: x.count }, (_, i) => x.first + i * x.distance);

  function medians(lines) {
    return lines[0].map((_, i) => {
      const known = lines.map((line) => line[i]).filter((value) => value !== null).sort((a, b) => a - b);
      if (!known.length) return null;
      const middle = known.length >> 1;
      return known.length % 2 ? known[middle] : (known[middle - 1] + known[middle]) / 2;
    });
  }

  /** Index of the point that is nearest to a place. */
  function nearest(x, place) {
    let low = 0;
    let high = x.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (x[middle] <= place) low = middle;
      else high = middle;
    }
    return place - x[low] <= x[high] - place ? low : high;
  }

  // ---------------------------------------------------------------------------------------------------------- axes

  function linearTicks(low, high, count) {
    const rough = (high - low) / Math.max(1, count);
    const size = 10 ** Math.floor(Math.log10(rough));
    const distance = [1, 2, 5, 10].map((factor) => factor * size).find((step) => step >= rough);
    const ticks = [];
    for (let i = Math.ceil(low / distance); i * distance <= high * (1 + 1e-12); i++)
      ticks.push(Number((i * distance).toPrecision(12)));
    return ticks;
  }

  function logTicks(low, high, count) {
    for (const multiples of [[1, 2, 3, 5], [1, 2, 5], [1, 3], [1]]) {
      const ticks = [];
      for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
        for (const multiple of multiples) {
          const tick = Number(`${multiple}e${power}`);
          if (tick >= low && tick <= high) ticks.push(tick);
        }
      if (ticks.length < 2) break;
      if (ticks.length <= count) return ticks;
      if (multiples.length === 1) return ticks.filter((_, i) => i % Math.ceil(ticks.length / count) === 0);
    }
    return linearTicks(low, high, count);
  }

  // -------------------------------------------------------------------------------------------------------- charts

  class Chart {
    constructor(figure, section, content) {
      this.figure = figure;
      this.section = section;
      this.content = content;
      this.labels = section.labels;
      this.span = content.span;
      this.view = [...this.span];
      this.place = null; // of the cursor
      this.plots = []; // {plot, x, lines, group, show}
      this.matching = new Set(this.labels.keys());
      this.curves = content.kind === "curves";
      figure.classList.add(content.kind);
      this.chosen = new Set(this.firstChosen());
      this.controls();
      this.draw();
    }

    /** All learners; of trajectories, as many as make a dozen panels, those with most blocks first. */
    firstChosen() {
      const learners = this.content.learners;
      if (this.curves) return learners.map((one) => one.learner);
      const byBlocks = [...learners].sort((a, b) => b.blocks.length - a.blocks.length);
      const chosen = [];
      let panels = 0;
      for (const one of byBlocks) {
        if (chosen.length && panels + one.blocks.length > MAX_PANELS_AT_FIRST) continue;
        chosen.push(one.learner);
        panels += one.blocks.length;
      }
      return chosen;
    }

    controls() {
      const named = (text, name, act) => element("button", { type: "button", textContent: text, title: name, ariaLabel: name, onclick: act });
      this.buttons = {
        in: named("+", "Zoom in", () => this.zoom(0.5)),
        out: named("−", "Zoom out", () => this.zoom(2)),
        left: named("←", "Earlier", () => this.pan(-0.5)),
        right: named("→", "Later", () => this.pan(0.5)),
        all: named("Reset", "Show the whole stream", () => this.setView(...this.span)),
      };
      this.readout = element("span", { className: "readout" });
      const bar = element("div", { className: "toolbar", role: "group", ariaLabel: "Zoom" });
      const starts = this.content.boundaries;
      if (starts.length) {
        const edges = [0, ...starts, this.span[1]];
        this.experience = element("select", { ariaLabel: "Show one experience" });
        this.experience.append(element("option", { value: "", textContent: "whole stream" }));
        for (let i = 0; i + 1 < edges.length; i++)
          this.experience.append(element("option", { value: i, textContent: `experience ${i + 1}` }));
        this.experience.onchange = () => {
          const i = this.experience.value;
          if (i === "") this.setView(...this.span);
          else this.setView(edges[i], edges[Number(i) + 1]);
        };
        bar.append(this.experience);
      }
      bar.append(...Object.values(this.buttons));
      if (this.curves && this.content.learners.some((one) => one.edges.length)) {
        this.intervals = element("input", { type: "checkbox", checked: this.content.learners.length <= MAX_BANDS_AT_FIRST });
        this.intervals.onchange = () => this.draw();
        bar.append(element("label", {}, this.intervals, " intervals"));
      }
      bar.append(this.readout);

      const fieldset = element("fieldset", { className: "learners" });
      fieldset.append(element("legend", { className: "unseen", textContent: "Learners shown" }));
      this.choices = new Map();
      for (const { learner } of this.content.learners) {
        const box = element("input", { type: "checkbox", checked: this.chosen.has(learner) });
        const value = element("span", { className: "value" });
        const label = element("label", {}, box, swatch(this.section.lines[learner]), element("span", { textContent: this.labels[learner] }));
        if (this.curves) label.append(value);
        box.onchange = () => {
          if (box.checked) this.chosen.add(learner);
          else this.chosen.delete(learner);
          this.draw();
        };
        this.choices.set(learner, { box, label, value });
        fieldset.append(label);
      }
      if (this.content.learners.length > 3) {
        const every = (checked) => () => {
          for (const [learner, { box, label }] of this.choices) {
            if (label.hidden) continue;
            box.checked = checked;
            if (checked) this.chosen.add(learner);
            else this.chosen.delete(learner);
          }
          this.draw();
        };
        fieldset.append(
          element(
            "div",
            { className: "every" },
            element("button", { type: "button", textContent: "All learners", onclick: every(true) }),
            element("button", { type: "button", textContent: "None", ariaLabel: "No learners", onclick: every(false) }),
          ),
        );
      }

      this.spoken = element("p", { className: "unseen", ariaLive: "polite" });
      this.area = element("div", {
        className: "plots",
        tabIndex: 0,
        role: "application",
        ariaRoleDescription: "chart",
        ariaLabel: this.content.title,
      });
      this.area.setAttribute("aria-describedby", "how-to");
      this.area.onkeydown = (event) => this.key(event);
      const yTitle = element("div", { className: "y-title", textContent: this.content.y_title });
      const xTitle = element("div", { className: "x-title", textContent: this.content.x_title });
      const anchor = this.figure.querySelector("figcaption");
      if (this.curves) anchor.before(bar, yTitle, this.area, xTitle, fieldset, this.spoken);
      else anchor.before(bar, fieldset, yTitle, this.area, xTitle, this.spoken);
    }

    colourOf(learner) {
      return colour(`colour-${this.section.lines[learner][0]}`);
    }

    get shown() {
      return this.content.learners.filter((one) => this.chosen.has(one.learner) && this.matching.has(one.learner));
    }

    draw() {
      for (const { plot } of this.plots) plot.destroy();
      this.plots = [];
      this.area.replaceChildren();
      this.limits = new Map();
      if (!this.shown.length) {
        this.area.append(element("p", { className: "nothing", textContent: "No learner is chosen that matches the filter." }));
      } else if (this.curves) this.drawCurves();
      else for (const one of this.shown) this.drawTrajectories(one);
      this.resize();
      this.setView(...this.view);
    }

    drawCurves() {
      const { scale } = this.content;
      const x = numbers(this.content.x);
      const lines = [];
      const series = [{}];
      const bands = [];
      for (const one of this.shown) {
        one.unpacked ??= { mean: unpack(one.mean, scale), edges: one.edges.map((edge) => unpack(edge, scale)) };
        const dash = data.dashes[this.section.lines[one.learner][1]];
        const stroke = () => this.colourOf(one.learner);
        const many = x.length > 40;
        series.push({ stroke, width: 1.8, dash: dash ? dash.split(" ").map(Number) : undefined, points: { show: !many, size: 5, fill: stroke } });
        lines.push(one.unpacked.mean);
        if (one.unpacked.edges.length && this.intervals.checked) {
          bands.push({ series: [series.length + 1, series.length], fill: () => withOpacity(stroke(), 0.18) });
          for (const edge of one.unpacked.edges) {
            series.push({ stroke: () => withOpacity(stroke(), 0.4), width: 0.5, points: { show: false } });
            lines.push(edge);
          }
        }
      }
      const host = element("div", { className: "panel" });
      this.area.append(host);
      this.addPlot(host, "all", x, lines, series, bands, Math.max(220, Math.min(340, this.area.clientWidth * 0.5)), (i) => {
        for (const { value } of this.choices.values()) value.textContent = "";
        const texts = [];
        for (const one of this.shown) {
          const mean = i === null ? null : one.unpacked.mean[i];
          if (mean === null) continue;
          const [low, high] = one.unpacked.edges.map((edge) => edge[i]);
          const text = this.content.scale.log
            ? short(mean)
            : `${mean.toFixed(1)}${high === undefined || high === null ? "" : ` ± ${Math.max(high - mean, mean - low).toFixed(1)}`}`;
          this.choices.get(one.learner).value.textContent = text;
          texts.push(`${this.labels[one.learner]} ${text}`);
        }
        return texts;
      });
    }

    drawTrajectories(one) {
      const { scale } = this.content;
      const label = this.labels[one.learner];
      const shownBlocks = one.blocks.length < one.n_blocks ? ` (${one.blocks.length} of ${one.n_blocks} blocks)` : "";
      const panels = element("div", { className: "panels" });
      const title = element("div", { className: "group-title" }, swatch(this.section.lines[one.learner]), element("span", { textContent: label + shownBlocks }));
      this.area.append(element("div", { className: "group", role: "group", ariaLabel: label }, title, panels));
      const x = numbers(one.x);
      for (const block of one.blocks) {
        if (!block.unpacked) {
          const seeds = block.seeds.map((line) => unpack(line, scale));
          block.unpacked = { seeds, median: medians(seeds), band: block.band.map((line) => unpack(line, scale)) };
        }
        const { seeds, median, band } = block.unpacked;
        const thin = () => withOpacity(this.colourOf(one.learner), 0.55);
        const noPoints = { show: false };
        const series = [{}, ...seeds.map(() => ({ stroke: thin, width: 0.7, points: noPoints }))];
        const lines = [...seeds];
        const bands = [];
        if (band.length) {
          bands.push({ series: [series.length + 1, series.length], fill: () => withOpacity(this.colourOf(one.learner), 0.18) });
          series.push({ points: noPoints }, { points: noPoints });
          lines.push(...band);
        }
        series.push({ stroke: () => this.colourOf(one.learner), width: seeds.length > 1 ? 2 : 1.4, points: noPoints });
        lines.push(median);
        const value = element("span", { className: "value" });
        const head = element("div", { className: "panel-title" }, element("span", { textContent: block.name }), value);
        const host = element("div", { className: "panel" }, head);
        panels.append(host);
        this.addPlot(host, one.learner, x, lines, series, bands, 150, (i) => {
          const known = i === null ? [] : seeds.map((line) => line[i]).filter((number) => number !== null);
          const range = known.length > 1 ? ` (${short(Math.min(...known))} to ${short(Math.max(...known))})` : "";
          value.textContent = known.length ? short(median[i]) + range : "";
          value.title = seeds.map((line, k) => `seed ${one.seeds[k]}: ${i === null ? "–" : short(line[i])}`).join(", ");
          return known.length ? [`${label}, ${block.name} ${short(median[i])}`] : [];
        });
      }
    }

    addPlot(host, group, x, lines, series, bands, height, show) {
      const log = this.content.scale.log;
      const entry = { x, lines, group, show, host };
      const faint = () => colour("faint");
      const grid = { stroke: () => withOpacity(colour("faint"), 0.13), width: 1 };
      const font = "12px system-ui, sans-serif";
      const options = {
        width: Math.max(120, host.clientWidth),
        height,
        padding: [8, 16, 0, 0],
        legend: { show: false },
        cursor: {
          y: false,
          drag: { x: true, y: false, setScale: true },
          bind: { dblclick: () => () => this.setView(...this.span) }, // uPlot's own would end at the last point
          points: { size: 6, one: false, show: this.curves || undefined },
        },
        scales: {
          x: { time: false, range: (_, low, high) => [low ?? this.span[0], high ?? this.span[1]] },
          y: { distr: log ? 3 : 1, range: () => this.limitsOf(group) },
        },
        axes: [
          {
            stroke: faint, font, grid: { show: false }, ticks: { ...grid, size: 4 }, size: 26, gap: 3,
            splits: (plot, _, low, high) => this.xTicks(plot, low, high),
            values: (_, ticks) => ticks.map(engineering),
          },
          {
            stroke: faint, font, grid, ticks: { show: false }, size: 52, gap: 5,
            splits: (plot, _, low, high) => (log ? logTicks : linearTicks)(low, high, Math.max(2, Math.floor(plot.bbox.height / devicePixelRatio / 32))),
            filter: (_, ticks) => ticks,
            values: (_, ticks) => ticks.map(log && ticks[0] < 0.01 ? power : short),
          },
        ],
        series,
        bands,
        hooks: {
          drawClear: [(plot) => this.drawBoundaries(plot)],
          setScale: [(plot, key) => {
            if (key === "x" && !this.busy) this.setView(plot.scales.x.min, plot.scales.x.max);
          }],
          setCursor: [(plot) => {
            if (this.busy) return;
            const { left } = plot.cursor;
            this.setPlace(left === null || left === undefined || left < 0 ? null : plot.posToVal(left, "x"));
          }],
        },
      };
      this.busy = true;
      entry.plot = new uPlot(options, [x, ...lines], host);
      this.busy = false;
      this.plots.push(entry);
    }

    xTicks(plot, low, high) {
      const experiences = this.content.x_title === "experience";
      const count = Math.max(2, Math.floor(plot.bbox.width / devicePixelRatio / (experiences ? 32 : 60)));
      const ticks = linearTicks(low, high, count);
      return experiences ? ticks.filter(Number.isInteger) : ticks;
    }

    drawBoundaries(plot) {
      const { left, top, width, height } = plot.bbox;
      const [low, high] = this.view;
      const starts = this.content.boundaries.filter((start) => start > low && start < high);
      if (!starts.length || starts.length > width / (3 * devicePixelRatio)) return;
      plot.ctx.save();
      plot.ctx.strokeStyle = withOpacity(colour("faint"), starts.length > 30 ? 0.25 : 0.5);
      plot.ctx.lineWidth = devicePixelRatio * 0.75;
      plot.ctx.setLineDash([]);
      plot.ctx.beginPath();
      for (const start of starts) {
        const place = left + ((start - low) / (high - low)) * width;
        plot.ctx.moveTo(place, top);
        plot.ctx.lineTo(place, top + height);
      }
      plot.ctx.stroke();
      plot.ctx.restore();
    }

    /** As many panels side by side as have room, with rows as equally full as possible. */
    arrange() {
      const limit = Math.max(1, Math.floor(this.area.clientWidth / 260));
      for (const panels of this.area.querySelectorAll(".panels")) {
        const count = panels.children.length;
        panels.style.setProperty("--columns", Math.ceil(count / Math.ceil(count / limit)));
      }
    }

    /** Vertical limits that show everything in view of all plots of a group. */
    limitsOf(group) {
      if (!this.limits.has(group)) {
        let low = Infinity;
        let high = -Infinity;
        const plots = this.plots.filter((entry) => entry.group === group);
        for (const { x, lines } of plots) {
          let first = nearest(x, this.view[0]);
          let last = nearest(x, this.view[1]);
          if (first > 0) first--;
          if (last < x.length - 1) last++;
          for (const line of lines)
            for (let i = first; i <= last; i++) {
              const value = line[i];
              if (value === null) continue;
              if (value < low) low = value;
              if (value > high) high = value;
            }
        }
        const log = this.content.scale.log;
        if (low > high) [low, high] = log ? [0.1, 10] : [0, 1];
        if (log) {
          const margin = Math.max(1.08, (high / low) ** 0.06);
          this.limits.set(group, [low / margin, high * margin]);
        } else {
          const margin = 0.06 * (high - low || 1);
          this.limits.set(group, [Math.max(0, low - margin), Math.min(100, high + margin)]);
        }
      }
      return this.limits.get(group);
    }

    setView(low, high) {
      const [first, last] = this.span;
      const least = (last - first) / 2000;
      if (high - low < least) [low, high] = [(low + high - least) / 2, (low + high + least) / 2];
      const width = Math.min(high - low, last - first);
      low = Math.min(Math.max(low, first), last - width);
      this.view = [low, low + width];
      this.limits.clear();
      this.busy = true;
      for (const { plot } of this.plots)
        plot.batch(() => {
          plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
          plot.setScale("x", { min: this.view[0], max: this.view[1] });
        });
      this.busy = false;
      const all = width >= last - first;
      for (const name of ["out", "left", "right", "all"]) this.buttons[name].disabled = all;
      if (this.experience) {
        const edges = [0, ...this.content.boundaries, last];
        const i = edges.findIndex((edge, k) => edge === this.view[0] && edges[k + 1] === this.view[1]);
        this.experience.value = i < 0 ? "" : String(i);
        this.experience.options[0].textContent = all || i >= 0 ? "whole stream" : "a part of the stream";
      }
      this.figure.dataset.view = this.view.map((value) => Math.round(value * 100) / 100).join(" ");
      this.setPlace(this.place !== null && this.place >= this.view[0] && this.place <= this.view[1] ? this.place : null);
    }

    zoom(factor) {
      const [low, high] = this.view;
      const middle = this.place ?? (low + high) / 2;
      this.setView(middle - (middle - low) * factor, middle + (high - middle) * factor);
    }

    pan(share) {
      const [low, high] = this.view;
      const distance = share * (high - low);
      this.setView(low + distance, high + distance);
    }

    /** Show the values at a place of the stream; null for none. */
    setPlace(place) {
      this.place = place;
      this.texts = [];
      this.busy = true;
      let exact = place;
      for (const { plot, x, show } of this.plots) {
        const i = place === null ? null : nearest(x, place);
        if (i !== null) exact = x[i];
        plot.setCursor(i === null ? { left: -10, top: -10 } : { left: plot.valToPos(x[i], "x"), top: 1 }, false);
        this.texts.push(...show(i));
      }
      this.busy = false;
      this.readout.textContent = place === null ? "" : this.where(exact);
    }

    where(x) {
      if (this.content.x_title === "experience") return `experience ${whole(x)}`;
      const starts = this.content.boundaries;
      const number = starts.filter((start) => start <= x).length + 1;
      return `sample ${whole(x)}${starts.length ? `, experience ${number} of ${starts.length + 1}` : ""}`;
    }

    key(event) {
      if (event.ctrlKey || event.metaKey || event.altKey || !this.plots.length) return;
      const { x } = this.plots[0];
      const [low, high] = this.view;
      const step = (direction) => {
        if (event.shiftKey) return this.pan(0.25 * direction);
        const stride = Math.max(1, Math.round((nearest(x, high) - nearest(x, low)) / 100));
        let i = this.place === null ? nearest(x, direction > 0 ? low : high) : nearest(x, this.place) + direction * stride;
        i = Math.min(Math.max(i, nearest(x, low)), nearest(x, high));
        this.setPlace(x[i]);
      };
      const actions = {
        ArrowLeft: () => step(-1),
        ArrowRight: () => step(1),
        Home: () => this.setPlace(x[nearest(x, low)]),
        End: () => this.setPlace(x[nearest(x, high)]),
        "+": () => this.zoom(0.5),
        "=": () => this.zoom(0.5),
        "-": () => this.zoom(2),
        0: () => this.setView(...this.span),
        Escape: () => this.setView(...this.span),
      };
      if (!actions[event.key]) return;
      event.preventDefault();
      actions[event.key]();
      this.spoken.textContent = this.place === null
        ? `shown: ${this.content.x_title} ${whole(this.view[0])} to ${whole(this.view[1])}`
        : `${this.readout.textContent}: ${this.texts.join("; ")}`;
    }

    match(matching) {
      if (this.content.learners.every(({ learner }) => matching.has(learner) === this.matching.has(learner))) return;
      this.matching = matching;
      for (const [learner, { label }] of this.choices) label.hidden = !matching.has(learner);
      this.draw();
    }

    resize() {
      this.arrange();
      for (const { plot, host } of this.plots)
        if (host.clientWidth && host.clientWidth !== plot.width) plot.setSize({ width: host.clientWidth, height: plot.height });
    }
  }

  const charts = new Map(); // figure → Chart; made when it comes into sight
  const figures = [...document.querySelectorAll("figure[data-chart]")];
  let matchingOf = data.sections.map((section) => new Set(section.labels.keys()));

  function makeChart(figure) {
    if (charts.has(figure)) return;
    const place = Number(figure.closest("[data-section]").dataset.section);
    const section = data.sections[place];
    const chart = new Chart(figure, section, section.charts[Number(figure.dataset.chart)]);
    charts.set(figure, chart);
    chart.match(matchingOf[place]);
    resizing.observe(chart.area);
  }

  const resizing = new ResizeObserver((entries) => {
    for (const { target } of entries) charts.get(target.closest("figure")).resize();
  });
  const sight = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries)
        if (isIntersecting) {
          sight.unobserve(target);
          makeChart(target);
        }
    },
    { rootMargin: "400px" },
  );
  for (const figure of figures) {
    figure.style.minHeight = "20rem"; // so that those below do not come into sight at once
    sight.observe(figure);
  }

  /** The rest, when there is nothing else to do. */
  function makeNext() {
    const figure = figures.find((one) => !charts.has(one));
    if (!figure) return;
    makeChart(figure);
    whenIdle(makeNext);
  }
  const whenIdle = window.requestIdleCallback ?? ((act) => setTimeout(act, 50));
  whenIdle(makeNext);

  function redraw() {
    for (const chart of charts.values()) for (const { plot } of chart.plots) plot.redraw(false);
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  addEventListener("beforeprint", () => {
    figures.forEach(makeChart);
    redraw();
  });

  // -------------------------------------------------------------------------------------------------------- tables

  function sortBy(heading) {
    const table = heading.closest("table");
    const column = heading.cellIndex;
    const number = heading.classList.contains("number");
    const before = heading.getAttribute("aria-sort");
    const descending = before === "none" ? number : before === "ascending";
    for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const sign = descending ? -1 : 1;
    const key = (row) => row.cells[column].dataset.sort;
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const [first, second] = [key(a), key(b)];
      if (first === undefined || second === undefined) return (first === undefined) - (second === undefined);
      return sign * (number ? toNumber(first) - toNumber(second) : first.localeCompare(second, "en", { numeric: true }));
    });
    table.tBodies[0].append(...rows);
  }

  const toNumber = (text) => (text === "inf" ? Infinity : Number(text));

  for (const heading of document.querySelectorAll(".sortable thead th"))
    heading.querySelector("button").onclick = () => sortBy(heading);

  // -------------------------------------------------------------------------------------------------------- filter

  const box = document.getElementById("filter");
  const words = (text) => text.toLocaleLowerCase().split(/\s+/).filter(Boolean);

  function filter() {
    const wanted = words(box.value);
    const fits = (text) => wanted.every((word) => text.toLocaleLowerCase().includes(word));
    matchingOf = data.sections.map(
      (section) => new Set([...section.labels.keys()].filter((learner) => fits(section.labels[learner]))),
    );
    const counts = { learner: [0, 0], run: [0, 0] };
    for (const row of document.querySelectorAll("[data-learner]")) {
      row.hidden = !fits(row.textContent);
      const kind = row.closest(".all-runs") ? "run" : null;
      if (kind) {
        counts[kind][0] += !row.hidden;
        counts[kind][1] += 1;
      }
    }
    matchingOf.forEach((matching, place) => {
      counts.learner[0] += matching.size;
      counts.learner[1] += data.sections[place].labels.length;
    });
    for (const chart of charts.values()) chart.match(matchingOf[data.sections.indexOf(chart.section)]);
    document.getElementById("shown").textContent = wanted.length
      ? Object.entries(counts).map(([kind, [shown, all]]) => `${shown} of ${all} ${kind}s`).join(", ")
      : "";
  }

  let waiting;
  box.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(filter, 120);
  });
  for (const one of document.querySelectorAll(".filter, .hint")) one.hidden = false;

  // ------------------------------------------------------------------------------------------- commands and places

  for (const button of document.querySelectorAll(".copy")) {
    button.hidden = false;
    button.onclick = async () => {
      const text = button.previousElementSibling;
      getSelection().selectAllChildren(text);
      try {
        await navigator.clipboard.writeText(text.textContent);
        button.textContent = "Copied";
        setTimeout(() => (button.textContent = "Copy"), 1500);
      } catch {
        button.textContent = "Selected"; // the browser does not let pages from disk copy
      }
    };
  }

  function openTarget() {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    if (target instanceof HTMLDetailsElement) {
      target.hidden = false;
      target.open = true;
      target.scrollIntoView();
    }
  }
  addEventListener("hashchange", openTarget);
  openTarget();
})();
