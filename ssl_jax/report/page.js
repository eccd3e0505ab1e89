// Draws the charts and the map of a page from the JSON block "data", and wires its few buttons.
// All text goes in as textContent, so nothing in the data is ever read as HTML.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const tip = document.getElementById("tip");
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const svg = (name, attributes, parent, text) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    if (parent) parent.append(node);
    return node;
  };
  const html = (name, parent, text, style) => {
    const node = document.createElement(name);
    if (text !== undefined) node.textContent = text;
    if (style) node.style.cssText = style;
    parent.append(node);
    return node;
  };

  // Numbers as people read them: 1,240  0.3855  2.4e-8; four digits, or what tells a hundredth of
  // the axis's step.
  const power = (v) => Math.floor(Math.log10(Math.abs(v)) + 1e-9);
  const short = (v) => v.toExponential().replace("e+", "e");
  const number = (v, step = Infinity) => {
    if (v === null) return "not finite";
    if (v === 0) return "0";
    const whole = power(v) < 9 ? power(v) + 1 : 0;
    const rounded = Number(v.toPrecision(Math.min(Math.max(4, whole, power(v) - power(step) + 2), 12)));
    return power(v) < -3 || power(v) >= 9 ? short(rounded) : rounded.toLocaleString("en", { maximumFractionDigits: 12 });
  };

  // Round values from low to high, at least `count` of them, and their distance (at least `least`).
  const ticks = (low, high, count, least = 0) => {
    const rough = (high - low) / count;
    const ten = 10 ** power(rough);
    const step = Math.max([5, 2, 1].find((m) => m * ten <= rough * 1.001) * ten, least);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step + 0); // no -0
    return [found, step];
  };
  // What stands beside them: as many decimals as the step has, so that no two are alike.
  const labels = (values, step) => {
    const most = Math.max(...values.map(Math.abs));
    const decimals = Math.max(-power(step), 0);
    return values.map((v) => {
      if (v === 0) return "0";
      if (most >= 1e5 || most < 1e-3) return short(Number(v.toPrecision(Math.max(power(v) - power(step) + 1, 1))));
      return v.toLocaleString("en", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
    });
  };
  const decades = (low, high) => {
    const found = [];
    for (let p = Math.ceil(Math.log10(low) - 1e-9); p <= Math.log10(high) + 1e-9; p++) found.push(10 ** p);
    return found.length > 6 ? found.filter((_, i) => i % 2 === 0) : found;
  };

  const place = (event) => {
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = event.clientX + 16 + box.width > innerWidth ? event.clientX - box.width - 16 : event.clientX + 16;
    const top = Math.min(event.clientY + 16, innerHeight - box.height - 8);
    tip.style.left = `${Math.max(left, 4)}px`;
    tip.style.top = `${Math.max(top, 4)}px`;
  };
  const hide = () => { tip.hidden = true; };
  addEventListener("scroll", hide, { passive: true });
  // A mouse shows things where it is; a finger where it was put down, until it is put elsewhere.
  const shown = [hide]; // functions that take away what is shown
  const clearAll = () => shown.forEach((clear) => clear());
  const follow = (picture, show) => {
    picture.addEventListener("pointermove", show);
    picture.addEventListener("pointerdown", show);
    picture.addEventListener("pointerleave", (event) => { if (event.pointerType !== "touch") clearAll(); });
  };
  addEventListener("pointerdown", clearAll, { capture: true }); // before any picture shows anew
  const color = (s) => `var(--l${s.color % 6})`;
  const dash = (s) => ["", "dash1", "dash2", "dash3"][Math.floor(s.color / 6) % 4];

  // ---- charts ----
  const drawn = []; // {unit, show(x), clear()} of every chart, so that they share a crosshair
  shown.push(() => drawn.forEach((other) => other.clear()));

  const chart = (root, spec) => {
    const width = root.clientWidth;
    if (!width) return; // in a tab that is not shown
    const height = width > 800 ? 240 : 190;
    const finite = spec.series.flatMap((s) => [s.y, s.low || [], s.high || []].flat()).filter((v) => v !== null);
    const xs = spec.series.flatMap((s) => s.x);
    const values = [...finite, ...spec.lines.map((l) => l.value)];
    let [low, high] = values.length ? [Math.min(...values), Math.max(...values)] : [0, 1];
    let [first, last] = [Math.min(...xs), Math.max(...xs)];
    if (spec.log) {
      if (first === last) last = first * 2;
      high *= 1.5;
      low /= 1.5;
    } else {
      if (spec.unit === "step") first = 0;
      if (spec.area) { first -= 0.5; last += 0.5; }
      if (first === last) last = first + 1;
      if (spec.zero) low = Math.min(low, 0);
      const room = (high - low || Math.abs(high) || 1) * 0.06;
      high += room;
      if (!(spec.zero && low === 0)) low -= room;
    }
    const lying = spec.log ? decades(low, high) : ticks(low, high, 3);
    const beside = spec.log ? lying.map((v) => labels([v], v)[0]) : labels(...lying);
    const widest = Math.max(...beside.map((label) => label.length));
    const at = { left: Math.max(46, 12 + 6.5 * widest), right: width - 10, top: 12, bottom: height - 24 };
    const step = spec.log ? undefined : lying[1];
    const scale = spec.log ? Math.log : (v) => v;
    const map = (v, a, b, from, to) => from + ((scale(v) - scale(a)) / (scale(b) - scale(a))) * (to - from);
    const X = (v) => map(v, first, last, at.left, at.right);
    const Y = (v) => map(v, low, high, at.bottom, at.top);

    const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img" });
    picture.setAttribute("aria-label", spec.title);
    (spec.log ? lying : lying[0]).forEach((v, i) => {
      svg("line", { class: "grid", x1: at.left, x2: at.right, y1: Y(v), y2: Y(v) }, picture);
      svg("text", { class: "y", x: at.left - 6, y: Y(v) + 4, "text-anchor": "end" }, picture, beside[i]);
    });
    const [below, apart] = spec.log ? [decades(first, last), 1] : ticks(first, last, Math.min(width / 150, 8), 1);
    // The unit stands at the right end; a value that would be below it, after it: "step 60".
    const under = (x, anchor, label) => svg("text", { class: "x", x, y: height - 8, "text-anchor": anchor }, picture, label);
    const wide = (label) => 6.5 * label.length;
    const marks = labels(below, apart).map((label, i) => ({ label, x: X(below[i]) })).filter((_, i) => below[i] >= first);
    let end = spec.unit;
    let edge = at.right;
    const newest = marks.at(-1);
    if (newest && newest.x + wide(newest.label) / 2 + 10 > at.right - wide(end)) {
      end = `${end} ${marks.pop().label}`;
      edge = Math.min(newest.x + wide(newest.label) / 2, width - 2);
    }
    under(edge, "end", end);
    for (const { x, label } of marks) if (x + wide(label) / 2 + 10 < edge - wide(end)) under(x, "middle", label);
    const above = []; // draw the names of lines, on top of the curves
    const named = []; // [left end, height] of the names of lines, so that none is on another
    for (const line of spec.lines) {
      const y = Y(line.value);
      let right = at.right;
      for (const [left, other] of named) if (Math.abs(other - y) < 13) right = Math.min(right, left - 12);
      named.push([right - 6 * line.name.length, y]);
      if (line.alarm) svg("rect", { class: "zone", x: at.left, width: at.right - at.left, y, height: Math.max(at.bottom - y, 0) }, picture);
      const style = line.color === undefined ? "" : `stroke:${color(line)}`;
      svg("line", { class: line.alarm ? "alarm" : "mark", x1: at.left, x2: at.right, y1: y, y2: y, style }, picture);
      above.push(() => svg("text", { class: line.alarm ? "warn name" : "name", x: right, y: y - 4, "text-anchor": "end" }, picture, line.name));
    }
    for (const s of spec.series) {
      if (s.low) {
        const up = s.x.map((x, i) => `${X(x)},${Y(s.high[i])}`);
        const down = s.x.map((x, i) => `${X(x)},${Y(s.low[i])}`).reverse();
        svg("polygon", { class: "band", points: [...up, ...down].join(" "), style: `fill:${color(s)}` }, picture);
      }
      let path = "";
      let broken = true;
      s.y.forEach((y, i) => {
        if (y === null) {
          broken = true;
          svg("line", { class: "gone", x1: X(s.x[i]), x2: X(s.x[i]), y1: at.bottom - 5, y2: at.bottom + 5 }, picture);
          return;
        }
        if (spec.area) path += `${i ? "L" : "M"}${X(s.x[i] - 0.5)} ${Y(y)}H${X(s.x[i] + 0.5)}`;
        else path += `${broken ? "M" : "L"}${X(s.x[i]).toFixed(1)} ${Y(y).toFixed(1)}`;
        broken = false;
      });
      if (!path) continue;
      if (spec.area) svg("path", { class: "area", d: `${path}V${at.bottom}H${at.left}Z`, style: `fill:${color(s)}` }, picture);
      svg("path", { class: `line ${dash(s)} ${s.faint ? "faint" : ""}`, d: path, style: `stroke:${color(s)}` }, picture);
      if (s.y.length <= 30 && !spec.area) {
        s.y.forEach((y, i) => {
          if (y !== null) svg("circle", { cx: X(s.x[i]), cy: Y(y), r: s.faint ? 1.6 : 2.6, class: s.faint ? "faint" : "", style: `fill:${color(s)}` }, picture);
        });
      }
    }
    for (const write of above) write();
    const hair = svg("line", { class: "hair", y1: at.top, y2: at.bottom, visibility: "hidden" }, picture);
    const dots = spec.series.map((s) => svg("circle", { r: 4, style: `fill:${color(s)}`, visibility: "hidden" }, picture));
    root.replaceChildren(picture);

    const nearest = (s, x) => {
      let best = 0;
      s.x.forEach((v, i) => { if (Math.abs(v - x) < Math.abs(s.x[best] - x)) best = i; });
      return best;
    };
    const show = (x) => {
      if (x < first || x > last) return clear();
      hair.setAttribute("x1", X(x));
      hair.setAttribute("x2", X(x));
      hair.setAttribute("visibility", "visible");
      spec.series.forEach((s, k) => {
        const i = nearest(s, x);
        const seen = s.x.length && s.y[i] !== null && !s.faint;
        dots[k].setAttribute("visibility", seen ? "visible" : "hidden");
        if (seen) { dots[k].setAttribute("cx", X(s.x[i])); dots[k].setAttribute("cy", Y(s.y[i])); }
      });
    };
    const clear = () => [hair, ...dots].forEach((node) => node.setAttribute("visibility", "hidden"));

    const point = (event) => {
      const box = picture.getBoundingClientRect();
      const share = (((event.clientX - box.left) / box.width) * width - at.left) / (at.right - at.left);
      const clipped = Math.min(Math.max(share, 0), 1);
      const raw = spec.log ? first * (last / first) ** clipped : first + (last - first) * clipped;
      const leader = spec.series.reduce((a, b) => (b.x.length > a.x.length ? b : a));
      const x = leader.x[nearest(leader, raw)];
      for (const other of drawn) if (other.unit === spec.unit && (spec.unit === "step" || other.root === root)) other.show(x);
      tip.replaceChildren();
      html("b", tip, `${spec.unit} ${number(x)}`);
      for (const s of spec.series) {
        const i = nearest(s, x);
        const row = html("div", tip);
        html("i", row, undefined, `--k:${color(s)}`).className = dash(s);
        html("em", row, s.name + (s.x[i] === x || s.x.length === leader.x.length ? "" : ` (${number(s.x[i])})`));
        const spread = s.low ? ` ± ${number(Number(((s.high[i] - s.low[i]) / 2).toPrecision(2)))}` : "";
        html("span", row, number(s.y[i], step) + spread);
      }
      place(event);
    };
    follow(picture, point);
    const old = drawn.findIndex((other) => other.root === root);
    if (old >= 0) drawn.splice(old, 1);
    drawn.push({ root, unit: spec.unit, show, clear });
  };

  const watch = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      if (target.dataset.width === String(target.clientWidth)) continue;
      target.dataset.width = target.clientWidth;
      chart(target, data.charts[target.dataset.chart]);
    }
  });
  for (const root of all("[data-chart]")) {
    chart(root, data.charts[root.dataset.chart]);
    root.dataset.width = root.clientWidth;
    watch.observe(root);
  }

  // ---- features on a plane ----
  const plane = (root, spec) => {
    const sheet = root.querySelector("img"); // thumbnails, of examples that are images
    const count = spec.labels.length;
    const classes = spec.names.length;
    const shade = (k) => (k < 0 ? "var(--faint)" : classes <= 10 ? `var(--c${k})` : `hsl(${Math.floor((360 * k) / classes)} 60% 50%)`);
    const picture = svg("svg", { viewBox: "-1.08 -1.08 2.16 2.16", role: "img", "aria-label": "Features on a plane" }, root.querySelector(".canvas"));
    const radius = Math.min(Math.max(0.5 / Math.sqrt(count), 0.012), 0.03);
    const dots = spec.labels.map((k) => svg("circle", { r: radius, style: `fill:${shade(k)}` }, picture));
    let places = null;
    let only = null;
    const move = (name) => {
      places = spec.places[name];
      dots.forEach((dot, i) => { dot.style.transform = `translate(${places[0][i]}px, ${-places[1][i]}px)`; });
      for (const button of all("[data-place]", root)) button.setAttribute("aria-pressed", button.dataset.place === name);
    };
    const choose = (k) => {
      only = only === k ? null : k;
      dots.forEach((dot, i) => dot.classList.toggle("off", only !== null && spec.labels[i] !== only));
      for (const button of all("[data-class]", root)) button.setAttribute("aria-pressed", Number(button.dataset.class) === only);
    };
    for (const button of all("[data-place]", root)) button.addEventListener("click", () => move(button.dataset.place));
    for (const button of all("[data-class]", root)) button.addEventListener("click", () => choose(Number(button.dataset.class)));
    move(Object.keys(spec.places)[0]);

    let on = null;
    const leave = () => { if (on !== null) dots[on].classList.remove("on"); on = null; };
    shown.push(leave);
    follow(picture, (event) => {
      const where = new DOMPoint(event.clientX, event.clientY).matrixTransform(picture.getScreenCTM().inverse());
      let best = null;
      let reach = 0.06 ** 2;
      for (let i = 0; i < count; i++) {
        const away = (places[0][i] - where.x) ** 2 + (-places[1][i] - where.y) ** 2;
        if (away < reach && (only === null || spec.labels[i] === only)) { best = i; reach = away; }
      }
      clearAll();
      if (best === null) return;
      on = best;
      dots[on].classList.add("on");
      tip.replaceChildren();
      if (sheet) {
        const thumb = html("div", tip);
        thumb.className = "thumb sharp";
        thumb.style.backgroundImage = `url("${sheet.src}")`;
        thumb.style.backgroundSize = `${spec.columns * 96}px ${spec.rows * 96}px`;
        thumb.style.backgroundPosition = `${-(on % spec.columns) * 96}px ${-Math.floor(on / spec.columns) * 96}px`;
      }
      if (spec.labels[on] >= 0) html("b", tip, spec.names[spec.labels[on]]);
      if (spec.files.length) html("div", tip, spec.files[on]);
      place(event);
    });
  };
  for (const root of all("[data-plane]")) plane(root, data.planes[root.dataset.plane]);

  // What a picture is, for a finger; a mouse is told by its title.
  for (const tile of all(".tile[title]")) {
    tile.addEventListener("pointerdown", (event) => {
      if (event.pointerType !== "touch") return;
      tip.replaceChildren();
      html("div", tip, tile.title);
      place(event);
    });
  }

  // ---- buttons ----
  const tabs = all("[data-tab]");
  const open = (name) => {
    for (const tab of tabs) {
      tab.setAttribute("aria-selected", tab.dataset.tab === name);
      document.getElementById(tab.dataset.tab).hidden = tab.dataset.tab !== name;
    }
  };
  for (const tab of tabs) tab.addEventListener("click", () => open(tab.dataset.tab));
  if (tabs.length) open(tabs[0].dataset.tab);

  for (const box of all(".config")) {
    const rows = all("tr", box);
    box.querySelector("input").addEventListener("input", (event) => {
      const wanted = event.target.value.toLowerCase();
      for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
    });
  }
  for (const button of all("[data-copy]")) {
    button.addEventListener("click", async () => {
      const code = button.parentNode.querySelector("code");
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "copied";
      } catch { // a browser may refuse: then the text is selected, to be copied by hand
        getSelection().selectAllChildren(code);
      }
    });
  }
  const theme = document.getElementById("theme");
  const remember = (value) => { try { localStorage.setItem("ssl_jax-theme", value); } catch { /* not from disk */ } };
  try { const kept = localStorage.getItem("ssl_jax-theme"); if (kept) document.documentElement.dataset.theme = kept; } catch { /* as above */ }
  theme.addEventListener("click", () => {
    const now = document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    document.documentElement.dataset.theme = now === "dark" ? "light" : "dark";
    remember(document.documentElement.dataset.theme);
  });
})();
