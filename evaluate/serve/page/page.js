// Search videos: a question in the address of the page → answers of the API → cards, a player, and keys to walk among them.
// What comes from videos and their lists (ids, captions, paths, reasons) is only ever set as text.

const $ = (id) => document.getElementById(id);
const HISTORY = "glscl-history";
const HISTORY_LENGTH = 30;
const PAUSE = 350; // ms without a key after which what was typed is looked for
const FILTERS = ["split", "folder", "shortest", "longest", "min"];
const TOPS = [24, 48, 100, 250, 1000];

let caches = []; // of /api/caches
let places = []; // what can be searched: {key, cache, list, about, heads}
let limits = { top: 1000, upload_bytes: 0 };
let sent = null; // {file, url}: a picture or clip that was given
let asking = null; // AbortController of the search under way
let answers = []; // one a column
let scale = [0, 1]; // of scores, of all strips
let playing = null; // {hit, part, encode}: what the player shows; part: {start} of a video that was made playable, encoded anew

// --- small things -------------------------------------------------------------------------------------------------------

/** An element with properties and children; strings become text. */
function h(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name.includes("-") || name === "role" || name === "scope") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

function icon(name) {
  const made = svg("svg", { class: "icon", "aria-hidden": "true" });
  made.append(svg("use", { href: `#i-${name}` }));
  return made;
}

