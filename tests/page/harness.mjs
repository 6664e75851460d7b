// What the scenarios stand on: the built server, a browser, a puppet agent, a wire that can be cut,
// and the comparison of what a page shows with what the log holds. Every wait has a deadline.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import readline from 'node:readline';
import { fileURLToPath } from 'node:url';
import { chromium } from 'playwright-core';

const here = path.dirname(fileURLToPath(import.meta.url));
export const WAIT_MS = Number(process.env.PAGE_WAIT_MS ?? 30000);
export const root = path.join(here, '../..');
export const shots = path.join(root, 'target/page');

/** Rejects if the promise takes longer; the timer never keeps the process alive. */
export function within(ms, what, promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: not within ${ms} ms`)), ms);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

export function check(holds, what) {
  if (!holds) throw new Error(what);
}

export function same(found, expected, what) {
  const [one, two] = [JSON.stringify(found), JSON.stringify(expected)];
  if (one !== two) throw new Error(`${what}:\n  found    ${one}\n  expected ${two}`);
}

/** `reattach serve` on a data directory of its own; it can be killed and started again. */
export class Server {
  constructor(puppetPort) {
    this.dir = fs.mkdtempSync(path.join(os.tmpdir(), 'reattach-page-'));
    this.data = path.join(this.dir, 'data');
    this.projects = path.join(this.dir, 'projects');
    this.project = path.join(this.projects, 'demo-project');
    fs.mkdirSync(this.project, { recursive: true });
    const text = (value) => JSON.stringify(value);
    fs.writeFileSync(path.join(this.dir, 'config.toml'), `
[server]
project_roots = [${text(this.projects)}]
[providers.demo]
kind = "demo"
[providers.puppet]
kind = "jsonl"
command = [${text(process.execPath)}, ${text(path.join(here, 'agent.mjs'))}]
env = { PUPPET_PORT = "${puppetPort}" }
# The same puppet, in the dialect of an agent that can go on by itself.
[providers.talker]
kind = "claude"
command = [${text(process.execPath)}, ${text(path.join(here, 'agent.mjs'))}]
env = { PUPPET_PORT = "${puppetPort}" }
`);
    this.port = 0;
    // The scenarios' agents end with the last server, whatever a failed one has left.
    this.onStop = 'abort';
  }

  async start() {
    const program = path.join(process.env.CARGO_TARGET_DIR ?? path.join(root, 'target'), 'debug/reattach');
    this.child = spawn(program, ['serve', '--json', '--on-stop', this.onStop, '--bind', `127.0.0.1:${this.port}`,
      '--data-dir', this.data, '--config', path.join(this.dir, 'config.toml')],
    { stdio: ['ignore', 'pipe', 'pipe'] });
    this.log = [];
    readline.createInterface({ input: this.child.stderr }).on('line', (line) => {
      this.log.push(line);
      if (this.log.length > 200) this.log.shift();
    });
    const lines = readline.createInterface({ input: this.child.stdout });
    const ended = once(this.child, 'exit').then(() => {
      throw new Error(`the server ended:\n${this.log.join('\n')}`);
    });
    ended.catch(() => {});
    const [line] = await within(WAIT_MS, 'server start', Promise.race([once(lines, 'line'), ended]));
    const about = JSON.parse(line);
    this.port = about.port;
    this.url = about.url.replace(/\/?$/, '/');
    this.token = fs.readFileSync(path.join(this.data, 'token'), 'utf8').trim();
  }

  async stop(signal = 'SIGTERM') {
    if (!this.child || this.child.exitCode !== null || this.child.signalCode !== null) return;
    const gone = once(this.child, 'exit');
    this.child.kill(signal);
    await within(WAIT_MS, 'server stop', gone);
  }

  async get(what) {
    const answer = await fetch(`${this.url}api/v1/${what}`, {
      headers: { Authorization: `Bearer ${this.token}` }, signal: AbortSignal.timeout(WAIT_MS),
    });
    check(answer.ok, `GET ${what}: ${answer.status}`);
    return answer.json();
  }

  async send(method, what, body) {
    const answer = await fetch(`${this.url}api/v1/${what}`, {
      method,
      headers: { Authorization: `Bearer ${this.token}`, 'Content-Type': 'application/json' },
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: AbortSignal.timeout(WAIT_MS),
    });
    check(answer.ok, `${method} ${what}: ${answer.status}`);
    return answer.status === 204 ? null : answer.json();
  }

  /** The whole log of a session. */
  async events(session) {
    const items = [];
    let after = '&from=start';
    do {
      const page = await this.get(`sessions/${session}/events?limit=500${after}`);
      items.push(...page.items);
      after = page.nextCursor ? `&after=${page.nextCursor}` : null;
    } while (after);
    return items;
  }
}

/** Agents of provider `puppet`, as they are started. */
export class Puppets {
  async listen() {
    this.waiting = [];
    this.come = [];
    this.all = new Set();
    this.server = net.createServer((socket) => {
      const puppet = new Puppet(socket);
      this.all.add(puppet);
      socket.on('close', () => this.all.delete(puppet));
      const waiter = this.waiting.shift();
      if (waiter) waiter(puppet);
      else this.come.push(puppet);
    });
    this.server.listen(0, '127.0.0.1');
    await once(this.server, 'listening');
    this.port = this.server.address().port;
  }

  next() {
    const come = this.come.shift();
    if (come) return Promise.resolve(come);
    return within(WAIT_MS, 'an agent', new Promise((resolve) => this.waiting.push(resolve)));
  }

  /** Ends what a scenario has left at work. */
  dismiss() {
    for (const puppet of this.all) puppet.socket.destroy();
    this.come = [];
    this.waiting = [];
  }
}

class Puppet {
  constructor(socket) {
    this.socket = socket;
    this.gone = once(socket, 'close');
    socket.on('error', () => {});
    this.heard = [];
    this.waiters = [];
    readline.createInterface({ input: socket }).on('line', (line) => {
      this.heard.push(JSON.parse(line));
      for (const waiter of this.waiters.splice(0)) waiter();
    });
  }

  say(...events) {
    this.socket.write(events.map((event) => `${JSON.stringify(event)}\n`).join(''));
  }

  text(content) {
    this.say({ kind: 'text', content });
  }

  /** The first line of this type that was heard. */
  async hear(type) {
    const find = async () => {
      for (;;) {
        const found = this.heard.find((line) => line.type === type);
        if (found) return found;
        await new Promise((resolve) => this.waiters.push(resolve));
      }
    };
    return within(WAIT_MS, `the agent hears ${type}`, find());
  }

  end(more = {}) {
    this.say({ kind: 'complete', exitCode: 0, success: true, ...more });
  }
}

/** A wire between browser and server: it can be cut, swallow everything, or refuse. */
export class Wire {
  constructor(server) {
    this.server = server;
    this.pairs = new Set();
    this.mode = 'pass';
  }

  async listen() {
    this.listener = net.createServer((near) => this.join(near));
    this.listener.listen(0, '127.0.0.1');
    await once(this.listener, 'listening');
    this.url = `http://127.0.0.1:${this.listener.address().port}/`;
  }

  join(near) {
    near.on('error', () => {});
    if (this.mode === 'refuse') {
      near.destroy();
      return;
    }
    const far = net.connect(this.server.port, '127.0.0.1');
    far.on('error', () => near.destroy());
    near.on('close', () => far.destroy());
    far.on('close', () => near.destroy());
    near.on('data', (data) => this.mode === 'swallow' || far.write(data));
    far.on('data', (data) => this.mode === 'swallow' || near.write(data));
    this.pairs.add(near);
    near.on('close', () => this.pairs.delete(near));
  }

  cut() {
    this.mode = 'refuse';
    for (const near of this.pairs) near.destroy();
  }
}

