// The real Claude Code against a model on loopback, through the built binary: `tests/agents/run`.
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';

import { start } from './fake_model.mjs';

const DEADLINE_MS = 60_000;
const { REATTACH, CLAUDE } = process.env;
const home = fs.mkdtempSync(path.join(os.tmpdir(), 'reattach-agents-'));
const project = path.join(home, 'project');
const data = path.join(home, 'data');
const config = path.join(home, 'config.toml');
let model;
let gateway;

async function eventually(what, look) {
  const until = Date.now() + DEADLINE_MS;
  for (;;) {
    const found = await look();
    if (found) return found;
    if (Date.now() > until) assert.fail(`not within ${DEADLINE_MS} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

function serve(bind) {
  return new Promise((resolve, reject) => {
    const args = ['serve', '--json', '--on-stop', 'abort', '--bind', bind, '--data-dir', data,
      '--config', config];
    const child = spawn(REATTACH, args, { stdio: ['ignore', 'pipe', 'inherit'] });
    child.once('error', reject);
    child.once('exit', (code) => reject(new Error(`the gateway ended with ${code}`)));
    child.stdout.once('data', (line) => resolve({ child, ...JSON.parse(line) }));
  });
}

async function rest(method, url, body) {
  const token = fs.readFileSync(path.join(data, 'token'), 'utf8').trim();
  const response = await fetch(`${gateway.url}/api/v1${url}`, {
    method,
    headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' },
    body: body && JSON.stringify(body),
  });
  const answer = await response.json();
  assert.ok(response.ok, `${method} ${url}: ${response.status} ${JSON.stringify(answer)}`);
  return answer;
}

const session = async () =>
  (await rest('POST', '/sessions', { provider: 'claude', projectPath: project })).id;

const send = async (id, content) =>
  (await rest('POST', `/sessions/${id}/runs`, { content: `§ ${content}` })).runId;

async function events(id, run) {
  const { items } = await rest('GET', `/sessions/${id}/events?limit=1000&after=${run}:0`);
  return items.filter((event) => event.runId === run);
}

const completed = (id, run) =>
  eventually('complete', async () =>
    (await events(id, run)).find((event) => event.kind === 'complete'));

async function allow(id) {
  const request = await eventually('a permission request', async () =>
    (await rest('GET', '/permissions')).items.find((item) => item.sessionId === id));
  await rest('POST', `/permissions/${encodeURIComponent(request.requestId)}`, { allow: true });
  return request;
}

// What `ps --keepers` says of a session's agent; undefined if there is none.
function keeper(id) {
  const args = ['ps', '--keepers', '--json', '--data-dir', data];
  const all = JSON.parse(execFileSync(REATTACH, args, { encoding: 'utf8' }));
  const found = all.filter((one) => one.session === id);
  assert.ok(found.length <= 1, `two agents of one session: ${JSON.stringify(found)}`);
  return found[0];
}

// kill -9 of the gateway, and another one on the same port and data directory.
async function killAndRestart() {
  gateway.child.removeAllListeners('exit');
  const gone = new Promise((resolve) => gateway.child.once('exit', resolve));
  gateway.child.kill('SIGKILL');
  await gone;
  gateway = await serve(`127.0.0.1:${gateway.port}`);
}

// The log after the kill begins with what was seen before it, byte for byte.
async function expectPrefix(id, run, seen) {
  const now = await events(id, run);
  assert.deepEqual(now.slice(0, seen.length), seen);
  assert.deepEqual(now.map((event) => event.seq), now.map((_, at) => at + 1));
  assert.equal(now.filter((event) => event.kind === 'complete').length, 1);
  return now;
}

// Processes that carry this data dir's tag, whatever they are.
function leftovers() {
  return fs.readdirSync('/proc').filter((pid) => {
    if (!/^\d+$/.test(pid)) return false;
    try {
      const command = fs.readFileSync(`/proc/${pid}/cmdline`, 'utf8');
      return command.includes('tail') && fs.readlinkSync(`/proc/${pid}/cwd`).startsWith(home);
    } catch {
      return false; // It has ended meanwhile.
    }
  });
}

before(async () => {
  assert.ok(REATTACH && CLAUDE, 'run this with tests/agents/run');
  fs.mkdirSync(project, { recursive: true });
  model = await start();
  const env = {
    HOME: home,
    ANTHROPIC_BASE_URL: `http://127.0.0.1:${model.port}`,
    ANTHROPIC_API_KEY: 'sk-ant-dummy',
    IS_SANDBOX: '1',
    CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC: '1',
    DISABLE_TELEMETRY: '1',
    DISABLE_ERROR_REPORTING: '1',
    DISABLE_AUTOUPDATER: '1',
  };
  const pairs = Object.entries(env).map(([key, value]) => `${key} = ${JSON.stringify(value)}`);
  fs.writeFileSync(config, [
    '[server]',
    `project_roots = [${JSON.stringify(home)}]`,
    '[providers.claude]',
    'kind = "claude"',
    `command = [${JSON.stringify(CLAUDE)}]`,
    `env = { ${pairs.join(', ')} }`,
  ].join('\n'));
  gateway = await serve('127.0.0.1:0');
});