function svg(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

/** 0:03.5 or 1:02:03.5 */
function clock(seconds, digits = 1) {
  const unit = 10 ** digits;
  const all = Math.round(Math.max(0, seconds) * unit);
  const whole = Math.floor(all / unit);
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (number) => String(number).padStart(2, "0");
  const fraction = digits ? `.${String(all % unit).padStart(digits, "0")}` : "";
  return (hours ? `${hours}:${two(minutes)}` : `${minutes}`) + `:${two(rest)}${fraction}`;
}

const count = (number, one, many = `${one}s`) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
/** Ids of any kind as text that can be shown: half surrogates and line breaks made visible. */
const shown = (text) => (text.toWellFormed ? text.toWellFormed() : text).replace(/[\u0000-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g, "␣");

async function ask(url, options = {}) {
  let reply;
  try {
    reply = await fetch(url, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is it still running?");
  }
  const body = await reply.json().catch(() => ({ error: `status ${reply.status}` }));
  if (!reply.ok) throw Object.assign(new Error(sentence(body.error)), { status: reply.status });
  return body;
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

// --- the question, which stands in the address of the page ----------------------------------------------------------------

/** `like` and `play` are ids as they stand in a path, so that any id can be told. */
function readAddress() {
  const given = new URLSearchParams(location.search);
  const question = Object.fromEntries(given);
  return {
    q: question.q ?? "",
    like: question.like ?? "",
    t: question.t ?? "",
    cache: question.cache ?? "",
    list: question.list ?? "",
    head: question.head ?? "",
    beside: question.beside ?? "",
    top: TOPS.includes(Number(question.top)) ? Number(question.top) : 24,
    play: question.play ?? "",
    at: question.at ?? "",
    ...Object.fromEntries(FILTERS.map((name) => [name, question[name] ?? ""])),
  };
}

let question = readAddress();

function addressOf(asked) {
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(asked)) {
    if (value !== "" && !(name === "top" && value === 24)) parameters.set(name, value);
  }
  const text = parameters.toString();
  return text ? `/?${text}` : "/";
}

/** Change the question, and the address with it; `push` makes a step that Back undoes. */
function change(changes, { push = false } = {}) {
  question = { ...question, ...changes };
  const address = addressOf(question);
  if (push && address !== location.pathname + location.search) history.pushState(null, "", address);
  else history.replaceState(null, "", address);
}

/** The column's place and head: "cache/list/head", each as in a URL. */
const besideKey = (place, head) => [place.cache, place.list, head].map(encodeURIComponent).join("/");

function sourceOf(asked) {
  const place =
    places.find((each) => each.cache === asked.cache && each.list === asked.list) ??
    places.find((each) => each.cache === asked.cache && !asked.list) ??
    places[0];
  const head = place.heads.includes(asked.head) ? asked.head : place.heads[0];
  return { place, head };
}

function sources() {
  const found = [sourceOf(question)];
  if (question.beside) {
    const [cache, list, head] = question.beside.split("/").map(decodeURIComponent);
    const place = places.find((each) => each.cache === cache && each.list === list);
    if (place && place.heads.includes(head)) found.push({ place, head });
  }
  return found;
}

/** An address of the API about an id as it stands in a path. */
function about(place, id, parameters) {
  const dots = /^(\.|%2e){1,2}$/i.test(id);
  if (dots) parameters.set("id", decodeURIComponent(id));
  return `${place}/${dots ? "" : id}?${parameters}`;
}

const hasQuestion = () => Boolean(sent || question.like || question.q.trim());

// --- searching --------------------------------------------------------------------------------------------------------------

async function search({ push = false, remember = false } = {}) {
  asking?.abort();
  const control = (asking = new AbortController());
  change({}, { push });
  showExample();
  showFilters();
  $("problem").hidden = true;
  if (!hasQuestion()) {
    $("columns").removeAttribute("aria-busy");
    answers = [];
    render();
    return;
  }
  if (remember && question.q.trim() && !question.like && !sent) rememberQuery(question.q.trim());
  $("columns").setAttribute("aria-busy", "true");
  const late = setTimeout(() => { $("status").textContent = sent ? `Looking at ${shown(sent.file.name || "the picture")} …` : "Searching …"; }, PAUSE);
  const began = performance.now();
  try {
    const found = await Promise.all(sources().map((source) => answerOf(source, control.signal)));
    if (control !== asking) return;
    answers = found;
    render(performance.now() - began);
  } catch (error) {
    if (error.name === "AbortError" || control !== asking) return;
    answers = [];
    render();
    showProblem(error.message);
  } finally {
    clearTimeout(late);
    if (control === asking) $("columns").removeAttribute("aria-busy");
  }
}

async function answerOf({ place, head }, signal) {
  const parameters = new URLSearchParams({ cache: place.cache, list: place.list, head, top: question.top, moments: 3 });
  for (const name of FILTERS) {
    const known = name !== "split" || question.split in place.about.splits;
    if (question[name] !== "" && known) parameters.set(name, question[name]);
  }
  let answer;
  if (sent) {
    answer = await ask(`/api/search?${parameters}`, {
      method: "POST", body: sent.file, signal, headers: { "Content-Type": sent.file.type || "application/octet-stream" },
    });
  } else if (question.like) {
    if (question.t !== "") parameters.set("t", question.t);
    answer = await ask(about("/api/similar", question.like, parameters), { signal });
    if (answer.like) $("example-text").textContent = exampleWords(answer.like);
  } else {
    parameters.set("q", question.q);
    answer = await ask(`/api/search?${parameters}`, { signal });
  }
  for (const hit of answer.hits) {
    hit.place = place;
    const link = new URL(hit.links.video, location.origin);
    hit.code = link.pathname.split("/").pop() || encodeURIComponent(link.searchParams.get("id"));
  }
  return answer;
}

function showProblem(text) {
  $("problem").textContent = text;
  $("problem").hidden = false;
}

// --- results ----------------------------------------------------------------------------------------------------------------

function render(milliseconds) {
  const asked = hasQuestion();
  const found = answers.flatMap((answer) => answer.hits);
  $("welcome").hidden = asked;
  $("actions").hidden = !found.length;
  document.title = question.q && !question.like && !sent ? `${question.q} · glscl` : "glscl";
  if (!asked) showTries();
  const all = found.flatMap((hit) => hit.strip.scores);
  scale = all.length ? [all.reduce((a, b) => Math.min(a, b)), all.reduce((a, b) => Math.max(a, b))] : [0, 1];
  forgetPictures();
  $("columns").classList.toggle("beside", answers.length > 1);
  $("columns").replaceChildren(...answers.map((answer) => column(answer)));
  const counts = answers.map((answer) => answer.hits.length);
  const searched = (what) => [...new Set(answers.map((answer) => answer.searched[what].toLocaleString("en")))].join(" + ");
  $("status").textContent = !answers.length ? "" : [
    found.length ? `${counts.map((each) => each.toLocaleString("en")).join(" + ")} of ${searched("videos")} video${searched("videos") === "1" ? "" : "s"}` : "Nothing fits. A lower score, or fewer filters, may show more",
    `${searched("frames")} frame${searched("frames") === "1" ? "" : "s"}` + (answers.every((answer) => answer.searched.exact) ? "" : " in an approximate index"),
    answers.length > 1 ? null : `by ${answers[0].head}${places.length > 1 ? ` in ${answers[0].list}` : ""}`,
    milliseconds == null ? null : `${Math.round(milliseconds)} ms`,
    ...(answers[0].doubts || []),
  ].filter(Boolean).join(" · ");
  const more = answers.some((answer) => answer.hits.length === question.top && answer.searched.videos > question.top);
  $("more").hidden = !(more && question.top < limits.top);
  const cards = hits();
  if (cards.length) cards[0].tabIndex = 0;
  for (const each of cards) inSight.observe(each.parentElement);
  markPlaying();
}

function column(answer) {
  const title = h("h2", {}, answer.head, h("small", {}, places.length > 1 ? `${shown(answer.cache)} / ${answer.list}` : ""));
  const cards = h("ol", { class: "cards" }, ...answer.hits.map(card));
  return h("section", { class: "column", "aria-label": `${answer.head}, ${shown(answer.cache)} ${answer.list}` }, answers.length > 1 ? title : null, cards);
}

function card(hit) {
  const moment = hit.moments[0];
  const name = shown(hit.video);
  const image = h("img", {
    decoding: "async", alt: "", draggable: false,
    onload: () => arrived(image),
    onerror: () => {
      arrived(image);
      image.dataset.broken = "1";
      if (!shot.querySelector(".none")) shot.append(h("span", { class: "none" }, hit.there ? "no picture" : "the file is gone"));
    },
  });
  const shot = h("span", { class: "shot" }, image,
    h("span", { class: "tag rank" }, `${hit.rank}`),
    h("span", { class: "tag when" }, span(moment)));
  const link = h("a", {
    class: "hit", tabIndex: -1, href: addressOf({ ...question, play: hit.code, at: moment.start.toFixed(3), ...sourceNames(hit) }),
    "aria-label": `${hit.rank}: ${name}, ${span(moment)}, score ${hit.score.toFixed(3)}`,
    onclick: (event) => {
      if (event.metaKey || event.ctrlKey || event.shiftKey) return;
      event.preventDefault();
      play(hit, moment.start);
    },
    onfocus: () => roam(link),
  }, shot,
    h("span", { class: "who" }, h("span", { class: "id", title: name }, ...pathParts(name)), h("span", { class: "score" }, hit.score.toFixed(3))));
  Object.assign(link, { hit, image });
  const strip = h("div", { class: "strip", "aria-hidden": "true" });
  strip.append(plot(hit, 24));
  const cursor = h("span", { class: "cursor", hidden: true });
  strip.append(cursor);
  let timer = 0;
  strip.addEventListener("pointermove", (event) => {
    const at = timeAt(strip, event, hit);
    cursor.hidden = false;
    cursor.style.left = `${fraction(at, hit) * 100}%`;
    shot.querySelector(".when").textContent = clock(at);
    clearTimeout(timer);
    timer = setTimeout(() => { image.src = thumbAt(hit, at); }, 90);
  });
  strip.addEventListener("pointerleave", () => {
    clearTimeout(timer);
    cursor.hidden = true;
    image.src = hit.links.thumb;
    shot.querySelector(".when").textContent = span(moment);
  });
  strip.addEventListener("click", (event) => play(hit, timeAt(strip, event, hit)));
  const item = h("li", { class: "card" }, link, strip);
  return item;
}

const sourceNames = (hit) => ({ cache: hit.place.cache, list: hit.place.list });
const span = ({ start, end }) => (clock(start) === clock(end) ? clock(start) : `${clock(start)}–${clock(end)}`);

/** A name whose folders give way to its end where there is no room for both. */
function pathParts(name) {
  const at = name.lastIndexOf("/", name.length - 2) + 1;
  return [at ? h("span", { class: "folder" }, name.slice(0, at)) : null, h("span", { class: "file" }, name.slice(at))];
}

// A browser opens six connections to a server. Pictures, which are decoded on demand, take some of them and never all: what is
// asked next, and the video that plays, do not wait for them.
const AT_ONCE = 4;
const waiting = new Set(); // links in sight whose pictures are not asked for yet
const loading = new Set(); // pictures

const inSight = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    const link = target.querySelector(".hit");
    if (isIntersecting) waiting.add(link);
    else waiting.delete(link);
  }
  askForPictures();
}, { rootMargin: "200px" });

