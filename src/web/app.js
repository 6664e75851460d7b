// The page: session list, one opened session, one connection. No framework.

import { Follow } from './follow.js';
import { element, plain } from './parts.js';
import { Queue } from './queue.js';
import { call } from './rest.js';
import { Socket } from './socket.js';
import { View } from './view.js';

const $ = (id) => document.getElementById(id);
const sessions = new Map();
const queue = new Queue($('queue'), say);
let opened = null; // {id, follow, view, run, byItself, stopping, divider}
let connectedOnce = false;
// Prompts and answers that wait for the server's word, by `ref`; sent again after a cut, which is
// harmless: a prompt has its id, the first answer wins, an abort names its run.
const unanswered = new Map();
let refs = 0;
let version = null; // of the server that this page came from

// ---- the sessions

async function loadSessions() {
  const found = [];
  let cursor = null;
  do {
    const query = new URLSearchParams({ archived: 'false', limit: '500' });
    if (cursor) query.set('cursor', cursor);
    const page = await call('GET', `api/v1/sessions?${query}`);
    found.push(...page.items);
    cursor = page.nextCursor;
  } while (cursor);
  sessions.clear();
  for (const session of found) sessions.set(session.id, session);
  listSessions();
}

// ---- the connection

const socketUrl = new URL('ws', document.baseURI);
socketUrl.protocol = socketUrl.protocol === 'https:' ? 'wss:' : 'ws:';
const socket = new Socket(socketUrl, check, {
  open() {
    connectedOnce = true;
    $('bar').hidden = true;
    if (opened) subscribe();
    for (const frame of unanswered.values()) socket.send(frame);
    say(''); // what was said of the connection before
  },
  frame(frame) {
    receive(frame);
  },
  closed() {
    opened?.follow.disconnected();
    showState();
  },
  waiting(why, seconds) {
    $('bar').hidden = false;
    const what = connectedOnce ? 'Connection lost' : 'Not connected';
    const when = navigator.onLine === false ? 'this device is offline' : `again in ${seconds} s`;
    const text = `${what}${why ? `: ${why}` : ''}; ${when}.`;
    if ($('bar-text').textContent !== text) $('bar-text').textContent = text;
    showState();
  },
  unauthorised: askForToken,
});

// Whether the server can be reached and lets us in; a WebSocket would not say why not.
async function check() {
  try {
    await loadSessions();
    $('login').hidden = true;
    $('page').hidden = false;
    if (nothingShown()) {
      if (sessions.size === 0) newSession();
      else show('welcome');
    }
    return null;
  } catch (problem) {
    return problem.status === 401 || problem.status === 403 ? 'unauthorised' : problem.message;
  }
}

function askForToken() {
  $('bar').hidden = true;
  $('page').hidden = true;
  $('state').hidden = true;
  $('login').hidden = false;
  $('code').focus();
}

// Why a code or token did not open, or an empty text if it did.
async function logIn(code) {
  try {
    await call('POST', 'api/v1/login', { code });
    return '';
  } catch (problem) {
    return problem.message;
  }
}

$('login-form').addEventListener('submit', async (event) => {
  event.preventDefault();
  $('login-error').textContent = '';
  const why = await logIn($('code').value.trim());
  $('login-error').textContent = why;
  if (why) return;
  $('code').value = '';
  $('state').hidden = false;
  start();
});

$('reload').addEventListener('click', () => location.reload());
$('retry').addEventListener('click', () => socket.connect());

function ask(frame) {
  refs += 1;
  const whole = { ...frame, ref: `ask-${refs}` };
  unanswered.set(whole.ref, whole);
  socket.send(whole);
}

