// Keeps a page up to date: an event says that something changed, the part that changes is fetched again, and what is the same is left alone.
// Nothing here is needed: every control is a link or a form.
"use strict";
(() => {
  const { events, fragment } = document.body.dataset;
  const live = () => document.getElementById("live");
  const connection = document.getElementById("connection");

  function say(state, words) {
    connection.dataset.state = state;
    connection.querySelector(".words").textContent = words;
  }

  // What is left, as one reads it aloud. The server says the same.
  function left(ms) {
    const seconds = Math.ceil(Math.max(0, ms) / 1000);
    const count = (n, unit) => `${n} ${unit}${n === 1 ? "" : "s"}`;
    const minutes = Math.floor(seconds / 60);
    const parts = [];
    if (minutes) parts.push(count(minutes, "minute"));
    if (seconds % 60) parts.push(count(seconds % 60, "second"));
    return parts.join(" ") || "no time";
  }

  function ago(ms) {
    const seconds = Math.floor(Math.max(0, ms) / 1000);
    if (seconds < 5) return "just now";
    if (seconds < 60) return `${seconds} s ago`;
    if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
    if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
    const days = Math.floor(seconds / 86400);
    return `${days} day${days === 1 ? "" : "s"} ago`;
  }

  // Times are counted from when they were shown, so that the clocks need not agree.
  function begin(root) {
    const now = performance.now();
    for (const one of root.querySelectorAll("[data-left]")) one.until = now + Number(one.dataset.left);
    for (const one of root.querySelectorAll("[data-age]")) one.since = now - Number(one.dataset.age);
    for (const one of root.querySelectorAll("[data-keypad]")) one.hidden = false;
    tick();
  }

  function put(node, text) {
    if (node && node.textContent !== text) node.textContent = text;
  }

  function tick() {
    const now = performance.now();
    for (const one of document.querySelectorAll("[data-left]")) {
      const rest = one.until - now;
      const seconds = Math.ceil(Math.max(0, rest) / 1000);
      put(one.querySelector(".digits"), `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`);
      put(one.querySelector(".words"), `${left(rest)} left`);
      one.classList.toggle("short", rest < 15000);
    }
    for (const one of document.querySelectorAll("[data-age]")) put(one, ago(now - one.since));
    const clock = new Date().toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
    for (const one of document.querySelectorAll("[data-clock]")) put(one, clock);
  }

  // What was typed stays, unless the server has refused it.
  function keep(from, to) {
    for (const input of to.querySelectorAll("input.code")) {
      const before = from.querySelector(`#${CSS.escape(input.id)}`);
      const refused = input.getAttribute("aria-invalid") === "true" && before?.getAttribute("aria-invalid") !== "true";
      if (before && !refused && before.dataset.tries === input.dataset.tries) input.value = before.value;
    }
  }

  function replace(before, after) {
    const focused = before.contains(document.activeElement) ? document.activeElement : null;
    const [start, end] = focused?.matches("input.code") ? [focused.selectionStart, focused.selectionEnd] : [];
    keep(before, after);
    for (const card of after.querySelectorAll(".card")) card.classList.toggle("new", !document.getElementById(card.id));
    before.replaceWith(after);
    begin(after);
    if (!focused) return;
    const wrong = [...after.querySelectorAll("input[aria-invalid=true]")].find((one) => !one.value);
    const again = wrong || (focused.id && document.getElementById(focused.id));
    if (again) {
      again.focus();
      if (start !== undefined && again.id === focused.id) again.setSelectionRange(start, end);
    } else {
      // The card is gone: stay on its phone.
      const place = after.querySelector("h2, h1");
      if (place) {
        place.tabIndex = -1;
        place.focus();
      }
    }
  }

  function show(text) {
    const now = live();
    const then = new DOMParser().parseFromString(text, "text/html").getElementById("live");
    if (!now || !then) return location.reload();
    const before = [...now.querySelectorAll("[data-version]")];
    const after = [...then.querySelectorAll("[data-version]")];
    const same = before.length > 0 && before.length === after.length && before.every((one, n) => one.id === after[n].id);
    if (!same) return replace(now, document.adoptNode(then));
    put(document.getElementById("summary"), then.querySelector("#summary").textContent);
    before.forEach((one, n) => {
      if (one.dataset.version !== after[n].dataset.version) replace(one, document.adoptNode(after[n]));
    });
  }

  // One fetch at a time; whatever comes in meanwhile is one more.
  let fetching = false;
  let again = false;
  async function refresh() {
    if (fetching) {
      again = true;
      return;
    }
    fetching = true;
    try {
      const answer = await fetch(fragment, { headers: { accept: "text/html" } });
      if (answer.ok) show(await answer.text());
    } catch {
      // The stream notices it too and says so.
    }
    fetching = false;
    if (again) {
      again = false;
      refresh();
    }
  }

  let source = null;
  let trying = 0;
  function listen() {
    clearTimeout(trying);
    if (!events || source || document.hidden) return;
    source = new EventSource(events);
    source.onopen = () => say("on", "Live");
    source.addEventListener("changed", refresh);
    source.onerror = () => {
      say("off", "No connection: trying again");
      // A refusal ends the stream for good.
      if (source.readyState === EventSource.CLOSED) {
        source = null;
        trying = setTimeout(listen, 5000);
      }
    };
  }

  function pause() {
    clearTimeout(trying);
    source?.close();
    source = null;
    if (events) say("off", "Paused");
  }

  document.addEventListener("visibilitychange", () => (document.hidden ? pause() : listen()));
  addEventListener("pagehide", pause);
  addEventListener("pageshow", listen);

  document.addEventListener("submit", async (event) => {
    const form = event.target;
    if (!live()?.contains(form) || form.method !== "post") return;
    event.preventDefault();
    const body = new URLSearchParams(new FormData(form, event.submitter));
    const buttons = [...form.querySelectorAll("button")];
    form.setAttribute("aria-busy", "true");
    for (const one of buttons) one.setAttribute("aria-disabled", "true");
    try {
      const answer = await fetch(form.action, { method: "POST", body });
      if (answer.ok) show(await answer.text());
    } catch {
      say("off", "No connection: press again");
    }
    form.removeAttribute("aria-busy");
    for (const one of buttons) one.removeAttribute("aria-disabled");
  });

  document.addEventListener("click", (event) => {
    if (event.target.closest("[aria-disabled=true]")) event.preventDefault();
    const key = event.target.closest("[data-key]");
    const code = key && document.getElementById(key.closest("[data-keypad]").dataset.keypad);
    if (!code) return;
    const digits = code.value.replace(/\D/g, "");
    const pressed = key.dataset.key;
    code.value = pressed === "clear" ? "" : pressed === "back" ? digits.slice(0, -1) : (digits + pressed).slice(0, 6);
  });

  begin(document);
  setInterval(tick, 500);
  if (events) {
    say("off", "Connecting");
    listen();
  } else {
    say("done", "Complete");
  }
})();