// The page asks before it knows whether it is logged in; the browser notes each refusal.
const ALWAYS = [/status of 401 .*\/api\/v1\/(sessions|login)/];

/** Chromium with a profile of its own, and pages that tell what went wrong in them. */
export class Browser {
  async start() {
    this.browser = await chromium.launch({
      executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
      // Playwright makes a new profile directory for each launch and removes it.
      args: ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
        '--disable-background-networking', '--disable-component-update', '--disable-sync',
        // A page that the test itself fulfils counts as one from the internet.
        ...(process.env.PAGE_FILES ? ['--disable-features=LocalNetworkAccessChecks'] : [])],
      timeout: WAIT_MS,
    });
    this.problems = [];
    this.contexts = [];
    this.allowed = [...ALWAYS];
  }

  /** What the browser says about failures that the scenario makes on purpose. */
  allow(text) {
    this.allowed.push(text);
  }

  pages() {
    return this.contexts.flatMap((context) => context.pages());
  }

  verdict() {
    same(this.problems, [], 'what went wrong in the pages');
  }

  async stop() {
    await within(WAIT_MS, 'browser stop', this.browser?.close() ?? Promise.resolve());
  }

  /** A new person with a new page: no cookies, nothing kept. */
  async page(origin, options = {}) {
    const context = await this.browser.newContext({ viewport: { width: 1200, height: 800 }, ...options });
    context.setDefaultTimeout(WAIT_MS);
    this.contexts.push(context);
    await this.devFiles(context, origin);
    const page = await context.newPage();
    const note = (text) => {
      if (!this.allowed.some((allowed) => allowed.test(text))) this.problems.push(text);
    };
    page.on('console', (message) => {
      if (['error', 'warning'].includes(message.type())) {
        note(`console: ${message.text()} (${message.location().url})`);
      }
    });
    page.on('pageerror', (error) => note(`exception: ${error.stack ?? error}`));
    const own = new URL(origin).host;
    const here = (url) => ['data:', 'blob:', 'about:'].includes(new URL(url).protocol)
      || new URL(url).host === own;
    page.on('request', (request) => here(request.url()) || note(`request to ${request.url()}`));
    page.on('websocket', (socket) => here(socket.url()) || note(`WebSocket to ${socket.url()}`));
    page.on('dialog', (dialog) => {
      note(`dialog: ${dialog.message()}`);
      dialog.dismiss().catch(() => {});
    });
    await page.addInitScript(() => {
      document.addEventListener('securitypolicyviolation', (event) => {
        console.error(`CSP: ${event.violatedDirective} ${event.blockedURI}`);
      });
    });
    return page;
  }

  /** For work on the page: PAGE_FILES=src/web serves its files without a build, headers as they are. */
  async devFiles(context, origin) {
    const from = process.env.PAGE_FILES;
    if (!from) return;
    const ours = (url) => url.host === new URL(origin).host && /^\/([a-z]+\.(js|css|svg))?$/.test(url.pathname);
    await context.route(ours, async (route) => {
      try {
        const name = new URL(route.request().url()).pathname.slice(1) || 'index.html';
        const known = { js: '/app.js', css: '/style.css', html: '/', svg: '/style.css' }[name.split('.').pop()];
        const answer = await route.fetch({ url: new URL(known, route.request().url()).href });
        await route.fulfill({ response: answer, ...(name.endsWith('svg') ? { contentType: 'image/svg+xml' } : {}), body: fs.readFileSync(path.join(from, name), 'utf8') });
      } catch {
        await route.abort().catch(() => {});
      }
    });
  }

  async closePages() {
    await within(WAIT_MS, 'pages close',
      Promise.all(this.contexts.splice(0).map((context) => context.close())));
    this.problems = [];
    this.allowed = [...ALWAYS];
  }
}

