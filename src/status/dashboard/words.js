"use strict";
// Everything that comes from other nodes gets into the page as text (`textContent`), never as markup.
const $ = id => document.getElementById(id);

function element(tag, properties = {}, ...children) {
  const { dataset, role, ...rest } = properties;
  const made = Object.assign(document.createElement(tag), rest);
  if (role) made.setAttribute("role", role);
  Object.assign(made.dataset, dataset);
  made.append(...children);
  return made;
}

// Only what changed is written: what is selected or read aloud stays.
function write(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

const number = value => value.toLocaleString("en");
const count = (value, one, many = `${one}s`) => `${number(value)} ${value === 1 ? one : many}`;

function bytes(value) {
  if (value < 1000) return `${value} B`;
  const unit = ["KiB", "MiB", "GiB", "TiB"];
  let at = -1;
  do { value /= 1024; at += 1; } while (value >= 1000 && at < 3);
  return `${value.toFixed(value < 10 ? 1 : 0)} ${unit[at]}`;
}

function duration(ms) {
  const s = Math.floor(ms / 1000);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor(s / 60) % 60} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor(s / 3600) % 24} h`;
}

function roundTrip(us) {
  if (us === null || us === undefined) return "";
  const ms = us / 1000;
  return `${ms < 1 ? ms.toFixed(2) : ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
}

const clock = ms => new Date(ms).toLocaleTimeString("en-GB");

// How good or bad a state is, beside its name.
const GRADES = { live: "good", up: "good", suspect: "warn", syncing: "warn", leaving: "warn", dead: "bad", down: "bad" };
const SIGNS = { good: "\u25CF", warn: "\u25B2", bad: "\u2716" };

function stateOf(name) {
  const grade = GRADES[name] ?? "warn";
  return element("span", { className: `state ${grade}` }, element("span", { ariaHidden: "true" }, `${SIGNS[grade]} `), name);
}

// An event in words: how bad it is, the sentence, and more about it.
function sentence(event) {
  const { kind, node, state, frames } = event;
  switch (kind) {
    case "joined": return ["good", `${node} joined`, event.address];
    case "restarted": return ["warn", `${node} was restarted`, `incarnation ${event.incarnation}`];
    case "left": return ["warn", `${node} is not listed any more`];
    case "state": return [GRADES[state] ?? "warn", state === "live" ? `${node} is live again` : `${node} is ${state}`];
    case "link-up": return ["good", `link to ${node} is up`];
    case "link-synced": return ["good", `rooms of ${node} are known`];
    case "link-down": return ["bad", `link to ${node} is down`, event.reason];
    case "gap": return ["bad", `${count(frames, "frame")} ${event.outgoing ? "to" : "from"} ${node} lost for good`];
    case "missed": return ["warn", `${count(frames, "event")} more, not kept`];
    default: return ["warn", node ? `${kind}: ${node}` : kind];
  }
}