function askForPictures() {
  for (const link of waiting) {
    if (loading.size >= AT_ONCE) return;
    waiting.delete(link);
    inSight.unobserve(link.parentElement);
    loading.add(link.image);
    link.image.src = link.hit.links.thumb;
  }
}

function arrived(image) {
  loading.delete(image);
  askForPictures();
}

/** Nobody looks at them any more; the server does not make what it has not begun. */
function forgetPictures() {
  inSight.disconnect();
  waiting.clear();
  for (const image of loading) image.removeAttribute("src");
  loading.clear();
}

/** The frame that a strip shows nearest to a time, as a picture. */
function thumbAt(hit, time) {
  const nearest = hit.strip.times.reduce((best, each) => (Math.abs(each - time) < Math.abs(best - time) ? each : best));
  const link = new URL(hit.links.thumb, location.origin);
  link.searchParams.set("t", nearest.toFixed(3));
  return link.pathname + link.search;
}

/** From where to where the strip of a video goes, in seconds. */
function reach(hit) {
  const times = hit.strip.times;
  const last = Math.max(times.at(-1), hit.moments.reduce((most, moment) => Math.max(most, moment.end), 0));
  return [times[0], Math.max(last, times[0] + hit.duration, times[0] + 0.1)];
}

function fraction(time, hit) {
  const [from, to] = reach(hit);
  return Math.min(1, Math.max(0, (time - from) / (to - from)));
}

function timeAt(element, event, hit) {
  const box = element.getBoundingClientRect();
  const [from, to] = reach(hit);
  return from + (to - from) * Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
}

/** Scores over time as steps, moments in another colour. */
function plot(hit, height) {
  const { times, scores } = hit.strip;
  const [from, to] = reach(hit);
  const x = (time) => (1000 * (time - from)) / (to - from);
  const y = (score) => height - 2 - (height - 3) * Math.max(0, (score - scale[0]) / Math.max(scale[1] - scale[0], 1e-6));
  const moments = hit.moments;
  const picture = svg("svg", { viewBox: `0 0 1000 ${height}`, preserveAspectRatio: "none" });
  const runs = { rest: "", moment: "" };
  times.forEach((time, i) => {
    const end = x(times[i + 1] ?? to);
    const inside = moments.some((moment) => time >= moment.start - 1e-3 && time < moment.end - 1e-3);
    const gap = Math.min(4, (end - x(time)) * 0.12);
    runs[inside ? "moment" : "rest"] += `M${x(time).toFixed(1)} ${height}V${y(scores[i]).toFixed(1)}H${(end - gap).toFixed(1)}V${height}Z`;
  });
  picture.append(svg("path", { d: runs.rest || "M0 0" }), svg("path", { d: runs.moment || "M0 0", class: "moment" }));
  return picture;
}

const hits = () => [...document.querySelectorAll(".hit")];

/** One card at a time can be reached with Tab; arrows go on from there. */
function roam(link) {
  for (const each of document.querySelectorAll('.hit[tabindex="0"]')) each.tabIndex = -1;
  link.tabIndex = 0;
}