function receive(frame) {
  if (opened) take(frame);
  const asked = frame.ref ? unanswered.get(frame.ref) : undefined;
  switch (frame.kind) {
    case 'hello':
      // A page of the version before goes on, and is reloaded when the person finds it convenient.
      version ??= frame.server;
      $('reload').hidden = frame.server === version;
      break;
    case 'session_upserted':
      if (frame.session && !frame.session.archived) sessions.set(frame.sessionId, frame.session);
      else sessions.delete(frame.sessionId);
      listSessions();
      if (frame.sessionId === opened?.id && (frame.session?.queued > 0 || queue.items.length > 0)) queue.refresh();
      break;
    case 'session_deleted':
      sessions.delete(frame.sessionId);
      listSessions();
      break;
    case 'sessions_changed':
      loadSessions().catch(() => socket.connect());
      break;
    case 'chat_subscribed':
      if (frame.sessionId === opened?.id && !frame.error) {
        queue.show(frame.queue ?? [], frame.queueHeld === true);
      }
      break;
    case 'chat_accepted':
    case 'chat_queued':
    case 'ack':
      unanswered.delete(frame.ref);
      if (frame.kind !== 'ack') accepted(asked);
      break;
    case 'protocol_error':
      unanswered.delete(frame.ref);
      if (asked) refused(asked, frame);
      break;
    case 'server_draining':
      say(`The server is stopping${frame.mode === 'keep' ? ', agents work on' : ''}; this page waits for it to come back.`);
      break;
    case 'store_state':
      say(frame.ok ? '' : 'The server cannot write to its disk; it waits.');
      break;
    default:
  }
}

function refused(asked, frame) {
  const text = plain(frame.error ?? frame.code);
  if (asked.type === 'chat.permission-response') opened?.view.refused(asked.requestId, text);
  else say(text);
  if (asked.type === 'chat.abort' && opened) opened.stopping = false;
  if (asked.type === 'chat.send') $('send').disabled = false;
  showState();
}

// ---- the opened session

// Work of the agent in the background has reported, and it goes on without a prompt.
function goesOnByItself() {
  return opened !== null && opened.run !== null && opened.run === opened.byItself;
}

function open(id) {
  if (opened?.id === id) {
    showSession();
    return;
  }
  if (opened) socket.send({ type: 'chat.unsubscribe', sessions: [opened.id] });
  opened = {
    id,
    follow: new Follow(id),
    view: new View($('log'), (requestId, fields) => {
      ask({ type: 'chat.permission-response', requestId, ...fields });
    }),
    run: null,
    byItself: null, // the run, if the agent began it
    stopping: false,
    divider: null,
  };
  location.replace(`#s=${encodeURIComponent(id)}`);
  $('text').value = drafts.get(id) ?? '';
  $('send').disabled = false;
  queue.open(id);
  say('');
  atEnd = true;
  showSession();
  if (socket.isOpen) subscribe();
}

// What the main part shows: one of three.
function show(what) {
  for (const part of ['session', 'new-form', 'welcome']) $(part).hidden = part !== what;
}

function nothingShown() {
  return $('session').hidden && $('new-form').hidden;
}

function showSession() {
  show('session');
  listing(false);
  listSessions();
}

function subscribe() {
  const { follow, view } = opened;
  const again = follow.cursor !== null;
  socket.send(follow.subscribe());
  opened.divider?.remove();
  opened.divider = again ? view.line('…') : null;
}

function take(frame) {
  const { follow, view } = opened;
  const taken = follow.take(frame);
  switch (taken.what) {
    case 'event':
      if (taken.lost) view.line('some events never came');
      draw(frame);
      break;
    case 'hole':
      subscribe();
      break;
    case 'gap':
      gone(taken.from, taken.to);
      break;
    case 'subscribed':
      if (taken.rewound) view.line("the server's log was restored: this run again, from its start");
      if (taken.gap) gone(taken.gap.from, taken.gap.to);
      opened.run = taken.processing ? taken.run : null;
      showState();
      break;
    case 'caught_up':
      missed(taken.events);
      showState();
      break;
    case 'refused':
      say(taken.code === 'SESSION_NOT_FOUND' ? 'This session does not exist any more.' : taken.code);
      break;
    default:
  }
}

// The line at the last event that was seen before the cut.
function missed(events) {
  const { divider } = opened;
  opened.divider = null;
  if (!divider) return;
  if (events === 0) divider.remove();
  else divider.textContent = events === 1 ? 'You missed 1 event' : `You missed ${events} events`;
}

function gone(from, to) {
  const place = (at) => (at ? `${at.runId}:${at.seq}` : 'the beginning');
  opened.view.line(`no longer kept: ${place(from)} to ${place(to)}`);
}

let atEnd = true;
let drawing = false;

