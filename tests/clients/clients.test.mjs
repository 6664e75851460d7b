// Clients that other people wrote, against the built binary: `tests/clients/run`. Each follows a
// run, is cut, comes back with what it saw last, and must end with the log: nothing lost, nothing
// twice, byte for byte.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';

import { EventSource } from 'eventsource';
import WebSocket from 'ws';

const DEADLINE_MS = 60_000;
const here = path.dirname(fileURLToPath(import.meta.url));
const { PYTHON, REATTACH } = process.env;
const home = fs.mkdtempSync(path.join(os.tmpdir(), 'reattach-clients-'));
const project = path.join(home, 'project');
const data = path.join(home, 'data');
const config = path.join(home, 'config.toml');
let gateway;

/** Rejects if the promise takes longer; the timer never keeps the process alive. */
function within(what, promise) {
  let timer;
  const late = new Promise((_, reject) => {
    const why = () => reject(new Error(`not within ${DEADLINE_MS} ms: ${what}`));
    timer = setTimeout(why, DEADLINE_MS);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

function serve(bind) {
  const args = ['serve', '--json', '--on-stop', 'abort', '--bind', bind, '--data-dir', data,
    '--config', config];
  const child = spawn(REATTACH, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  return within('the server is up', new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('exit', (code) => reject(new Error(`the server ended with ${code}`)));
    child.stdout.once('data', (line) => resolve({ child, ...JSON.parse(line) }));
  }));
}

const token = () => fs.readFileSync(path.join(data, 'token'), 'utf8').trim();
const authorization = () => ({ authorization: `Bearer ${token()}` });

async function rest(method, url, body) {
  const response = await fetch(`${gateway.url}/api/v1${url}`, {
    method,
    headers: { ...authorization(), 'content-type': 'application/json' },
    body: body && JSON.stringify(body),
  });
  const text = await response.text();
  assert.ok(response.ok, `${method} ${url}: ${response.status} ${text}`);
  return text;
}

/** A session with a run of `count` events, `pause` ms apart. */
async function begin(count, pause) {
  const made = await rest('POST', '/sessions', { provider: 'counter', projectPath: project });
  const session = JSON.parse(made).id;
  const content = `count ${count} ${pause}`;
  const sent = await rest('POST', `/sessions/${session}/runs`, { content });
  return { session, run: JSON.parse(sent).runId, frames: count + 2 };
}

/** What the pages of the log say, in which the frames stand as they are. */
async function log(session) {
  const page = await rest('GET', `/sessions/${session}/events?from=start&limit=1000`);
  const items = JSON.parse(page).items.map((item) => JSON.stringify(item));
  return { page, items };
}

/** The client saw the whole log, once, in order and byte for byte. */
async function check({ session, frames }, seen) {
  const { page, items } = await log(session);
  assert.deepEqual(seen.map((text) => JSON.parse(text).seq), [...Array(frames).keys()]);
  assert.deepEqual(seen.map((text) => JSON.stringify(JSON.parse(text))), items);
  assert.ok(page.startsWith(`{"items":[${seen.join(',')}],`), 'byte for byte');
}

/** Lines of a stream. Only line feeds end one: `readline` knows more ends than JSON escapes. */
function onLine(stream, take) {
  let rest = '';
  stream.setEncoding('utf8').on('data', (text) => {
    const lines = (rest + text).split('\n');
    rest = lines.pop();
    lines.forEach(take);
  });
}

/** Whether a frame is one of the log. */
const logged = (frame) => 'seq' in frame && frame.kind !== 'caught_up';

before(async () => {
  fs.mkdirSync(project);
  const agent = JSON.stringify([process.execPath, path.join(here, 'agent.mjs')]);
  fs.writeFileSync(config, [
    '[server]', `project_roots = [${JSON.stringify(home)}]`,
    '[providers.counter]', 'kind = "jsonl"', `command = ${agent}`, '',
  ].join('\n'));
  gateway = await serve('127.0.0.1:0');
});

after(async () => {
  const { child } = gateway;
  if (child.exitCode === null && child.signalCode === null) {
    child.removeAllListeners('exit');
    const gone = once(child, 'exit');
    child.kill('SIGTERM');
    await within('the server stops', gone);
  }
  fs.rmSync(home, { recursive: true, force: true });
});

test('npm ws: follows, is cut, goes on', async () => {
  const { session, run, frames } = await begin(60, 10);
  const seen = [];
  let target = { sessionId: session, runId: run };
  let connections = 0;
  while (!seen.length || JSON.parse(seen.at(-1)).kind !== 'complete') {
    connections += 1;
    const socket = new WebSocket(`${gateway.url.replace('http', 'ws')}/ws`, {
      headers: authorization(),
    });
    await within('the connection ends', new Promise((resolve, reject) => {
      let count = 0;
      let over = false;
      socket.on('error', reject);
      socket.on('close', resolve);
      socket.on('open', () => {
        socket.send(JSON.stringify({ type: 'chat.subscribe', sessions: [target] }));
      });
      socket.on('message', (bytes) => {
        const text = bytes.toString();
        const frame = JSON.parse(text);
        if (over || !logged(frame)) return;
        seen.push(text);
        target = { sessionId: session, runId: run, lastSeq: frame.seq };
        count += 1;
        if (frame.kind === 'complete') socket.close();
        if (count === 17) {
          over = true;
          socket.terminate();
        }
      });
    }));
  }
  assert.ok(connections > 3, `${connections} connections`);
  await check({ session, frames }, seen);
});

test('Python websockets: follows, is cut, goes on', async () => {
  const { session, run, frames } = await begin(60, 10);
  const url = `${gateway.url.replace('http', 'ws')}/ws`;
  const script = path.join(here, 'follow.py');
  const child = spawn(PYTHON, [script, url, session, run, '17'], {
    env: { ...process.env, REATTACH_TOKEN: token() },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const seen = [];
  onLine(child.stdout, (line) => seen.push(line));
  const [code] = await within('it ends', once(child, 'close'));
  assert.equal(code, 0);
  await check({ session, frames }, seen);
});

test('npm eventsource: comes back with Last-Event-ID after kill -9 of the server', async () => {
  const { session, frames } = await begin(150, 20);
  const asked = [];
  const seen = [];
  const ids = [];
  const source = new EventSource(`${gateway.url}/api/v1/sessions/${session}/events?from=start`, {
    fetch: (url, init) => {
      asked.push(init.headers['Last-Event-ID'] ?? null);
      return fetch(url, { ...init, headers: { ...init.headers, ...authorization() } });
    },
  });
  let kills = 0;
  let killing = Promise.resolve();
  const kill = async () => {
    const { child, port } = gateway;
    child.removeAllListeners('exit');
    const gone = once(child, 'exit');
    child.kill('SIGKILL');
    await gone;
    gateway = await serve(`127.0.0.1:${port}`);
  };
  try {
    await within('the end of the run', new Promise((resolve, reject) => {
      source.onmessage = (event) => {
        const frame = JSON.parse(event.data);
        if (frame.kind === 'chat_subscribed' && !frame.recovered) reject(new Error(event.data));
        if (!logged(frame)) return;
        seen.push(event.data);
        ids.push(event.lastEventId);
        if (frame.kind === 'complete') resolve();
        if (frame.seq >= 40 * (kills + 1) && kills < 2) {
          kills += 1;
          killing = killing.then(kill).catch(reject);
        }
      };
      source.onerror = (event) => {
        if (source.readyState === EventSource.CLOSED) reject(new Error(`gave up: ${event.message}`));
      };
    }));
  } finally {
    source.close();
    await killing;
  }
  assert.equal(kills, 2);
  const resumed = asked.filter((id) => id !== null);
  assert.ok(resumed.length >= 2 && asked[0] === null, JSON.stringify(asked));
  for (const id of resumed) assert.ok(ids.includes(id), `${id} is the last one it saw`);
  await check({ session, frames }, seen);
});

test('npm eventsource: a deleted session ends it for good', async () => {
  const { session } = await begin(1, 1);
  const url = `${gateway.url}/api/v1/sessions/${session}/events`;
  let opened = 0;
  const source = new EventSource(url, {
    fetch: (input, init) => {
      opened += 1;
      return fetch(input, { ...init, headers: { ...init.headers, ...authorization() } });
    },
  });
  const told = [];
  try {
    await within('it gives up', new Promise((resolve) => {
      source.onmessage = async (event) => {
        const frame = JSON.parse(event.data);
        told.push(frame.kind);
        if (frame.kind === 'complete') await rest('DELETE', `/sessions/${session}`);
      };
      source.onerror = () => source.readyState === EventSource.CLOSED && resolve();
    }));
  } finally {
    source.close();
  }
  assert.equal(told.at(-1), 'session_deleted');
  assert.equal(opened, 2, 'it came back once, and was told that there is nothing');
});

test('curl -N: each event is there when it happens', async () => {
  const { session, frames } = await begin(30, 10);
  const url = `${gateway.url}/api/v1/sessions/${session}/events?from=start`;
  const child = spawn('curl', [
    '-sSN', '-H', `Authorization: Bearer ${token()}`, '-H', 'Accept: text/event-stream', url,
  ], { stdio: ['ignore', 'pipe', 'inherit'] });
  const seen = [];
  const gone = once(child, 'close');
  onLine(child.stdout, (line) => {
    if (!line.startsWith('data: ')) return;
    const text = line.slice('data: '.length);
    if (!logged(JSON.parse(text))) return;
    seen.push(text);
    // It would go on for ever: that it came this far without an end of the answer is the point.
    if (JSON.parse(text).kind === 'complete') child.kill();
  });
  await within('the end of the run', gone);
  await check({ session, frames }, seen);
});