function walk(from, key) {
  const all = hits();
  const at = all.indexOf(from);
  if (key === "Home") return all[0];
  if (key === "End") return all.at(-1);
  if (key === "ArrowRight" || key === "ArrowLeft") {
    const next = all[at + (key === "ArrowRight" ? 1 : -1)];
    return next ?? from;
  }
  const box = from.getBoundingClientRect();
  const down = key === "ArrowDown";
  let best = null;
  let nearest = Infinity;
  for (const each of all) {
    const other = each.getBoundingClientRect();
    const steps = down ? other.top - box.top : box.top - other.top;
    if (steps < 8) continue;
    const distance = steps + 4 * Math.abs(other.left - box.left);
    if (distance < nearest) [best, nearest] = [each, distance];
  }
  return best;
}

// --- the player -------------------------------------------------------------------------------------------------------------

const video = $("video");
const isPlaying = (hit) => playing?.hit.links.video === hit.links.video;

async function play(hit, time, { start = true } = {}) {
  const same = isPlaying(hit);
  const { part = null, encode = false, told = ask(hit.links.about).catch(() => null) } = same ? playing : {};
  playing = { hit, part, encode, told, time, moment: hit.moments.find((each) => time >= each.start - 0.01 && time < each.end) ?? null };
  change({ play: hit.code, at: time.toFixed(3), ...(question.like || question.q || sent ? {} : sourceNames(hit)) });
  $("player").hidden = false;
  document.body.classList.add("with-player");
  $("player-id").textContent = shown(hit.video);
  $("player-id").title = shown(hit.video);
  showTimeline();
  showMoments();
  markPlaying();
  if (!same) {
    $("captions").replaceChildren();
    $("path").textContent = hit.path ? shown(hit.path) : "";
    showAbout(hit, told);
    note("");
    video.poster = thumbAt(hit, time);
    video.src = hit.links.video;
    if (!hit.there) note("The file is not where it was last seen.");
    $("said").textContent = `${shown(hit.video)} from ${clock(time)}`;
  }
  seek(time, start);
}

function seek(time, start = true) {
  if (!playing) return;
  playing.time = time;
  playing.begin = start;
  if (playing.part && (time < playing.part.start - 0.5 || time > playing.part.end)) {
    makePart(time);
    return;
  }
  if (video.readyState >= 1) arrive();
  showTime(time);
}

/** The video is known: go to the time that was asked for. */
async function arrive() {
  if (!playing || playing.time == null) return;
  const { hit, told } = playing;
  const begins = (await told)?.begins ?? 0;
  if (!isPlaying(hit) || playing.time == null || video.readyState < 1) return;
  if (!video.videoWidth && !playing.part) {
    makePart(playing.time); // sound that plays without a picture
    return;
  }
  const time = playing.time;
  playing.time = null;
  playing.shift = playing.part ? -playing.part.start : begins;
  video.currentTime = Math.max(0, time + playing.shift) + 0.001;
  if (playing.begin) video.play().catch(() => {});
}

/** What the browser cannot play is made playable by the server, around the time that is wanted; `encode` where a copy was of no use. */
async function makePart(time, { encode = false } = {}) {
  const now = playing;
  if (!now || !now.hit.there || now.making) return;
  now.making = true;
  note("This browser cannot play the file. A preview is being made …");
  try {
    const parameters = new URL(now.hit.links.preview, location.origin);
    parameters.searchParams.set("t", Math.max(0, time).toFixed(3));
    if (encode || now.encode) parameters.searchParams.set("encode", "true");
    now.encode ||= encode;
    const made = await ask(parameters.pathname + parameters.search);
    if (!isPlaying(now.hit)) return;
    playing.part = made;
    playing.time = time;
    note(`Preview of ${clock(made.start, 0)}–${clock(made.end, 0)}: ${made.how}`, true);
    video.src = made.url;
  } catch (error) {
    if (isPlaying(now.hit)) note(`This video cannot be shown: ${error.message}`);
  } finally {
    now.making = false;
  }
}

function note(text, low = false) {
  $("screen-note").textContent = text;
  $("screen-note").hidden = !text;
  $("screen-note").classList.toggle("low", low);
}

video.addEventListener("loadedmetadata", () => {
  if (playing && !playing.hit.moments.length && !playing.part && Number.isFinite(video.duration)) {
    playing.hit.duration = video.duration; // nothing was searched: the address alone named it
    showTimeline();
  }
  arrive();
});
video.addEventListener("error", () => {
  if (!playing || !video.getAttribute("src")) return;
  if (playing.part && !playing.encode) makePart(playing.time ?? position(), { encode: true });
  else if (playing.part) note("The preview cannot be played either.");
  else if (!playing.hit.there) note("The file is not where it was last seen.");
  else makePart(playing.time ?? 0);
});
video.addEventListener("timeupdate", () => {
  if (!playing || playing.time != null) return;
  const now = position();
  if ($("repeat").checked && playing.moment && !video.paused && now >= playing.moment.end) seek(playing.moment.start);
  showTime(now);
});
video.addEventListener("ended", () => {
  if (!playing) return;
  if ($("repeat").checked && playing.moment) seek(playing.moment.start);
  else if (playing.part && playing.part.end < reach(playing.hit)[1] - 1) seek(playing.part.end + 0.01);
});