function draw(event) {
  if (event.kind === 'run_started') {
    opened.run = event.runId;
    if (event.origin === 'agent') opened.byItself = event.runId;
    opened.stopping = false;
  }
  if (event.kind === 'complete') {
    opened.run = null;
    opened.stopping = false;
  }
  opened.view.event(event);
  if (!drawing) {
    drawing = true;
    requestAnimationFrame(() => {
      drawing = false;
      $('log').dataset.shown = opened.view.account();
      keepEnd();
      showState();
    });
  }
}

let lastTop = 0;

function toEnd() {
  $('log').scrollTop = $('log').scrollHeight;
}

function keepEnd() {
  if (atEnd) toEnd();
  $('to-end').hidden = atEnd;
}

// Only a person scrolls up; what grows below leaves them at the end, if they were there.
$('log').addEventListener('scroll', () => {
  const log = $('log');
  if (log.scrollHeight - log.scrollTop - log.clientHeight < 48) atEnd = true;
  else if (log.scrollTop < lastTop) atEnd = false;
  lastTop = log.scrollTop;
  $('to-end').hidden = atEnd;
}, { passive: true });

// The keyboard of a phone, a wider window, a bar that comes: the end stays in sight.
new ResizeObserver(keepEnd).observe($('log'));

$('to-end').addEventListener('click', () => {
  atEnd = true;
  $('to-end').hidden = true;
  toEnd();
});

let notice = '';

function say(text) {
  notice = text;
  showState();
}

function showState() {
  const state = !socket.isOpen ? 'offline'
    : opened && !opened.follow.live ? 'catching up' : 'live';
  if ($('state').textContent !== state) $('state').textContent = state;
  $('state').dataset.state = state.replace(' ', '-');
  if (!opened) return;
  const running = opened.run !== null;
  // While a run is on, what is sent waits for its end.
  const action = running ? 'Queue' : 'Send';
  if ($('send').textContent !== action) $('send').textContent = action;
  $('stop').hidden = !running;
  $('stop').disabled = opened.stopping;
  $('stop').textContent = opened.stopping ? 'Stopping…' : 'Stop';
  const what = opened.view.statusLine() || 'running';
  const status = notice || (!running ? '' : goesOnByItself() ? `by itself · ${what}` : what);
  if ($('status').textContent !== status) $('status').textContent = status;
}

// ---- the composer

// What was typed, by session; kept until the server has accepted it.
const drafts = new Map();

$('text').addEventListener('input', () => drafts.set(opened.id, $('text').value));

$('text').addEventListener('keydown', (event) => {
  const touch = matchMedia('(pointer: coarse)').matches;
  if (event.key === 'Enter' && !event.shiftKey && !event.isComposing && !touch) {
    event.preventDefault();
    $('composer').requestSubmit();
  }
});

$('composer').addEventListener('submit', (event) => {
  event.preventDefault();
  const content = $('text').value;
  if (!content.trim() || $('send').disabled) return;
  send(opened.id, content);
});

function send(sessionId, content) {
  $('send').disabled = true;
  say(socket.isOpen ? '' : 'It is sent as soon as the connection is back.');
  ask({ type: 'chat.send', sessionId, content, clientMessageId: randomId(), whenBusy: 'queue' });
}

function accepted(asked) {
  if (!asked) return;
  if (drafts.get(asked.sessionId) === asked.content) drafts.delete(asked.sessionId);
  if (opened?.id !== asked.sessionId) return;
  $('send').disabled = false;
  if ($('text').value === asked.content) $('text').value = '';
  say('');
}

$('stop').addEventListener('click', () => {
  if (!opened?.run) return;
  opened.stopping = true;
  ask({ type: 'chat.abort', sessionId: opened.id, runId: opened.run });
  showState();
});

// `crypto.randomUUID` is missing where the page came over plain HTTP from another machine.
function randomId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

// ---- the list

function rank(session) {
  return session.waiting ? 2 : session.running ? 1 : 0;
}

let listingSoon = false;

// Once a frame at most, since news can come in floods.
function listSessions() {
  if (listingSoon) return;
  listingSoon = true;
  requestAnimationFrame(() => {
    listingSoon = false;
    drawSessions();
  });
}

