"use strict";
// What is asked stands in the address behind # (id or text, k, label, min), so that Back, a bookmark and a click on a
// neighbour are one thing. Photos have no address. Whatever a gallery holds is shown as text, never as markup.

const at = (id) => document.getElementById(id);
const present = { info: null, token: sessionStorage.getItem("token"), files: [], answers: [], least: null, turn: 0, urls: [] };

function made(tag, content = {}, ...children) {
  const { text, ...others } = content;
  const element = Object.assign(document.createElement(tag), others);
  if (text !== undefined) element.textContent = text;
  element.append(...children.filter((each) => each));
  return element;
}

// --- asking

async function ask(path, options = {}) {
  const headers = { ...options.headers, ...(present.token ? { Authorization: `Bearer ${present.token}` } : {}) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch {
    throw new Error("The server does not answer. Is it still running?");
  }
  if (answer.status === 401) {
    at("token-form").hidden = false;
    at("token").focus();
    throw new Error(present.token ? "The server does not know this token." : "");
  }
  if (!answer.ok) {
    const sentence = await answer.json().then((content) => content.error, () => "");
    throw new Error(sentence ? `${sentence}.` : `The server answers with ${answer.status}.`);
  }
  return answer;
}

function parameters() {
  const found = new URLSearchParams({ k: at("k").value || "12" });
  if (at("label").value) found.set("label", at("label").value);
  return found;
}

async function query(body, headers) {
  const answer = await ask(`query?${parameters()}`, { method: "POST", body, headers });
  return answer.json();
}

function questions() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const json = { "Content-Type": "application/json" };
  if (asked.has("id")) {
    const id = /^\d+$/.test(asked.get("id")) ? Number(asked.get("id")) : asked.get("id");
    return [{ send: () => query(JSON.stringify({ id }), json) }];
  }
  if (asked.get("text")) return [{ send: () => query(JSON.stringify({ text: asked.get("text") }), json) }];
  return present.files.map((file) => ({ file, send: () => query(form(file)) }));
}

function form(file) {
  const made = new FormData();
  made.append("image", file, file.name || "photo"); // what is pasted may have no name
  return made;
}

async function search({ focus = false } = {}) {
  const turn = ++present.turn;
  const waiting = setTimeout(() => { if (turn === present.turn) say("Searching …"); }, 300);
  at("results").setAttribute("aria-busy", "true");
  fail("");
  const asked = questions();
  present.answers = [];
  for (const { file, send } of asked) {
    try {
      if (file && file.size > present.info.limits.upload_bytes) {
        throw new Error(`${file.name} has ${megabytes(file.size)}, more than the ${megabytes(present.info.limits.upload_bytes)} that are taken.`);
      }
      const answer = await send();
      if (turn !== present.turn) return;
      told("note", answer.note);
      present.answers.push(...answer.queries.map((each) => ({ ...each, file })));
    } catch (error) {
      if (turn !== present.turn) return;
      fail(error.message);
    }
  }
  clearTimeout(waiting);
  at("results").setAttribute("aria-busy", "false");
  slide();
  show();
  if (focus) at("results").querySelector("h2")?.focus();
}

// --- showing

const megabytes = (size) => `${(size / 2 ** 20).toFixed(1)} MiB`;
const counted = (count, what) => `${count.toLocaleString("en")} ${count === 1 ? what.replace(/s$/, "") : what}`;
const say = (text) => { at("status").textContent = text; };

function told(id, text) {
  at(id).hidden = !text;
  at(id).textContent = text;
}

const fail = (text) => told("error", text);

function show() {
  present.urls.splice(0).forEach((url) => URL.revokeObjectURL(url));
  const ofTexts = present.info.holds === "texts";
  const digits = present.answers.flatMap((each) => each.neighbours).every(({ score }) => Math.abs(1 - score) < 0.02) ? 5 : 3;
  let shown = 0, all = 0;
  const sections = present.answers.map((answer) => {
    const near = answer.neighbours.filter(({ score }) => present.least === null || score >= present.least);
    shown += near.length;
    all += answer.neighbours.length;
    const title = made("h2", { text: answer.item?.text ?? (answer.item ? ends(answer.item.path) || answer.query : answer.file?.name ?? answer.query), tabIndex: -1 });
    const list = made("ol", { className: "found" }, ...near.map((each) => neighbour(each, digits)));
    list.setAttribute("aria-label", "neighbours, nearest first");
    const empty = answer.neighbours.length ? `No match: all ${answer.neighbours.length} scores are lower.` : "No match.";
    const section = made("section", { className: ofTexts ? "query of-texts" : "query" }, title, ofTexts ? null : asked(answer), near.length ? list : made("p", { className: "nothing", text: empty }));
    return section;
  });
  const many = present.answers.length;
  if (!many && at("error").hidden) sections.push(some(ofTexts));
  at("results").replaceChildren(...sections);
  if (!many) say(at("error").hidden ? "Nothing is asked yet." : "");
  else say(`${shown === all ? counted(all, "neighbours") : `${shown} of ${counted(all, "neighbours")}`}${many > 1 ? ` of ${many} photos` : ""}, nearest first; score: ${present.info.score}`);
}

