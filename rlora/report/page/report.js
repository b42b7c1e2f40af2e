// The page of a report: charts that draw when they are reached, and the browser of rollouts. What a policy said is
// text here and nothing else: it is put into the page by textContent alone.
"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const element = (name, properties = {}, ...children) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(properties)) {
      if (key in made) made[key] = value;
      else made.setAttribute(key, value);
    }
    made.append(...children);
    return made;
  };
  const bytesOf = (base64) => Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const inflated = async (base64) => {
    const stream = new Blob([bytesOf(base64)]).stream().pipeThrough(new DecompressionStream("deflate"));
    return JSON.parse(await new Response(stream).text());
  };

  // Charts -----------------------------------------------------------------------------------------------------------
  const items = JSON.parse(byId("charts").textContent);
  const drawn = {}; // name -> Bokeh's view, a promise
  const outOfTheKeyboardsWay = (place) => { // a chart is a picture with a text of its own
    for (const inner of place.querySelectorAll("*")) {
      if (inner.getAttribute("tabindex") === "0") inner.tabIndex = -1;
      if (inner.shadowRoot) outOfTheKeyboardsWay(inner.shadowRoot);
    }
  };
  const draw = (place) => {
    const name = place.dataset.chart;
    if (name in drawn || !(name in items)) return;
    place.id = `plot-${name}`;
    drawn[name] = Bokeh.embed.embed_item({ ...items[name], target_id: place.id }).then((views) => {
      outOfTheKeyboardsWay(place);
      place.dataset.drawn = "true";
      return views;
    });
  };
  const seen = new IntersectionObserver(
    (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => draw(entry.target)),
    { rootMargin: "300px" },
  );
  document.querySelectorAll("[data-chart]").forEach((place) => seen.observe(place));
  window.addEventListener("beforeprint", () => document.querySelectorAll("[data-chart]").forEach(draw));

  // Rollouts ---------------------------------------------------------------------------------------------------------
  const head = JSON.parse(byId("head").textContent);
  const browser = byId("rollouts") ? new RolloutBrowser() : null;

  function RolloutBrowser() {
    const { index, problems, sets, kinds, stops, edges, chunkEnds } = head;
    const chunks = [...document.querySelectorAll("script.chunk")].map((script) => ({ base64: script.textContent }));
    document.querySelectorAll("script.chunk").forEach((script) => script.remove());
    const form = byId("filters");
    let formulas = new Map();
    let groups = []; // of rollouts of one set, step and problem, in the order that they were sampled in
    let groupOf = new Map();
    let matching = []; // numbers of the groups that have a rollout which passes the filter
    let passes = new Uint8Array(0);
    let current = 0; // a place in `matching`
    let following = false;
    let lowered = []; // texts in lower case, to search
    const reported = { filterMilliseconds: 0 };

    const keyOf = (number) => `${index.set[number]}/${index.step[number]}/${index.problem[number]}`;
    const takeIn = (first) => {
      for (let number = first; number < index.step.length; number++) {
        const key = keyOf(number);
        if (!groupOf.has(key)) {
          groupOf.set(key, groups.length);
          groups.push({
            set: index.set[number], step: index.step[number], problem: index.problem[number], rollouts: [],
          });
        }
        groups[groupOf.get(key)].rollouts.push(number);
      }
    };
    const chunkOf = (number) => {
      let low = 0;
      let high = chunkEnds.length - 1;
      while (low < high) {
        const middle = (low + high) >> 1;
        if (chunkEnds[middle] > number) high = middle;
        else low = middle + 1;
      }
      return low;
    };
    const inflate = (place) => {
      const chunk = chunks[place];
      if (!chunk.reading) {
        chunk.reading = inflated(chunk.base64).then((rollouts) => {
          chunk.rollouts = rollouts;
          chunk.base64 = null;
          const first = place ? chunkEnds[place - 1] : 0;
          rollouts.forEach((rollout, offset) => {
            lowered[first + offset] = rollout.text.toLowerCase();
          });
          return rollouts;
        });
      }
      return chunk.reading;
    };
    const rolloutOf = async (number) => {
      const place = chunkOf(number);
      return (await inflate(place))[number - (place ? chunkEnds[place - 1] : 0)];
    };
    const inflateAll = () => Promise.all(chunks.map((_, place) => inflate(place)));

    // Filters
    const number = (name) => (form.elements[name].value === "" ? null : Number(form.elements[name].value));
    const fill = (name, values, labels = values) => {
      const select = form.elements[name];
      const kept = select.value;
      const first = name === "set" ? [] : [element("option", { value: "", textContent: "any" })];
      select.replaceChildren(
        ...first, ...values.map((value, place) => element("option", { value, textContent: labels[place] })),
      );
      if (kept && values.map(String).includes(kept)) select.value = kept;
    };
    const fillFilters = () => {
      fill("set", sets.map((_, place) => place), sets.map((one) => one.name));
      const there = (name, size) => [...Array(size).keys()].filter((value) => index[name].includes(value));
      const found = there("kind", kinds.length);
      fill("kind", found, found.map((kind) => kinds[kind].replaceAll("_", " ")));
      const ends = there("stop", stops.length);
      const names = { end: "itself", length: "the token limit", stop_string: "a stop string", prompt: "too long a prompt" };
      fill("stop", ends, ends.map((stop) => names[stops[stop]] ?? stops[stop]));
    };
    const filter = async () => {
      const text = form.elements.text.value.toLowerCase();
      if (text && lowered.filter((one) => one !== undefined).length < index.step.length) {
        byId("count").textContent = "Reading all completions ...";
        await inflateAll();
      }
      const start = performance.now();
      const wantedProblem = form.elements.problem.value.toLowerCase();
      const problemPasses = wantedProblem
        ? problems.map((problem) => `${problem.id}\n${problem.question}`.toLowerCase().includes(wantedProblem))
        : null;
      const [set, kind, stop] = ["set", "kind", "stop"].map(number);
      const [rewardLow, rewardHigh, tokensLow, tokensHigh] =
        ["rewardLow", "rewardHigh", "tokensLow", "tokensHigh"].map(number);
      const size = index.step.length;
      const hasPassed = new Uint8Array(size);
      const groupPasses = new Uint8Array(groups.length);
      let count = 0;
      groups.forEach((group, place) => {
        if (group.set !== set || (problemPasses && !problemPasses[group.problem])) return;
        for (const one of group.rollouts) {
          if (kind !== null && index.kind[one] !== kind) continue;
          if (stop !== null && index.stop[one] !== stop) continue;
          if (rewardLow !== null && !(index.reward[one] >= rewardLow)) continue;
          if (rewardHigh !== null && !(index.reward[one] <= rewardHigh)) continue;
          if (tokensLow !== null && !(index.tokens[one] >= tokensLow)) continue;
          if (tokensHigh !== null && !(index.tokens[one] <= tokensHigh)) continue;
          if (text && !lowered[one].includes(text)) continue;
          hasPassed[one] = 1;
          groupPasses[place] = 1;
          count++;
        }
      });
      const shown = matching[current];
      passes = hasPassed;
      matching = [];
      groupPasses.forEach((has, place) => has && matching.push(place));
      reported.filterMilliseconds = performance.now() - start;
      const left = head.numLeftOut ? `, of ${head.numLeftOut} steps none is in this page` : "";
      byId("count").textContent =
        `${count.toLocaleString("en")} of ${size.toLocaleString("en")} rollouts, in ` +
        `${matching.length.toLocaleString("en")} groups${left}`;
      const again = matching.indexOf(shown);
      return show(again >= 0 ? again : 0);
    };

    // A group
    const FORMULA = /\$\$([^$]+)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|\$([^\s$](?:[^$\n]*[^\s$])?)\$/gs;
    const MATHML = new Set(("math mrow mi mn mo mtext ms mspace mfrac msqrt mroot msub msup msubsup munder mover " +
      "munderover mtable mtr mtd mstyle mpadded mphantom menclose merror").split(" "));
    const KEPT = new Set(["display", "displaystyle", "scriptlevel", "mathvariant", "stretchy", "fence", "linethickness",
      "columnalign", "rowspacing", "columnspacing", "accent", "accentunder", "width", "lspace", "rspace", "notation"]);
    const mathematics = (source) => {
      const parsed = new DOMParser().parseFromString(source, "application/xml").documentElement;
      const copy = (node) => {
        if (node.nodeType === Node.TEXT_NODE) return document.createTextNode(node.data);
        if (node.nodeType !== Node.ELEMENT_NODE || !MATHML.has(node.localName)) return document.createTextNode("");
        const made = document.createElementNS("http://www.w3.org/1998/Math/MathML", node.localName);
        for (const { name, value } of node.attributes) if (KEPT.has(name)) made.setAttribute(name, value);
        made.append(...[...node.childNodes].map(copy));
        return made;
      };
      return copy(parsed);
    };
    const typeset = (text) => {
      const parts = [];
      let end = 0;
      for (const match of text.matchAll(FORMULA)) {
        const source = match.slice(1).find((group) => group !== undefined).trim();
        if (!formulas.has(source)) continue;
        parts.push(text.slice(end, match.index), mathematics(formulas.get(source)));
        end = match.index + match[0].length;
      }
      return [...parts, text.slice(end)];
    };
    const range = (values, place) => {
      if (place === 0) return `below ${values[0]}`;
      return place === values.length ? `above ${values.at(-1)}` : `${values[place - 1]} to ${values[place]}`;
    };
    const classOf = (colour, place) => {
      if (colour === "difference") return `m${place}`;
      return colour === "probability" ? `s${edges.probability.length - place}` : `s${place}`;
    };
    const tokens = (rollout, colour) => {
      const bytes = new TextEncoder().encode(rollout.text);
      const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
      const made = [];
      let start = 0;
      let end = 0;
      for (let place = 0; place < rollout.lengths.length; place++) {
        end += rollout.lengths.charCodeAt(place) - 35;
        let piece;
        try {
          piece = decoder.decode(bytes.subarray(start, end));
        } catch {
          continue; // a character goes on in the next token
        }
        const letter = rollout[colour]?.[place] ?? "-";
        const span = element("span", { textContent: piece || "⏹" });
        if (letter === "-") {
          span.className = "untrained";
          span.title = "not trained";
        } else {
          const at = letter.charCodeAt(0) - 65;
          span.className = classOf(colour, at);
          span.title = `${colour} ${range(edges[colour], at)}${colour === "probability" ? "" : " nats"}`;
        }
        made.push(span);
        start = end;
      }
      return made;
    };
    const said = (rollout) => {
      const colour = form.elements.colour.value;
      const box = element("div", { className: "said" });
      if (colour === "advantage" && rollout.advantage !== undefined) {
        const place = Math.max(0, Math.min(12, 6 + Math.round(3 * rollout.advantage)));
        box.append(element("span", { className: `m${place}`, textContent: rollout.text }));
      } else if (colour && colour !== "advantage" && rollout.lengths) box.append(...tokens(rollout, colour));
      else box.append(...typeset(rollout.text));
      if (!rollout.text) box.append(element("em", { textContent: "(nothing)" }));
      return box;
    };
    const amount = (value) => Number(value.toPrecision(4)).toString();
    const card = (one, rollout, arms) => {
      const kind = kinds[index.kind[one]];
      const isGood = kind === "correct";
      const meta = element(
        "p", { className: "meta" },
        element("strong", { className: "verdict", textContent: kind.replaceAll("_", " ") }),
        element("span", { textContent: `reward ${amount(index.reward[one])}` }),
        element("span", { textContent: index.tokens[one] === 1 ? "1 token" : `${index.tokens[one]} tokens` }),
      );
      if (arms.length > 1) meta.prepend(element("strong", { textContent: arms[index.arm[one]] }));
      if (stops[index.stop[one]] === "length") meta.append(element("span", { textContent: "cut off" }));
      if (rollout.advantage !== undefined) {
        meta.append(element("span", { textContent: `advantage ${amount(rollout.advantage)}` }));
      }
      for (const [name, value] of Object.entries(rollout.parts ?? {})) {
        meta.append(element("span", { textContent: `${name} ${amount(value)}` }));
      }
      const item = element("li", { className: `card ${isGood ? "good" : "bad"}${passes[one] ? "" : " aside"}` }, meta,
        said(rollout));
      const taken = rollout.extracted ? `taken for the answer: ${rollout.extracted}` : "no text was taken for an answer";
      const because = rollout.reason ? `; ${rollout.reason}` : "";
      item.append(element("p", { className: "taken", textContent: `${taken}${because}` }));
      return item;
    };
    const asked = (group, numRight) => {
      const problem = problems[group.problem];
      const details = element("details", { className: "card", open: true });
      details.append(element("summary", { textContent:
        `${problem.id}: ${numRight} of ${group.rollouts.length} right, gold ${problem.gold}` }));
      const turns = problem.messages ?? [{ role: "", content: problem.question }];
      for (const turn of turns) {
        const box = element("div", { className: "said" });
        if (turn.role) box.append(element("strong", { textContent: `${turn.role}: ` }));
        box.append(...typeset(turn.content));
        details.append(box);
      }
      return details;
    };
    let showing = 0; // the last that was asked for: an earlier one that is inflated later is not shown
    const show = async (place) => {
      const turn = ++showing;
      current = Math.max(0, Math.min(place, matching.length - 1));
      const group = groups[matching[current]];
      for (const id of ["previous", "next", "stepBack", "stepOn", "follow"]) byId(id).disabled = !group;
      if (!group) {
        byId("where").textContent = "No rollout passes the filter.";
        byId("group").replaceChildren();
        byId("steps").hidden = true;
        return;
      }
      const arms = sets[group.set].arms;
      const rollouts = await Promise.all(group.rollouts.map(rolloutOf));
      if (turn !== showing) return;
      byId("previous").disabled = current === 0;
      byId("next").disabled = current === matching.length - 1;
      byId("stepBack").disabled = stepFrom(-1) === null;
      byId("stepOn").disabled = stepFrom(1) === null;
      byId("where").textContent =
        `${arms.length > 1 ? "" : `step ${group.step}, `}group ${current + 1} of ${matching.length}`;
      const numRight = group.rollouts.filter((one) => kinds[index.kind[one]] === "correct").length;
      const list = element("ol", { className: "completions" },
        ...group.rollouts.map((one, at) => card(one, rollouts[at], arms)));
      byId("group").replaceChildren(asked(group, numRight), list);
      byId("group").dataset.shown = String(matching[current]);
      byId("group").querySelectorAll(".said").forEach((box, at) => {
        if (box.scrollHeight <= box.clientHeight) return; // a box that scrolls must be reached by the keyboard
        box.tabIndex = 0;
        box.setAttribute("role", "region");
        box.setAttribute("aria-label", `Text ${at + 1}`);
      });
      showSteps(group);
      showScale();
    };
    const stepFrom = (direction) => {
      const group = groups[matching[current]];
      for (let place = current + direction; place >= 0 && place < matching.length; place += direction) {
        const other = groups[matching[place]];
        if (following ? other.problem === group.problem && other.step !== group.step : other.step !== group.step) {
          if (following || direction > 0) return place;
          while (place > 0 && groups[matching[place - 1]].step === other.step) place--;
          return place;
        }
      }
      return null;
    };
    const showSteps = (group) => {
      const list = byId("steps");
      list.hidden = !following;
      byId("follow").setAttribute("aria-pressed", String(following));
      if (!following) return;
      const places = matching.map((_, place) => place).filter((place) => {
        const other = groups[matching[place]];
        return other.problem === group.problem && other.set === group.set;
      });
      list.replaceChildren(...places.map((place) => {
        const other = groups[matching[place]];
        const right = other.rollouts.filter((one) => kinds[index.kind[one]] === "correct").length;
        const button = element("button", { type: "button", textContent: `step ${other.step}: ${right}/${other.rollouts.length}` });
        button.setAttribute("aria-current", String(place === current));
        button.addEventListener("click", () => show(place));
        return element("li", {}, button);
      }));
    };
    const showScale = () => {
      const colour = form.elements.colour.value;
      const box = byId("scale");
      box.hidden = !colour;
      if (!colour) return;
      if (colour === "advantage") {
        box.replaceChildren("Whole completions: blue below the group's mean, red above.");
        return;
      }
      const unit = colour === "probability" ? "" : " nats";
      box.replaceChildren(
        ...[...Array(edges[colour].length + 1).keys()].map((place) =>
          element("span", { className: classOf(colour, place), textContent: range(edges[colour], place) + unit })),
        element("span", { className: "untrained", textContent: "grey: not trained, or the run kept no values" }),
      );
    };

    // What is done by hand
    let waiting = 0;
    form.addEventListener("input", (event) => {
      if (event.target.name === "colour") return show(current);
      clearTimeout(waiting);
      waiting = setTimeout(filter, event.target.type === "search" ? 150 : 0);
    });
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => setTimeout(filter, 0));
    const move = (place) => place !== null && show(place);
    const actions = {
      n: () => move(Math.min(current + 1, matching.length - 1)),
      p: () => move(Math.max(current - 1, 0)),
      "]": () => move(stepFrom(1)),
      "[": () => move(stepFrom(-1)),
      f: () => {
        following = !following;
        return show(current);
      },
      c: () => {
        const select = form.elements.colour;
        select.selectedIndex = (select.selectedIndex + 1) % select.options.length;
        return show(current);
      },
      "/": () => form.elements.text.focus(),
    };
    const buttons = { next: "n", previous: "p", stepOn: "]", stepBack: "[", follow: "f" };
    for (const [id, key] of Object.entries(buttons)) byId(id).addEventListener("click", actions[key]);
    document.addEventListener("keydown", (event) => {
      const isTyping = event.target.matches?.("input, select, textarea");
      if (isTyping || event.ctrlKey || event.metaKey || event.altKey || !(event.key in actions)) return;
      event.preventDefault();
      actions[event.key]();
    });

    takeIn(0);
    fillFilters();
    form.elements.set.value = "0";
    const started = inflated(byId("formulas").textContent).then((found) => {
      formulas = new Map(Object.entries(found));
      return filter();
    });
    const later = window.requestIdleCallback ?? ((work) => setTimeout(work, 50));
    const readOn = (place) => place < chunks.length && later(() => inflate(place).then(() => readOn(place + 1)));
    started.then(() => readOn(0));

    return {
      started,
      reported,
      filter,
      inflateAll,
      append: async (more) => {
        const first = index.step.length;
        for (const name of Object.keys(index)) index[name].push(...more.index[name]);
        problems.push(...more.problems);
        sets.splice(0, sets.length, ...more.sets);
        stops.splice(0, stops.length, ...more.stops);
        chunkEnds.splice(0, chunkEnds.length, ...more.chunkEnds);
        chunks.push(...more.chunks.map((base64) => ({ base64 })));
        const found = await inflated(more.formulas);
        for (const [source, value] of Object.entries(found)) formulas.set(source, value);
        takeIn(first);
        fillFilters();
        await filter();
      },
    };
  }

  // A run that goes on (`rlora watch`): what is new is asked for, and put behind what is there -----------------------
  const append = async (more) => {
    for (const [name, sources] of Object.entries(more.rows)) {
      if (!(name in items)) {
        if (sources["run:0"].step.length) location.reload(); // there is something to draw that there was not
        continue;
      }
      draw(document.querySelector(`[data-chart="${name}"]`));
      const [view] = [...(await drawn[name])];
      for (const [source, columns] of Object.entries(sources)) {
        const kept = view.model.document.get_model_by_name(source);
        const shared = Object.keys(kept.data).map((column) => [column, columns[column] ?? columns.step.map(() => NaN)]);
        if (columns.step.length) kept.stream(Object.fromEntries(shared));
      }
    }
    if (!browser && more.rollouts) location.reload();
    if (browser && more.rollouts) await browser.append(more.rollouts);
  };
  const watch = async (address) => {
    let after = head.watch.next, said = "";
    for (;;) {
      try {
        const answer = await fetch(`${address}&after=${encodeURIComponent(after)}`);
        if (!answer.ok) throw new Error(String(answer.status));
        const more = await answer.json();
        after = more.next;
        byId("live").textContent = more.isRunning ? `live, ${more.step} steps` : `ended after ${more.step} steps`;
        if (more.isNew) location.reload();
        if (more.hasMore) await append(more);
        if (said && said !== more.diagnosis.join()) {
          byId("diagnosis").replaceChildren(...more.diagnosis.map((line) => element("p", { textContent: line })));
        }
        said = more.diagnosis.join();
      } catch (error) {
        byId("live").textContent = `not answering (${error.message}); the page stays as it is`;
      }
      await new Promise((wake) => setTimeout(wake, 2000));
    }
  };
  if (head.watch) watch(head.watch.address);
  window.rlora = { browser, drawn, ready: browser ? browser.started : Promise.resolve() };
})();