/** Where the player stands, in seconds of the video; a file's own clock may begin later, that of a part does. */
const position = () => playing?.time ?? video.currentTime - (playing?.shift ?? 0);

function showTimeline() {
  const line = $("timeline");
  const [from, to] = reach(playing.hit);
  line.replaceChildren(plot(playing.hit, 46), h("span", { class: "cursor", id: "playhead" }));
  line.setAttribute("aria-valuemin", from.toFixed(1));
  line.setAttribute("aria-valuemax", to.toFixed(1));
  $("time-from").textContent = clock(from, 0);
  $("time-to").textContent = clock(to, 0);
}

function showTime(time) {
  const head = $("playhead");
  if (!playing || !head) return;
  head.style.left = `calc(${fraction(time, playing.hit) * 100}% - 1px)`;
  $("time-at").textContent = clock(time);
  $("timeline").setAttribute("aria-valuenow", time.toFixed(1));
  $("timeline").setAttribute("aria-valuetext", clock(time));
}

function showMoments() {
  $("moments").replaceChildren(...playing.hit.moments.map((moment) =>
    h("li", {}, h("button", {
      type: "button", "aria-label": `Play from ${clock(moment.start)} to ${clock(moment.end)}, score ${moment.score.toFixed(3)}`,
      onclick: () => { playing.moment = moment; seek(moment.start); },
    }, span(moment), h("small", {}, moment.score.toFixed(3))))));
}

async function showAbout(hit, asked) {
  const told = await asked;
  if (!told || !isPlaying(hit)) return;
  $("path").textContent = told.path ? shown(told.path) : "";
  const parts = [];
  if (told.failure) parts.push(h("p", { class: "problem" }, sentence(`When it was encoded: ${told.failure}`)));
  if (told.captions.length) {
    const item = (text) => h("li", {}, shown(text));
    parts.push(h("h3", {}, told.split ? `Captions in the list, split ${told.split}` : "Captions in the list"));
    parts.push(h("ul", {}, ...told.captions.slice(0, 2).map(item)));
    if (told.captions.length > 2) parts.push(h("details", {}, h("summary", {}, `${told.captions.length - 2} more`), h("ul", {}, ...told.captions.slice(2).map(item))));
  }
  $("captions").replaceChildren(...parts);
}

function closePlayer() {
  const link = hits().find((each) => isPlaying(each.hit));
  playing = null;
  video.pause();
  video.removeAttribute("src");
  video.removeAttribute("poster");
  video.load();
  $("player").hidden = true;
  document.body.classList.remove("with-player");
  change({ play: "", at: "" });
  markPlaying();
  (link ?? $("q")).focus();
}

function markPlaying() {
  for (const each of hits()) {
    each.parentElement.classList.toggle("playing", isPlaying(each.hit));
  }
}

/** Open what the address says is played, also where the answers do not hold it. */
async function playFromAddress() {
  if (!question.play) return;
  const time = Number(question.at) || 0;
  const found = answers.flatMap((answer) => answer.hits).find((hit) => hit.code === question.play);
  if (found) {
    play(found, time, { start: false });
    return;
  }
  const { place } = sourceOf(question);
  const names = () => new URLSearchParams({ cache: place.cache, list: place.list });
  const thumb = names();
  thumb.set("t", time.toFixed(3));
  const links = {
    video: about("/video", question.play, names()), thumb: about("/thumb", question.play, thumb),
    about: about("/api/video", question.play, names()), preview: about("/api/preview", question.play, names()),
    similar: about("/api/similar", question.play, names()),
  };
  try {
    const told = await ask(links.about);
    play({
      video: told.video, path: told.path, there: told.there, links, place, code: question.play, duration: time + 1,
      moments: [], strip: { times: [0], scores: [0] }, score: 0, time,
    }, time, { start: false });
  } catch (error) {
    showProblem(error.message);
  }
}

function searchLike(hit, time) {
  const t = time == null ? "" : time.toFixed(3);
  forget();
  $("q").value = "";
  change({ q: "", like: hit.code, t, ...sourceNames(hit) }, { push: true });
  search();
  scrollTo({ top: 0 });
}

// --- the field: words, an example, searches before ------------------------------------------------------------------------

function forget() {
  if (sent) URL.revokeObjectURL(sent.url);
  sent = null;
}

function exampleWords(video) {
  return question.t === "" ? `like ${shown(video)}` : `like ${shown(video)} at ${clock(Number(question.t))}`;
}

function showExample() {
  const field = $("example");
  field.hidden = !(sent || question.like);
  $("q").placeholder = field.hidden ? "Describe a scene, or drop a picture" : "";
  if (sent) {
    $("example-text").textContent = shown(sent.file.name || "a picture");
    $("example-picture").hidden = !sent.file.type.startsWith("image/");
    $("example-picture").src = sent.url;
  } else if (question.like) {
    $("example-text").textContent = "like …";
    const { place } = sourceOf(question);
    const parameters = new URLSearchParams({ cache: place.cache, list: place.list, t: question.t || "0" });
    $("example-picture").hidden = false;
    $("example-picture").src = about("/thumb", question.like, parameters);
  }
}

$("example-picture").addEventListener("error", () => { $("example-picture").hidden = true; });