function some(ofTexts) {
  const title = made("h2", { text: `Or begin with one of these ${present.info.holds}`, tabIndex: -1 });
  const list = made("ol", { className: "found" }, ...present.info.some.map((each) => neighbour(each)));
  return made("section", { className: ofTexts ? "query of-texts" : "query some" }, title, list);
}

function asked(answer) {
  const box = made("div", { className: "asked" });
  const picture = frame("what was asked");
  if (answer.item) thumbnail(picture, answer.item.id);
  else preview(picture, answer.file);
  box.append(picture, made("strong", { text: answer.item?.label ?? "query" }));
  return box;
}

function neighbour({ id, rank, score, label, path, text }, digits) {
  const link = made("a", { href: `#${new URLSearchParams({ ...Object.fromEntries(parameters()), id })}`, title: path ?? "" });
  const value = score?.toFixed(digits); // none of what was not asked for
  const place = value === undefined ? [] : [`rank ${rank}`, `score ${value}`];
  link.setAttribute("aria-label", [...place, label ?? "no label", text ?? ends(path)].join(", "));
  if (text === undefined) {
    const picture = frame("");
    thumbnail(picture, id);
    link.append(picture);
  }
  if (value !== undefined) link.append(made("strong", { text: `${rank} · ${value}` }));
  link.append(made("span", { className: "named", text: label ?? "no label" }));
  link.append(text === undefined ? made("span", { className: "path", text: ends(path) }) : made("q", { text }));
  return made("li", {}, link);
}

const ends = (path) => (path ?? "").split("/").slice(-2).join("/");

function frame(alt) {
  const image = made("img", { alt, decoding: "async" });
  image.addEventListener("load", () => image.classList.toggle("tiny", image.naturalWidth <= 32));
  image.addEventListener("error", () => vanish(image.parentElement, "missing"));
  return made("span", { className: "picture" }, image);
}

function vanish(picture, why) {
  picture?.classList.add("vanished");
  picture?.replaceChildren(why);
}

async function thumbnail(picture, id) {
  const address = `thumbnail/${encodeURIComponent(id)}`;
  const image = picture.firstElementChild;
  if (!present.token) {
    image.loading = "lazy";
    image.src = address;
    return;
  }
  try { // an <img> brings no token
    image.src = kept(await (await ask(address)).blob());
  } catch {
    vanish(picture, "missing");
  }
}

function preview(picture, file) {
  if (!file) return;
  picture.firstElementChild.addEventListener("error", () => vanish(picture, "no preview"), { once: true });
  picture.firstElementChild.src = kept(file);
}

function kept(blob) {
  present.urls.push(URL.createObjectURL(blob));
  return present.urls.at(-1);
}

// --- the threshold

function slide() {
  const scores = present.answers.flatMap((each) => each.neighbours.map(({ score }) => score));
  const least = at("least");
  least.disabled = !scores.length;
  if (scores.length) {
    const span = Math.max(...scores) - Math.min(...scores, present.least ?? Infinity);
    least.step = "any";
    least.min = Math.min(...scores, present.least ?? Infinity);
    least.max = Math.max(...scores) + (span || 1) / 100;
    least.value = present.least ?? least.min;
  }
  tell();
}

function tell() {
  const off = present.least === null;
  at("least-text").textContent = at("least").disabled ? "–" : off ? "all are shown" : present.least.toFixed(3);
  at("least").setAttribute("aria-valuetext", at("least-text").textContent);
}

// --- what is done on the page

function remember(changes, { replace = false } = {}) {
  const hash = new URLSearchParams(location.hash.slice(1));
  for (const [name, value] of Object.entries(changes)) value === null || value === "" ? hash.delete(name) : hash.set(name, value);
  const address = `${location.pathname}${location.search}${String(hash) ? `#${hash}` : ""}`;
  history[replace ? "replaceState" : "pushState"](null, "", address);
}

