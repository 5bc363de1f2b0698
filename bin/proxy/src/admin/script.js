// Follows the server's events. Whatever comes from outside becomes text, never markup.
'use strict';

const csrf = document.body.dataset.csrf;
const $ = (id) => document.getElementById(id);

const UNITS = ['B', 'kB', 'MB', 'GB', 'TB', 'PB'];
function amount(bytes) {
  let unit = 0;
  while (bytes >= 1000 && unit < UNITS.length - 1) { bytes /= 1000; unit += 1; }
  return `${unit === 0 ? Math.round(bytes) : bytes.toFixed(1)} ${UNITS[unit]}`;
}
function age(seconds) {
  const s = Math.floor(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} m ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor(s / 60) % 60} m`;
  return `${Math.floor(s / 86400)} d ${Math.floor(s / 3600) % 24} h`;
}
const clock = (at) => at.slice(11, 19);

function set(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
function mark(node, name) {
  if (node.className !== name) node.className = name;
}
function element(name, className, ...children) {
  const node = document.createElement(name);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

// === connections: only the rows that are in sight are there, and some beside them ===

const body = $('connections').querySelector('tbody');
const scroller = $('connections').querySelector('.scroll');
const filter = $('filter');
const above = element('tr', 'space', element('td'));
const below = element('tr', 'space', element('td'));
// A browser may scroll some frames ahead of this script.
const SPARE = 24;
let height = 28;
let all = [];
let shown = [];
// In the order of the table; the first one is that of `shown[first]`.
const rows = [];
let first = 0;

function makeRow() {
  const [target, small, rate, since] = ['span', 'small', 'span', 'small'].map((name) => element(name));
  const cells = {
    target, small, rate, since, via: element('td', 'wide'), client: element('td', 'wide'), up: element('td', 'n wide'),
    down: element('td', 'n wide'), age: element('td', 'n age'),
  };
  const button = element('button', '', 'Cut');
  button.type = 'button';
  let aimed = null;
  button.addEventListener('pointerdown', () => { aimed = made.connection; });
  const row = element('tr', '', element('td', '', target, small), cells.via, cells.client, cells.up, cells.down,
    element('td', 'n', rate, since), cells.age, element('td', 'act', button));
  const made = { row, cells, connection: null };
  // By a key there is no pointer, and the row stays while its button has the focus.
  button.addEventListener('click', (event) => cut((event.detail > 0 && aimed || made.connection).id));
  return made;
}

// While somebody aims at a connection's button, its row stays where it is.
function isAimedAt() {
  const aimed = rows.find(({ row }) => row.querySelector('button:hover, button:focus-visible'));
  return aimed !== undefined && all.some(({ id }) => id === aimed.connection.id);
}

function fill(made, c) {
  if (made.connection === c) return;
  made.connection = c;
  const { row, cells } = made;
  const client = [c.program, c.client].filter(Boolean).join(' ');
  set(cells.target, c.target ?? `(${c.frontend})`);
  row.title = [c.target, c.via && `${c.via} (${c.transport})`, client, c.frontend].filter(Boolean).join('\n');
  set(cells.small, [c.via, c.program].filter(Boolean).join(' · '));
  set(cells.via, c.via || '…');
  set(cells.client, client || '–');
  set(cells.up, amount(c.up));
  set(cells.down, amount(c.down));
  set(cells.rate, `${amount(c.upRate + c.downRate)}/s`);
  set(cells.since, age(c.age));
  set(cells.age, age(c.age));
}

// Fonts, zoom and the width of the window change the height of a row.
function measure() {
  if (rows.length === 0) return;
  const [top, bottom] = [rows[0], rows.at(-1)].map(({ row }) => row.getBoundingClientRect());
  height = (bottom.bottom - top.top) / rows.length;
}

function draw() {
  const count = Math.min(shown.length, Math.ceil(scroller.clientHeight / height) + 2 * SPARE);
  const wanted = Math.max(0, Math.min(Math.floor(scroller.scrollTop / height) - SPARE, shown.length - count));
  if (above.parentNode === null) body.replaceChildren(above, below);
  while (rows.length > count) rows.pop().row.remove();
  while (rows.length < count) {
    rows.push(makeRow());
    below.before(rows.at(-1).row);
  }
  // A row that leaves at one end comes in at the other one: those between stay as they are.
  for (; first < wanted && wanted - first < count; first += 1) {
    rows.push(rows.shift());
    below.before(rows.at(-1).row);
  }
  for (; first > wanted && first - wanted < count; first -= 1) {
    rows.unshift(rows.pop());
    above.after(rows[0].row);
  }
  first = wanted;
  above.firstChild.style.height = `${first * height}px`;
  below.firstChild.style.height = `${(shown.length - first - count) * height}px`;
  rows.forEach((made, at) => fill(made, shown[first + at]));
}

function select() {
  const word = filter.value.trim().toLowerCase();
  const text = (c) => [c.target, c.via, c.client, c.program, c.frontend].filter(Boolean).join(' ').toLowerCase();
  shown = word === '' ? all : all.filter((c) => text(c).includes(word));
  set($('count'), word === '' ? `${all.length}` : `${shown.length} of ${all.length}`);
  $('none-connections').hidden = shown.length > 0;
  measure();
  draw();
}

async function cut(id) {
  const request = { method: 'POST', body: new URLSearchParams({ id, csrf }), signal: AbortSignal.timeout(5000) };
  const answer = await fetch('/cut', request).catch(() => null);
  if (!answer?.ok) set($('live'), 'not cut: reload the page');
}

// === the rest: small tables, made anew when they change ===

const made = {};
function table(name, rows) {
  const key = JSON.stringify(rows);
  if (made[name] === key) return;
  made[name] = key;
  const cells = (row) => element('tr', '', ...row.map(([className, ...content]) =>
    element('td', className, ...content.map((part) => Array.isArray(part) ? element(...part) : part))));
  $(name).querySelector('tbody').replaceChildren(...rows.map(cells));
  $(`none-${name}`).hidden = rows.length > 0;
}

function show(snapshot) {
  const { totals } = snapshot;
  all = snapshot.connections.reverse();
  if (!isAimedAt()) select();
  let [up, down] = [0, 0];
  for (const c of all) { up += c.upRate; down += c.downRate; }
  set($('open'), String(totals.open));
  set($('connected'), String(totals.connected));
  set($('refused'), String(totals.refused));
  set($('up'), amount(totals.up));
  set($('down'), amount(totals.down));
  set($('rate'), `${amount(up + down)}/s`);
  table('sessions', snapshot.sessions.map((s) => [
    ['', s.pod], ['kind wide', s.transport], ['n', String(s.streams)], [`kind ${s.health}`, s.health], ['n age', age(s.age)],
  ]));
  table('refusals', snapshot.refusals.map((r) => [
    ['when', clock(r.at)], ['wrap', ['b', '', r.target || r.frontend], ' ', ['small', '', r.refusal], ['span', '', r.sentence]],
  ]));
  table('listeners', snapshot.listeners.map((l) => [
    ['kind', l.protocol], ['', l.target ? `${l.address} → ${l.target}` : l.address],
  ]));
  table('watches', snapshot.watches.map((w) => [['', w.what], [`kind ${w.health}`, w.health]]));
  if (snapshot.credentials) credentials(snapshot.credentials);
}

function credentials(c) {
  const section = $('credentials');
  const by = c.plugin ? ` by ${c.plugin}` : '';
  const until = c.expires ? `, until ${c.expires}` : ', no known expiry';
  const words = `${c.kinds.join(', ') || 'None yet'}${by}${until}${c.renewable ? '; renewed then' : ''}`;
  const lines = [element('p', 'none', words)];
  if (c.trouble) lines.push(element('p', 'none bad', c.trouble));
  const said = [...section?.querySelectorAll('p') ?? []].map((line) => line.textContent);
  if (section && said.join('\n') !== lines.map((line) => line.textContent).join('\n')) {
    section.replaceChildren(section.firstElementChild, ...lines);
  }
}

let events = null;
function follow() {
  events?.close();
  // A browser has few connections to one server: a tab that nobody sees holds none.
  if (document.hidden) return;
  events = new EventSource('/events');
  let latest = null;
  events.addEventListener('snapshot', (event) => {
    // Drawn once per frame: a page in the background draws none.
    if (latest === null) {
      requestAnimationFrame(() => {
        const text = latest;
        latest = null;
        const snapshot = JSON.parse(text);
        show(snapshot);
        mark($('live'), 'on');
        set($('live'), `live, ${clock(snapshot.at)} UTC`);
      });
    }
    latest = event.data;
  });
  events.addEventListener('error', () => {
    mark($('live'), 'off');
    set($('live'), events.readyState === EventSource.CLOSED ? 'ended: reload the page' : 'not live, connecting …');
  });
}

scroller.addEventListener('scroll', () => requestAnimationFrame(draw), { passive: true });
addEventListener('resize', () => { measure(); draw(); });
filter.hidden = false;
filter.addEventListener('input', select);
addEventListener('visibilitychange', follow);
follow();