function give(file) {
  if (!file) return;
  if (limits.upload_bytes && file.size > limits.upload_bytes) {
    showProblem(`${shown(file.name)} has ${Math.round(file.size / 1e6)} MB; at most ${Math.floor(limits.upload_bytes / 1e6)} MB can be sent.`);
    return;
  }
  forget();
  sent = { file, url: URL.createObjectURL(file) };
  $("q").value = "";
  change({ q: "", like: "", t: "" }, { push: true });
  search();
}

const queries = () => {
  try {
    const kept = JSON.parse(localStorage.getItem(HISTORY) ?? "[]");
    return Array.isArray(kept) ? kept.filter((each) => typeof each === "string") : [];
  } catch {
    return [];
  }
};

function rememberQuery(text) {
  try {
    localStorage.setItem(HISTORY, JSON.stringify([text, ...queries().filter((each) => each !== text)].slice(0, HISTORY_LENGTH)));
  } catch { /* private windows may refuse */ }
}

let chosen = -1; // row of the history

function showHistory(open) {
  const text = $("q").value.trim().toLowerCase();
  const rows = open ? queries().filter((each) => each.toLowerCase() !== text && each.toLowerCase().includes(text)).slice(0, 8) : [];
  const list = $("history");
  chosen = -1;
  $("q").removeAttribute("aria-activedescendant");
  list.hidden = !rows.length;
  $("q").setAttribute("aria-expanded", String(!list.hidden));
  if (!rows.length) {
    list.replaceChildren();
    return;
  }
  const row = (text, i, choose, extra = "") => h("li", {
    id: `history-${i}`, role: "option", class: extra, "aria-selected": "false",
    onpointerdown: (event) => { event.preventDefault(); choose(); },
  }, extra ? null : icon("clock"), text);
  list.replaceChildren(
    ...rows.map((each, i) => row(each, i, () => submit(each))),
    row("Forget these searches", rows.length, () => {
      localStorage.removeItem(HISTORY);
      showHistory(false);
    }, "forget"),
  );
}

function chooseHistory(step) {
  const rows = [...$("history").children];
  chosen = Math.min(rows.length - 1, Math.max(-1, chosen + step));
  rows.forEach((row, i) => row.setAttribute("aria-selected", String(i === chosen)));
  if (chosen >= 0) {
    $("q").setAttribute("aria-activedescendant", rows[chosen].id);
    rows[chosen].scrollIntoView({ block: "nearest" });
  } else $("q").removeAttribute("aria-activedescendant");
}

function submit(text) {
  clearTimeout(typing);
  $("q").value = text;
  showHistory(false);
  if (text.trim()) forget();
  change({ q: text.trim(), ...(text.trim() ? { like: "", t: "" } : {}) }, { push: true });
  return search({ remember: true });
}

let typing = 0;

$("q").addEventListener("input", () => {
  showHistory($("q").value.trim() === "");
  clearTimeout(typing);
  const text = $("q").value.trim();
  typing = setTimeout(() => {
    if (text === question.q || (!text && (sent || question.like))) return;
    if (text) forget();
    change({ q: text, ...(text ? { like: "", t: "" } : {}) });
    search();
  }, PAUSE);
});
$("q").addEventListener("focus", () => showHistory($("q").value.trim() === ""));
$("q").addEventListener("click", () => { if ($("history").hidden) showHistory(true); });
$("q").addEventListener("blur", () => showHistory(false));
$("q").addEventListener("keydown", (event) => {
  const open = !$("history").hidden;
  if (event.key === "ArrowDown" && (open || !$("q").value)) {
    if (!open) showHistory(true);
    if ($("history").hidden) focusResults();
    else chooseHistory(1);
  } else if (event.key === "ArrowDown") focusResults();
  else if (event.key === "ArrowUp" && open) chooseHistory(-1);
  else if (event.key === "Enter" && open && chosen >= 0) {
    $("history").children[chosen].dispatchEvent(new Event("pointerdown", { cancelable: true }));
  } else if (event.key === "Escape" && open) showHistory(false);
  else if (event.key === "Escape" && playing) closePlayer();
  else if (event.key === "Backspace" && !$("q").value && (sent || question.like)) $("example-clear").click();
  else return;
  event.preventDefault();
  event.stopPropagation();
});

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!$("q").value.trim() && (sent || question.like)) search();
  else submit($("q").value);
});
$("example-clear").addEventListener("click", () => {
  forget();
  change({ like: "", t: "", q: "" }, { push: true });
  search();
  $("q").focus();
});
$("pick").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => {
  give($("file").files[0]);
  $("file").value = "";
});

// --- files that are dropped or pasted ---------------------------------------------------------------------------------------

const holdsFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
let inside = 0;
addEventListener("dragenter", (event) => {
  if (!holdsFiles(event)) return;
  event.preventDefault();
  inside += 1;
  $("drop").hidden = false;
});
addEventListener("dragleave", (event) => {
  if (!holdsFiles(event)) return;
  inside -= 1;
  if (inside <= 0) $("drop").hidden = true;
});
addEventListener("dragover", (event) => { if (holdsFiles(event)) event.preventDefault(); });
addEventListener("drop", (event) => {
  inside = 0;
  $("drop").hidden = true;
  if (!holdsFiles(event)) return;
  event.preventDefault();
  give(event.dataTransfer.files[0]);
});
addEventListener("paste", (event) => {
  const file = event.clipboardData?.files[0];
  if (!file) return;
  event.preventDefault();
  give(file);
});