function take(files) {
  const photos = [...files].filter((file) => !file.type || file.type.startsWith("image/"));
  if (!photos.length) return fail("This is no image: a photo as JPEG, PNG, WebP, GIF, BMP or TIFF is taken.");
  if (present.info?.holds !== "images") return fail("This gallery holds texts, and photos find nothing in it.");
  present.files = photos.slice(0, 64);
  remember({ id: null, text: null });
  search({ focus: true });
}

function obey() { // the address
  const hash = new URLSearchParams(location.hash.slice(1));
  if (hash.has("k")) at("k").value = hash.get("k");
  at("label").value = hash.get("label") ?? "";
  present.least = hash.has("min") && Number.isFinite(Number(hash.get("min"))) ? Number(hash.get("min")) : null;
  if (hash.has("text")) at("text").value = hash.get("text");
}

function changed() {
  if (!at("k").reportValidity()) return;
  remember({ k: at("k").value, label: at("label").value }, { replace: true });
  if (questions().length) search();
}

function moved(event) {
  const links = [...at("results").querySelectorAll(".found a")];
  const here = links.indexOf(document.activeElement);
  if (here < 0) return;
  const columns = Math.max(1, links.findIndex((each) => each.offsetTop > links[0].offsetTop));
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -here, End: links.length - 1 - here };
  if (!(event.key in steps)) return;
  event.preventDefault();
  links[Math.min(Math.max(here + steps[event.key], 0), links.length - 1)].focus();
}

function cleared() {
  present.files = [];
  present.answers = [];
  present.turn += 1;
  remember({ id: null, text: null, min: null });
  present.least = null;
  at("text").value = "";
  fail("");
  slide();
  show();
  (present.info?.holds === "texts" ? at("text") : at("photo")).focus();
}

async function start() {
  try {
    present.info = await (await ask("info")).json();
  } catch (error) {
    return fail(error.message);
  }
  const { info } = present;
  const ofTexts = info.holds === "texts";
  const name = info.gallery.split("/").at(-1).replace(/\.index$/, "");
  document.title = `${name} · tripletmas`;
  at("title").textContent = name;
  const facts = [counted(info.vectors, info.holds), ...(info.num_labels ? [counted(info.num_labels, "labels")] : []), `model ${info.model.hash.slice(0, 12)}`, ...(info.model.after_task >= 0 ? [`after task ${info.model.after_task}`] : []), `edition ${info.edition}`];
  at("about").replaceChildren(...facts.map((text) => made("span", { text })));
  at("version").textContent = `tripletmas ${info.version}`;
  told("note", info.note);
  told("trouble", info.trouble && `The gallery has changed, and the new one cannot be served: ${info.trouble}`);
  at("labels").replaceChildren(...info.labels.map(({ label, count }) => made("option", { value: label, label: `${label} (${count})` })));
  at("token-form").hidden = true;
  at("photo-form").hidden = ofTexts;
  at("text-form").hidden = !ofTexts;
  at("controls").hidden = false;
  at("label").parentElement.hidden = !info.filters.length;
  fail("");
  obey();
  await search();
}

at("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  present.token = at("token").value.trim();
  sessionStorage.setItem("token", present.token);
  start();
});
at("text-form").addEventListener("submit", (event) => {
  event.preventDefault();
  present.files = [];
  remember({ text: at("text").value, id: null });
  search({ focus: true });
});
at("photo-form").addEventListener("submit", (event) => event.preventDefault());
at("controls").addEventListener("submit", (event) => event.preventDefault());
at("photo").addEventListener("change", () => { take(at("photo").files); at("photo").value = ""; });
at("k").addEventListener("change", changed);
at("label").addEventListener("change", changed);
at("least").addEventListener("input", () => {
  const { value, min } = at("least");
  present.least = Number(value) <= Number(min) ? null : Number(value);
  tell();
  show();
});
at("least").addEventListener("change", () => remember({ min: present.least === null ? null : present.least.toFixed(4) }, { replace: true }));
addEventListener("popstate", () => { if (present.info) { obey(); search({ focus: true }); } });
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !at("controls").hidden) cleared();
  else moved(event);
});
addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) take(event.clipboardData.files);
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) take(event.dataTransfer.files);
  });
}
start();