after(async () => {
  gateway?.child.kill('SIGTERM');
  model?.release();
  model?.server.close();
  await eventually('the gateway ends', () => gateway.child.exitCode !== null);
  const left = execFileSync(REATTACH, ['ps', '--keepers', '--json', '--data-dir', data]);
  assert.deepEqual(JSON.parse(left).filter((one) => one.state !== 'gone'), []);
  fs.rmSync(home, { recursive: true, force: true });
});

test('one process serves a session, and a resumed one after it', async () => {
  const id = await session();
  const first = await send(id, 'hello');
  const end = await completed(id, first);
  assert.deepEqual([end.reason, end.success, end.aborted], ['finished', true, false]);
  const text = (await events(id, first)).find((event) => event.kind === 'text');
  assert.equal(text.content, 'This is prompt 1.');
  const warm = keeper(id);
  assert.equal(warm.state, 'attached');
  const second = await send(id, 'again');
  await completed(id, second);
  const again = (await events(id, second)).filter((event) => event.kind === 'text');
  assert.equal(again.at(-1).content, 'This is prompt 2.');
  assert.equal(keeper(id).agentPid, warm.agentPid);

  // The gateway is killed while the agent idles: it stays warm.
  await killAndRestart();
  const third = await send(id, 'and again');
  await completed(id, third);
  const after = (await events(id, third)).filter((event) => event.kind === 'text');
  assert.equal(after.at(-1).content, 'This is prompt 3.');
  assert.equal(keeper(id).agentPid, warm.agentPid);

  // Its keeper is told to stop it: the next prompt starts another, in the same conversation.
  process.kill(warm.pid, 'SIGTERM');
  await eventually('the keeper ends', () => !keeper(id));
  const fourth = await send(id, 'once more');
  await completed(id, fourth);
  const resumed = (await events(id, fourth)).filter((event) => event.kind === 'text');
  assert.equal(resumed.at(-1).content, 'This is prompt 4.');
  assert.notEqual(keeper(id).agentPid, warm.agentPid);
});

test('a permission is asked, answered, delivered, and the command runs', async () => {
  const id = await session();
  const run = await send(id, '[[bash:touch made && echo done]]');
  const request = await allow(id);
  assert.equal(request.interaction, 'tool');
  const end = await completed(id, run);
  assert.equal(end.reason, 'finished');
  const states = (await events(id, run))
    .filter((event) => event.kind === 'permission_resolved')
    .map((event) => event.state);
  assert.deepEqual(states, ['recorded', 'delivered']);
  assert.ok(fs.existsSync(path.join(project, 'made')));
  const results = (await events(id, run)).filter((event) => event.kind === 'tool_result');
  assert.deepEqual(results.map((event) => event.toolResult.isError), [false]);
});

