// Replaces the content every ten seconds. Without this script the page is complete, and the reader reloads it.
"use strict";
const INTERVAL = 10000;
const toggle = document.querySelector("#live");
toggle.hidden = false;
let isLive = true;
toggle.addEventListener("click", () => {
  isLive = !isLive;
  toggle.setAttribute("aria-pressed", String(isLive));
});
// A reader who types, or who has opened a table, keeps what they see.
const isBusy = () => document.hidden || document.activeElement?.matches("input") || document.querySelector("details[open]");
setInterval(async () => {
  if (!isLive || isBusy()) return;
  try {
    const response = await fetch(location.href, { headers: { accept: "text/html" } });
    if (!response.ok) return;
    const next = new DOMParser().parseFromString(await response.text(), "text/html");
    for (const selector of ["main", "#summary"]) document.querySelector(selector).replaceWith(next.querySelector(selector));
  } catch { /* outgate restarts: the next interval tries again */ }
}, INTERVAL);