/** Opens the page and logs in as a person would. */
export async function enter(page, url, token) {
  await page.goto(url);
  await page.getByLabel('Token').fill(token);
  await page.getByRole('button', { name: 'Log in' }).click();
  await page.waitForSelector('#state[data-state="live"]');
}

/** Starts a session with the page's own form; its id. */
export async function create(page, provider, project, prompt) {
  const before = new URL(page.url()).hash;
  if (!(await page.locator('#new').isVisible())) await page.locator('#menu').click();
  await page.locator('#new').click();
  await page.getByLabel('Agent', { exact: true }).fill(provider);
  await page.getByLabel('Directory').fill(project);
  await page.getByLabel('What is to be done?').fill(prompt);
  await page.getByRole('button', { name: 'Start' }).click();
  await page.waitForFunction((old) => location.hash.startsWith('#s=') && location.hash !== old, before);
  await page.waitForSelector('#log .prompt');
  return new URLSearchParams(new URL(page.url()).hash.slice(1)).get('s');
}

/** Sends a further prompt. */
export async function send(page, text) {
  await page.getByLabel('Message to the agent').fill(text);
  await page.keyboard.press('Enter');
}

/** The log of the session as an account, such as `RUN:0-17 RUN:0-3`. */
function account(events) {
  const runs = [];
  for (const { runId, seq } of events) {
    if (runs.at(-1)?.runId !== runId) runs.push({ runId, from: seq, to: seq - 1 });
    check(seq === runs.at(-1).to + 1, `the log itself has a hole at ${runId}:${seq}`);
    runs.at(-1).to = seq;
  }
  return runs.map((run) => `${run.runId}:${run.from}-${run.to}`).join(' ');
}

/** The page shows each event of the log once, in order, with the words of the log. */
export async function compare(page, server, session) {
  const events = await server.events(session);
  const expected = account(events);
  await page.waitForFunction((text) => document.querySelector('#log').dataset.shown === text, expected)
    .catch(async () => {
      same(await page.evaluate(() => document.querySelector('#log').dataset.shown), expected,
        'events shown');
    });
  const places = await page.$$eval('#log [data-seq]', (all) =>
    all.map((one) => [one.dataset.run, Number(one.dataset.seq)]));
  const order = events.map((event) => event.runId);
  for (let at = 1; at < places.length; at += 1) {
    const [[run, seq], [nextRun, next]] = [places[at - 1], places[at]];
    check(run === nextRun ? seq < next : order.indexOf(run) < order.indexOf(nextRun),
      `doubled or out of order: ${run}:${seq} before ${nextRun}:${next}`);
  }
  const finished = events.filter((event) => ['text', 'thinking'].includes(event.kind)
    && event.role !== 'user');
  const said = await page.$$eval('#log .said', (all) => all.map((one) => one.textContent));
  same(said.map(letters), finished.map((event) => letters(event.content)), 'what was said');
  return events;
}

/** Letters and digits alone, since Markdown's marks become elements. */
function letters(text) {
  return text.replace(/^\s*(?:\d+[.)] |```\w*$)/gm, '').replace(/[^\p{L}\p{N}]/gu, '');
}