test('an abort in a running command leaves nothing behind', async () => {
  const id = await session();
  const run = await send(id, '[[bash:touch begun && tail -f /dev/null]]');
  await allow(id);
  await eventually('the command runs', () => leftovers().length > 0);
  await rest('POST', `/runs/${run}/abort`);
  const end = await completed(id, run);
  assert.deepEqual([end.reason, end.aborted, end.exitCode], ['aborted', true, 0]);
  assert.deepEqual(leftovers(), []);
});

test('a gateway killed in the middle of a turn: the turn ends as it would have', async () => {
  const id = await session();
  const run = await send(id, '[[hold]]');
  const seen = await eventually('half of the text', async () => {
    const all = await events(id, run);
    return all.some((event) => event.kind === 'stream_delta') && model.held.length > 0 && all;
  });
  const { agentPid } = keeper(id);
  await killAndRestart();
  assert.equal(keeper(id).agentPid, agentPid);
  const running = await rest('GET', `/runs/${run}`);
  assert.equal(running.status, 'running');
  model.release();
  const end = await completed(id, run);
  assert.deepEqual([end.reason, end.success], ['finished', true]);
  const now = await expectPrefix(id, run, seen);
  const texts = now.filter((event) => event.kind === 'text').map((event) => event.content);
  assert.deepEqual(texts, ['This is prompt 1, said in two halves.']);
  // What streamed is the text, each piece once, over the kill.
  const streamed = now.filter((event) => event.kind === 'stream_delta' && event.block === 'text');
  assert.equal(streamed.map((event) => event.content).join(''), texts[0]);
});

test('a gateway killed between two halves that nobody heard loses neither', async () => {
  const id = await session();
  const run = await send(id, '[[hold]]');
  await eventually('the model waits', () => model.held.length > 0);
  const seen = await events(id, run);
  gateway.child.removeAllListeners('exit');
  const gone = new Promise((resolve) => gateway.child.once('exit', resolve));
  gateway.child.kill('SIGKILL');
  await gone;
  // The turn goes on and ends while no gateway runs.
  model.release();
  const end = await eventually('its end is in the journal', () => {
    const folder = path.join(data, 'agents', keeper(id).agent);
    return fs.readdirSync(folder).filter((name) => name.endsWith('.journal'))
      .some((name) => fs.readFileSync(path.join(folder, name)).includes('"type":"result"'));
  });
  assert.ok(end);
  assert.equal(keeper(id).state, 'orphaned');
  gateway = await serve(`127.0.0.1:${gateway.port}`);
  const complete = await completed(id, run);
  assert.deepEqual([complete.reason, complete.success], ['finished', true]);
  await expectPrefix(id, run, seen);
});

test('a permission that was asked before a kill is answered after it', async () => {
  const id = await session();
  const run = await send(id, '[[bash:touch after_the_kill && echo done]]');
  const asked = await eventually('a permission request', async () =>
    (await rest('GET', '/permissions')).items.find((item) => item.sessionId === id));
  const seen = await events(id, run);
  await killAndRestart();
  assert.equal((await allow(id)).requestId, asked.requestId);
  const end = await completed(id, run);
  assert.equal(end.reason, 'finished');
  const now = await expectPrefix(id, run, seen);
  const states = now.filter((event) => event.kind === 'permission_resolved');
  assert.deepEqual(states.map((event) => event.state), ['recorded', 'delivered']);
  assert.ok(fs.existsSync(path.join(project, 'after_the_kill')));
});

test('after a kill -9 of the gateway a command is still stopped with all that it started', async () => {
  const id = await session();
  const run = await send(id, '[[bash:touch there && tail -f /dev/null]]');
  await allow(id);
  await eventually('the command runs', () => leftovers().length > 0);
  const seen = await events(id, run);
  await killAndRestart();
  assert.ok(leftovers().length > 0, 'the command lives on');
  await rest('POST', `/runs/${run}/abort`);
  const end = await completed(id, run);
  assert.deepEqual([end.reason, end.aborted], ['aborted', true]);
  assert.deepEqual(leftovers(), []);
  await expectPrefix(id, run, seen);
});