// --- filters ----------------------------------------------------------------------------------------------------------------

const option = (value, text, selected) => h("option", { value, selected }, text);

function showFilters() {
  const { place, head } = sourceOf(question);
  $("where").replaceChildren(...places.map((each) => option(each.key, places.every((p) => p.cache === each.cache) ? each.list : `${shown(each.cache)} / ${each.list}`, each === place)));
  $("head").replaceChildren(...place.heads.map((each) => option(each, each, each === head)));
  const others = [option("", "nothing", !question.beside)];
  for (const each of places) {
    const group = h("optgroup", { label: `${shown(each.cache)} / ${each.list}` });
    group.append(...each.heads.filter((name) => !(each === place && name === head)).map((name) => {
      const key = besideKey(each, name);
      return option(key, name, key === question.beside);
    }));
    others.push(group);
  }
  $("beside").replaceChildren(...others);
  $("split").replaceChildren(option("", "all", !question.split), ...Object.entries(place.about.splits).map(([name, videos]) => option(name, `${name} (${videos.toLocaleString("en")})`, name === question.split)));
  $("folders").replaceChildren(...place.about.folders.map((each) => option(each, "", false)));
  $("folder").parentElement.hidden = !place.about.folders.length && !question.folder && !caches.some((each) => each.path);
  for (const name of ["folder", "shortest", "longest", "min"]) if (document.activeElement !== $(name)) $(name).value = question[name];
  $("answers").value = String(question.top);
  const active = FILTERS.filter((name) => question[name] !== "").length + (question.beside ? 1 : 0);
  $("active").textContent = String(active);
  $("active").hidden = !active;
  $("narrow").setAttribute("aria-label", active ? `Filters, ${active} in use` : "Filters");
  $("reset").hidden = !active;
  const all = place.about;
  $("about").textContent = `${shown(place.cache)} / ${place.list}: ${count(all.videos, "video")}, ${count(all.captions, "caption")}, encoded by ${place.cacheAbout.backbone}`;
  const missing = all.failed + all.without_file;
  $("failures").hidden = !missing;
  $("failures").textContent = [all.failed ? `${count(all.failed, "video")} failed or partial` : "", all.without_file ? `${count(all.without_file, "video")} without a file` : ""].filter(Boolean).join(", ");
}

$("narrow").addEventListener("click", () => openFilters($("filters").hidden));

function openFilters(open) {
  $("filters").hidden = !open;
  $("narrow").setAttribute("aria-expanded", String(open));
}

$("where").addEventListener("change", () => {
  const place = places.find((each) => each.key === $("where").value);
  change({ cache: place.cache, list: place.list, head: "", split: "", folder: "", beside: "" }, { push: true });
  search();
});
$("head").addEventListener("change", () => { change({ head: $("head").value }, { push: true }); search(); });
for (const name of ["beside", "split", "folder", "shortest", "longest", "min"]) {
  $(name).addEventListener("change", () => {
    change({ [name]: $(name).value.trim() }, { push: true });
    search();
  });
}
$("answers").addEventListener("change", () => { change({ top: Number($("answers").value) }, { push: true }); search(); });
$("reset").addEventListener("click", () => {
  change({ ...Object.fromEntries(FILTERS.map((name) => [name, ""])), beside: "" }, { push: true });
  search();
  $("narrow").focus();
});
$("more").addEventListener("click", () => {
  const at = hits().length;
  change({ top: TOPS.find((each) => each > question.top) ?? limits.top });
  search().then(() => hits()[at]?.focus());
});

// --- taking answers away ----------------------------------------------------------------------------------------------------

