"use strict";
// Shows data.json and asks for it again. Text goes into the page as text only: nothing
// that the cluster says is ever read as HTML.
(() => {
  const every = 2000; // ms between two questions
  const points = 60; // of a small chart
  const shownAtOnce = 50; // Services
  const fewBackends = 40; // so many are shown without a click
  const chosen = new Map(); // by name: whether somebody opened or closed a Service
  const charts = new Map(); // by name: rates seen so far, the newest last
  const one = (id) => document.getElementById(id);
  let data = null;
  let limit = shownAtOnce;

  const make = (tag, className, ...children) => {
    const e = document.createElement(tag);
    if (className) e.className = className;
    e.append(...children);
    return e;
  };
  const draw = (tag, attributes, ...children) => {
    const e = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
    e.append(...children);
    return e;
  };
  const number = (n) => (n === null || n === undefined ? "–" : n.toLocaleString("en"));
  const rate = (n) => (n === null || n === undefined ? "–" : n.toLocaleString("en", { maximumFractionDigits: 1 }) + "/s");
  const percent = (part) => (100 * part).toFixed(1) + " %";
  const latency = (us) => (!us ? "–" : us < 1000 ? us + " µs" : us < 1e6 ? (us / 1000).toFixed(1) + " ms" : (us / 1e6).toFixed(2) + " s");

  // spark draws values as a line, from 0 to the greatest of them.
  const spark = (values, width, height, label) => {
    const top = Math.max(...values, 1);
    const path = values
      .map((v, i) => `${i ? "L" : "M"}${((i + points - values.length) * width) / (points - 1)} ${(height - 2) * (1 - v / top) + 1}`)
      .join("");
    return draw("svg", { class: "spark", width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label }, draw("path", { d: path || "M0 0" }));
  };
  // bar draws a measured share and a mark at the expected one.
  const bar = (part, expected) => {
    const width = 80;
    return draw("svg", { class: "bar", width: width + 2, height: 10, role: "img", "aria-label": `share ${percent(part)}, expected ${percent(expected)}` },
      draw("rect", { class: "track", x: 0, y: 2, width, height: 6 }),
      draw("rect", { class: "part", x: 0, y: 2, width: width * Math.min(1, part), height: 6 }),
      draw("rect", { class: "mark", x: width * Math.min(1, expected), y: 0, width: 2, height: 10 }));
  };
  const fact = (value, title, className) => make("span", "fact " + (className || ""), make("small", "", title), value);

  const note = (name, value) => {
    const seen = charts.get(name) || [];
    seen.push(value || 0);
    charts.set(name, seen.slice(-points));
  };

  const health = (b) => {
    const h = b.health;
    if (!h) return make("span", b.suspect ? "doubt" : "dim", b.suspect ? "suspect" : "–");
    const className = h.state === "healthy" ? "good" : h.state === "ejected" && !h.ignored ? "bad" : h.state === "unknown" ? "dim" : "doubt";
    let text = h.state;
    if (h.ignored) text += `, ignored (${h.ignored})`;
    if (h.reason && className !== "good" && className !== "dim") text += ": " + h.reason;
    return make("span", className, text);
  };

  const backends = (s) => {
    const titles = ["Backend", "State", "Weight", "New", "Open", "Failed", "Share", "Latency", "Health"];
    const rows = s.backends.map((b) => {
      const part = b.recent === null ? b.share : b.recent;
      const cells = [b.address, b.starting ? "starting" : b.state, b.weight || b.expected === 0 ? number(b.weight) : "–", rate(b.rate), number(b.live), number(b.failed),
        make("span", "share", bar(part, b.expected), " " + percent(part)), latency(b.latencyMicros), health(b)];
      const tr = make("tr", "");
      cells.forEach((c, i) => {
        const td = make("td", "", c);
        td.dataset.label = titles[i];
        tr.append(td);
      });
      return tr;
    });
    const head = make("tr", "", ...titles.map((t) => make("th", "", t)));
    return make("table", "", make("thead", "", head), make("tbody", "", ...rows));
  };

  const service = (s, open) => {
    const all = s.backends.length;
    const summary = make("summary", "",
      make("span", "name", s.name),
      fact((s.approximation ? "~ " : "") + s.algorithm, "algorithm"),
      spark(charts.get(s.name) || [], 120, 26, "new connections lately"),
      fact(rate(s.rate), "new"), fact(number(s.live), "open"), fact(latency(s.latencyMicros), "latency"),
      fact(`${all - s.out} of ${all}`, "backends in", all === 0 || s.out ? "bad" : ""));
    const e = make("details", "service", summary);
    e.dataset.name = s.name;
    if (open) {
      const body = make("div", "body", make("p", "frontends", s.frontends.join("  ") || "no address",
        ` · ${number(s.opened)} opened, ${number(s.failed)} failed, ${number(s.rejected)} refused`));
      if (s.approximation) body.append(make("p", "frontends", "Approximated: " + s.approximation));
      body.append(all ? backends(s) : make("p", "bad", "No backend: new connections are refused or dropped."));
      e.append(body);
      e.open = true;
    }
    summary.addEventListener("click", (event) => {
      event.preventDefault();
      chosen.set(s.name, !e.open);
      show();
    });
    return e;
  };

  const totals = () => {
    const l = data.live;
    const out = l.services.reduce((n, s) => n + s.out, 0);
    const of = (value, title, ...more) => make("div", "total", make("b", "", value), make("span", "", title), ...more);
    return [of(rate(l.rate), "new connections ", spark(charts.get("") || [], 90, 22, "new connections lately")), of(number(l.live), "open connections"),
      of(number(l.services.length), "Service ports"), of(number(out), "backends out for their health")];
  };

  const show = () => {
    if (!data) return;
    const wanted = one("filter").value.trim().toLowerCase();
    const by = one("sort").value;
    const list = data.live.services.filter((s) => s.name.toLowerCase().includes(wanted));
    list.sort((a, b) => (by === "name" ? 0 : (b[by] || 0) - (a[by] || 0)) || a.name.localeCompare(b.name));
    const few = list.reduce((n, s) => n + s.backends.length, 0) <= fewBackends;
    one("node").textContent = data.node;
    one("about").textContent = `${data.dataplane} dataplane, lbproxy ${data.version}, seen ${new Date(data.live.at).toLocaleTimeString()}`;
    one("totals").replaceChildren(...totals());
    const focused = document.activeElement?.closest?.("details")?.dataset.name; // rows are made anew
    one("services").replaceChildren(...list.slice(0, limit).map((s) => service(s, chosen.has(s.name) ? chosen.get(s.name) : few)));
    if (focused) document.querySelector(`details[data-name="${CSS.escape(focused)}"] > summary`)?.focus();
    const left = list.length - limit;
    one("more").hidden = left <= 0;
    if (left > 0) {
      const button = make("button", "", `Show ${Math.min(left, shownAtOnce)} of ${left} more`);
      button.addEventListener("click", () => { limit += shownAtOnce; show(); });
      one("more").replaceChildren(button);
    }
  };
  const tell = (text) => {
    one("banner").textContent = text;
    one("banner").hidden = !text;
  };

  const ask = async () => {
    if (!document.hidden || !data) {
      try {
        const answer = await fetch("data.json", { cache: "no-store" });
        if (!answer.ok) throw new Error(`${answer.status}: ${(await answer.text()).trim()}`);
        data = await answer.json();
        note("", data.live.rate);
        data.live.services.forEach((s) => note(s.name, s.rate));
        tell(data.live.notes.join(" · "));
        show();
      } catch (e) {
        tell("The agent does not answer: " + e.message);
      }
    }
    setTimeout(ask, every);
  };
  one("filter").addEventListener("input", () => { limit = shownAtOnce; show(); });
  one("sort").addEventListener("change", show);
  one("tools").addEventListener("submit", (event) => event.preventDefault());
  ask();
})();