function drawSessions() {
  const all = [...sessions.values()].sort((a, b) => rank(b) - rank(a)
    || (b.updatedAt < a.updatedAt ? -1 : b.updatedAt > a.updatedAt ? 1 : 0));
  const focused = document.activeElement?.dataset?.session;
  const current = $('session').hidden ? null : opened;
  const items = all.map((session) => {
    const item = element('li');
    const choose = element('button');
    choose.type = 'button';
    choose.dataset.session = session.id;
    choose.setAttribute('aria-current', String(current?.id === session.id));
    choose.append(element('span', 'title', plain(session.title ?? 'untitled')));
    const about = element('span', 'about');
    const state = session.waiting ? ['● needs you', 'waiting']
      : !session.running ? null
        : [session.lastRunOrigin === 'agent' ? '▸ running by itself' : '▸ running', 'running'];
    if (state) about.append(element('span', state[1], state[0]), ' · ');
    const path = plain(session.projectPath);
    about.append(`${plain(session.provider)} · ${path.split('/').filter(Boolean).at(-1) ?? path}`);
    choose.title = path;
    choose.append(about);
    choose.addEventListener('click', () => open(session.id));
    item.append(choose);
    return item;
  });
  $('sessions').replaceChildren(...items);
  if (focused) {
    $('sessions').querySelector(`[data-session="${CSS.escape(focused)}"]`)?.focus();
  }
  $('no-sessions').hidden = all.length > 0;
  const session = current && sessions.get(current.id);
  const heading = session ? plain(session.title ?? 'untitled') : 'reattach';
  $('heading').textContent = heading;
  const needy = all.filter((one) => one.waiting).length;
  document.title = `${needy ? `(${needy}) ` : ''}${heading}`;
  suggest('providers', ['claude', 'demo', 'command', ...all.map((one) => one.provider)]);
  suggest('projects', all.map((one) => one.projectPath));
}

function suggest(id, values) {
  $(id).replaceChildren(...[...new Set(values)].map((value) => {
    const option = element('option');
    option.value = value;
    return option;
  }));
}

function listing(on) {
  $('page').classList.toggle('listing', on);
  $('menu').setAttribute('aria-expanded', String(on));
}

$('menu').addEventListener('click', () => listing(!$('page').classList.contains('listing')));

function newSession() {
  show('new-form');
  const last = [...sessions.values()].sort((a, b) => (a.updatedAt < b.updatedAt ? 1 : -1))[0];
  if (!$('provider').value) $('provider').value = last?.provider ?? 'claude';
  if (!$('project').value) $('project').value = last?.projectPath ?? '';
  listing(false);
  drawSessions();
}

$('new').addEventListener('click', () => {
  newSession();
  ($('project').value ? $('prompt') : $('project')).focus();
});

$('new-form').addEventListener('submit', async (event) => {
  event.preventDefault();
  $('new-error').textContent = '';
  const submit = $('new-form').querySelector('button');
  submit.disabled = true;
  try {
    const session = await call('POST', 'api/v1/sessions', {
      provider: $('provider').value.trim(), projectPath: $('project').value.trim(),
    });
    sessions.set(session.id, session);
    const content = $('prompt').value;
    $('prompt').value = '';
    open(session.id);
    drafts.set(session.id, content);
    send(session.id, content);
  } catch (problem) {
    $('new-error').textContent = problem.message;
  } finally {
    submit.disabled = false;
  }
});

// ---- the beginning

function start() {
  const wanted = new URLSearchParams(location.hash.slice(1)).get('s');
  if (wanted) open(wanted);
  else if (nothingShown()) listing(true);
  socket.connect();
}

// Somebody has followed a link to a session, or changed the address.
window.addEventListener('hashchange', async () => {
  if (await useCode()) start();
  const wanted = new URLSearchParams(location.hash.slice(1)).get('s');
  if (wanted && wanted !== opened?.id) open(wanted);
});

// A link may carry a code that opens once. It leaves the address before anything else happens, so
// that it is in no history and no bookmark. Whoever is in already goes on as they are.
async function useCode() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const code = parts.get('code');
  if (code === null) return false;
  parts.delete('code');
  const rest = parts.toString();
  history.replaceState(null, '', `${location.pathname}${location.search}${rest ? `#${rest}` : ''}`);
  $('login-error').textContent = await logIn(code);
  return true;
}

await useCode();
start();