function save(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

/** A cell as RFC 4180 has it; what a spreadsheet would take for a formula is made text. */
function cell(value) {
  let text = String(value ?? "");
  if (typeof value === "string" && /^[=+@\t\r]|^-.*[(|!=]/s.test(text)) text = `'${text}`;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

$("csv").addEventListener("click", () => {
  const rows = [["cache", "list", "head", "rank", "video", "score", "start", "end", "time", "split", "path"]];
  for (const answer of answers) {
    for (const hit of answer.hits) {
      const moment = hit.moments[0];
      rows.push([answer.cache, answer.list, answer.head, hit.rank, hit.video, hit.score, moment.start, moment.end, hit.time, hit.split, hit.path]);
    }
  }
  save("glscl-search.csv", "text/csv", `\ufeff${rows.map((row) => row.map(cell).join(",")).join("\r\n")}\r\n`);
});
$("json").addEventListener("click", () => {
  const plain = (key, value) => (key === "place" || key === "code" ? undefined : value);
  save("glscl-search.json", "application/json", JSON.stringify(answers.length === 1 ? answers[0] : answers, plain, 2));
});

async function copy(button, text) {
  const words = button.querySelector("span");
  const before = words.textContent;
  try {
    await navigator.clipboard.writeText(text);
    words.textContent = "Copied";
  } catch {
    prompt("The link:", text);
    return;
  }
  $("said").textContent = "The link was copied.";
  setTimeout(() => { words.textContent = before; }, 1500);
}

$("copy").addEventListener("click", () => {
  if (sent) {
    showProblem("A link cannot hold the file that you gave. Search a frame of a video that was found to get one that can be shared.");
    return;
  }
  copy($("copy"), location.origin + addressOf({ ...question, play: "", at: "" }));
});
$("copy-moment").addEventListener("click", () => {
  if (playing) copy($("copy-moment"), location.origin + addressOf({ ...question, play: playing.hit.code, at: position().toFixed(3), ...sourceNames(playing.hit) }));
});

// --- what is not there ------------------------------------------------------------------------------------------------------

$("failures").addEventListener("click", async () => {
  const { place } = sourceOf(question);
  try {
    const told = await ask(`/api/failures?${new URLSearchParams({ cache: place.cache, list: place.list })}`);
    $("failures-title").textContent = `${count(told.total, "video")} without all their features`;
    $("failures-rows").replaceChildren(...told.failures.map((each) => h("tr", {}, h("td", {}, shown(each.id)), h("td", {}, shown(each.reason)))));
    $("failures-dialog").showModal();
  } catch (error) {
    showProblem(error.message);
  }
});
$("keys").addEventListener("click", () => $("keys-dialog").showModal());

function showTries() {
  const { place } = sourceOf(question);
  const usable = place.cacheAbout.sentences ? place.about.examples : [];
  $("try-head").hidden = !usable.length;
  $("try").replaceChildren(...usable.map((text) => h("li", {}, h("button", { type: "button", onclick: () => submit(text) }, shown(text)))));
  if (!place.cacheAbout.sentences) showProblem(`This cache cannot be asked in words: ${place.cacheAbout.problem}`);
}

// --- keys -------------------------------------------------------------------------------------------------------------------

function focusResults() {
  const all = hits();
  (all.find((each) => each.tabIndex === 0) ?? all[0])?.focus();
}

addEventListener("keydown", (event) => {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
  const field = event.target.closest?.("input, select, textarea, dialog");
  if (event.key === "Escape" && !event.target.closest?.("dialog")) {
    if (playing) closePlayer();
    else $("q").focus();
    event.preventDefault();
    return;
  }
  if (field) return;
  const link = event.target.closest?.(".hit");
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key === "/") $("q").focus(), $("q").select();
  else if (link && /^(Arrow|Home$|End$)/.test(key)) {
    const next = walk(link, key);
    if (next) {
      next.focus({ preventScroll: true });
      next.parentElement.scrollIntoView({ block: "nearest" });
    } else if (key === "ArrowUp") $("q").focus();
  } else if (key === " " && playing && (link || event.target === document.body || event.target === $("player-id"))) {
    if (video.paused) video.play().catch(() => {});
    else video.pause();
  } else if (key === "s" && (link || playing)) searchLike((link ?? { hit: playing.hit }).hit);
  else if (key === "f" && (playing || link)) searchLike(playing ? playing.hit : link.hit, playing ? position() : link.hit.time);
  else if (key === "?") $("keys-dialog").showModal();
  else if (key === "ArrowDown" && event.target === document.body) focusResults();
  else return;
  event.preventDefault();
});

$("timeline").addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowDown: -1, ArrowUp: 1, PageDown: -10, PageUp: 10 }[event.key];
  if (!playing || (step == null && !["Home", "End"].includes(event.key))) return;
  const [from, to] = reach(playing.hit);
  const wanted = event.key === "Home" ? from : event.key === "End" ? to : position() + step * Math.max(0.5, (to - from) / 100);
  seek(Math.min(to, Math.max(from, wanted)), !video.paused);
  event.preventDefault();
});
function scrub(event) {
  if (!playing || (event.type === "pointermove" && !event.buttons)) return;
  playing.moment = null;
  seek(timeAt($("timeline"), event, playing.hit), true);
}
$("timeline").addEventListener("pointerdown", (event) => {
  $("timeline").setPointerCapture(event.pointerId);
  scrub(event);
});
$("timeline").addEventListener("pointermove", scrub);
$("player-close").addEventListener("click", closePlayer);
$("similar").addEventListener("click", () => playing && searchLike(playing.hit));
$("frame").addEventListener("click", () => playing && searchLike(playing.hit, position()));

// --- the beginning ----------------------------------------------------------------------------------------------------------

new ResizeObserver(([entry]) => {
  document.documentElement.style.setProperty("--top", `${Math.round(entry.borderBoxSize[0].blockSize)}px`);
}).observe($("top"));

addEventListener("popstate", async () => {
  question = readAddress();
  forget();
  $("q").value = question.q;
  if (playing && !question.play) closePlayer();
  await search();
  if (question.play) playFromAddress();
});

async function begin() {
  let first;
  try {
    const told = await ask("/api/caches");
    ({ caches, limits } = told);
    first = told.default;
  } catch (error) {
    showProblem(error.message);
    return;
  }
  places = caches.flatMap((cache) => cache.lists.map((list) => ({
    key: `${cache.name}\n${list.name}`, cache: cache.name, list: list.name, about: list, cacheAbout: cache,
    heads: cache.heads.map((head) => head.name),
  })));
  const at = places.findIndex((each) => each.cache === first.cache && each.list === first.list);
  if (at > 0) places.unshift(...places.splice(at, 1));
  $("pick").hidden = !caches.some((cache) => cache.pictures);
  $("q").value = question.q;
  openFilters([...FILTERS, "beside"].some((name) => question[name] !== "") && innerWidth > 620);
  if (!question.q && !question.like) $("q").focus();
  await search();
  await playFromAddress();
}

begin();
