// What happens when something breaks off: the wire, the server, the network of the device.
import { Wire, check, compare, create, enter, same, send } from './harness.mjs';
import { LIVE, card, looksRight, see } from './looks.mjs';

/** A wire that is cut: what was missed comes once, with a line that says so. */
export async function aCutWireLosesNothing({ browser, server, puppets }) {
  const wire = new Wire(server);
  await wire.listen();
  const page = await browser.page(wire.url);
  await enter(page, wire.url, server.token);
  const session = await create(page, 'puppet', server.project, 'count');
  const agent = await puppets.next();
  for (let n = 0; n < 20; n += 1) agent.text(`before ${n}`);
  await see(page, '#log .said', 'before 19');

  browser.allow(/WebSocket connection to|ERR_CONNECTION|ERR_EMPTY_RESPONSE|ERR_NETWORK/);
  wire.cut();
  await page.locator('#bar').waitFor();
  await page.waitForFunction(() => /^Connection lost.*; again in \d+ s/.test(document.querySelector('#bar-text').textContent));
  await page.waitForSelector('#state[data-state="offline"]');
  await looksRight(page, 'cut');
  for (let n = 0; n < 30; n += 1) agent.text(`away ${n}`);
  // What is typed while away is kept, and sent once.
  await send(page, 'typed while away');
  await see(page, '#status', 'sent as soon as');
  agent.end();
  await events(server, session, 'complete', 1);
  wire.mode = 'pass';
  await page.getByRole('button', { name: 'Retry now' }).click();
  await page.waitForSelector(LIVE);
  check(await page.locator('#bar').isHidden(), 'the bar stays');
  await see(page, '#log .divider', /You missed \d+ events/);
  const next = await puppets.next();
  same((await next.hear('prompt')).content, 'typed while away', 'the prompt');
  await see(page, '#log .prompt', 'typed while away');
  same(await page.getByLabel('Message to the agent').inputValue(), '', 'the composer');
  await page.locator('#log .divider', { hasText: 'You missed' }).scrollIntoViewIfNeeded();
  await looksRight(page, 'missed');

  // A wire that swallows everything is found out without a close.
  wire.mode = 'swallow';
  next.text('into the void');
  await page.evaluate(() => window.dispatchEvent(new Event('offline')));
  await page.locator('#bar').waitFor();
  wire.mode = 'pass';
  await page.waitForSelector(LIVE);
  next.end();
  await see(page, '#log .said', 'into the void');
  await page.waitForFunction(() => document.querySelectorAll('#log .end').length === 2);
  await compare(page, server, session);
}

/** The log once it has so many events of a kind. Asks again without a pause: each call waits for the server. */
async function events(server, session, kind, count) {
  const until = Date.now() + 30000;
  for (;;) {
    const all = await server.events(session);
    if (all.filter((event) => event.kind === kind).length >= count) return all;
    check(Date.now() < until, `no ${count} ${kind} in the log`);
  }
}

export async function manyCutsWhileTextStreams({ browser, server, puppets }) {
  const wire = new Wire(server);
  await wire.listen();
  const page = await browser.page(wire.url);
  browser.allow(/WebSocket connection to|ERR_CONNECTION|ERR_EMPTY_RESPONSE|ERR_NETWORK/);
  await enter(page, wire.url, server.token);
  const session = await create(page, 'puppet', server.project, 'stream');
  const agent = await puppets.next();
  let words = 0;
  for (let round = 0; round < 6; round += 1) {
    let whole = '';
    const delta = () => {
      words += 1;
      whole += `word${words} `;
      agent.say({ kind: 'stream_delta', blockId: `b${round}`, block: 'text', content: `word${words} ` });
    };
    for (let n = 0; n < 40; n += 1) delta();
    await see(page, '#log .said', `word${words} `);
    wire.cut();
    await page.waitForSelector('#state[data-state="offline"]');
    for (let n = 0; n < 40; n += 1) delta();
    wire.mode = 'pass';
    await page.evaluate(() => window.dispatchEvent(new Event('online')));
    await page.waitForSelector(LIVE);
    // The preview after the cut goes on where it was cut.
    await page.waitForFunction((text) => [...document.querySelectorAll('#log .said.raw')]
      .some((said) => said.textContent === text), whole);
    agent.say({ kind: 'text', blockId: `b${round}`, content: whole });
  }
  agent.end();
  await see(page, '#log .end.good', 'finished');
  await compare(page, server, session);
}

/** What the log shows, as the page accounts for it. */
function shown(page) {
  return page.locator('#log').getAttribute('data-shown');
}

/** kill -9, and the page has seen that the server is gone. */
async function kill(page, server) {
  await server.stop('SIGKILL');
  await page.locator('#bar').waitFor();
  await page.waitForFunction(() => /again in \d+ s/.test(document.querySelector('#bar-text').textContent));
  await page.waitForSelector('#state[data-state="offline"]');
}

export async function aServerKilledInMidTurn({ browser, server, puppets }) {
  const page = await browser.page(server.url);
  await enter(page, server.url, server.token);
  const session = await create(page, 'puppet', server.project, 'work on');
  const agent = await puppets.next();
  for (let n = 0; n < 10; n += 1) agent.text(`line ${n}`);
  agent.say({ kind: 'tool_use', toolId: 't1', toolName: 'Shell', toolInput: { command: 'sleep 99' }, category: 'execute', status: 'running' });
  agent.say({ kind: 'permission_request', requestId: 'r1', toolName: 'Shell', input: { command: 'rm -r build' } });
  await card(page, 'rm -r build').waitFor();
  browser.allow(/WebSocket connection to|ERR_CONNECTION/);
  await kill(page, server);
  // The agent lives, and works on while nobody listens.
  agent.text('said to nobody');
  await server.start();
  await page.waitForSelector(LIVE);
  await see(page, '#log .divider', /You missed \d+ events?/);
  await see(page, '#log .said', 'said to nobody');
  check(await page.locator('#stop').isVisible(), 'the run is on, and Stop is not');
  await looksRight(page, 'killed');
  // Asked before the kill, answered after it.
  await card(page, 'rm -r build').getByRole('button', { name: 'Allow once' }).click();
  const heard = await agent.hear('permission-response');
  same([heard.requestId, heard.allow], ['r1', true], 'the answer');
  await see(page, '#log .card.done', 'the agent has the answer');
  agent.say({ kind: 'tool_result', toolId: 't1', toolResult: { content: 'built', isError: false } });
  agent.text('all done');
  agent.end();
  await see(page, '#log .end.good', 'finished');
  check(await page.locator('#stop').isHidden(), 'Stop stays');
  await compare(page, server, session);
  same(agent.heard.filter((line) => line.type === 'permission-response').length, 1, 'answers heard');
  await send(page, 'go on');
  const next = await puppets.next();
  next.text('Here I am again.');
  next.end();
  await page.waitForFunction(() => document.querySelectorAll('#log .end.good').length === 2);
  await compare(page, server, session);
}

/** The demo, with its server killed three times: where text streams, and at each of its requests. */
export async function aServerKilledUnderTheDemo({ browser, server }) {
  const page = await browser.page(server.url);
  await enter(page, server.url, server.token);
  const session = await create(page, 'demo', server.project, 'seed 5 speed 2');
  browser.allow(/WebSocket connection to|ERR_CONNECTION/);
  const killAndComeBack = async (look) => {
    const before = await shown(page);
    await kill(page, server);
    if (look) await looksRight(page, look);
    await server.start();
    // Nobody touches the page: it comes back by itself.
    await page.waitForSelector(LIVE);
    check(await page.locator('#bar').isHidden(), 'the bar stays');
    const [run] = before.split(':');
    check((await shown(page)).startsWith(`${run}:0-`), 'another run, or other numbers');
  };
  await page.waitForSelector('#log > .said.raw');
  await killAndComeBack('demo-away');
  await card(page, 'The agent asks').getByLabel('Warm').waitFor();
  await killAndComeBack();
  await see(page, '#sessions .waiting', 'needs you');
  await looksRight(page, 'demo-back');
  const question = card(page, 'The agent asks');
  await question.getByLabel('Warm').check();
  await question.getByRole('button', { name: 'Answer' }).click();
  await see(page, '#log .card.done', 'the agent has the answer');
  const edit = card(page, 'wants to use');
  await edit.getByRole('button', { name: 'Allow once' }).waitFor();
  await killAndComeBack();
  await edit.getByRole('button', { name: 'Allow once' }).click();
  await see(page, '#log .end.good', 'finished');
  await page.locator('#sessions .waiting, #sessions .running').waitFor({ state: 'detached' });
  const log = await compare(page, server, session);
  same(log.filter((event) => event.kind === 'complete').length, 1, 'ends');
  same(new Set(log.map((event) => event.runId)).size, 1, 'runs');
  await looksRight(page, 'demo-finished');
}

/** A server that is stopped in order, as for an upgrade: the same. */
export async function aServerThatIsStoppedLeavesItsAgents({ browser, server, puppets }) {
  const page = await browser.page(server.url);
  await enter(page, server.url, server.token);
  const session = await create(page, 'puppet', server.project, 'outlive them all');
  const agent = await puppets.next();
  agent.text('before');
  await see(page, '#log .said', 'before');
  browser.allow(/WebSocket connection to|ERR_CONNECTION/);
  // What a server does at its stop is a matter of its start.
  server.onStop = 'keep';
  await server.stop('SIGKILL');
  await server.start();
  await page.waitForSelector(LIVE);
  server.onStop = 'abort';
  await server.stop();
  await see(page, '#status', 'The server is stopping, agents work on');
  await page.waitForSelector('#state[data-state="offline"]');
  agent.text('meanwhile');
  await server.start();
  await page.waitForSelector(LIVE);
  await page.waitForFunction(() => !document.querySelector('#status').textContent.includes('stopping'));
  agent.end();
  await see(page, '#log .end.good', 'finished');
  await compare(page, server, session);
}

export async function anUpgradedServerSaysSo({ browser, server, puppets }) {
  const page = await browser.page(server.url);
  let connections = 0;
  // From the second connection on, the server is of another version.
  await page.routeWebSocket(/\/ws$/, (near) => {
    connections += 1;
    const later = connections > 1;
    const far = near.connectToServer();
    far.onMessage((message) => {
      const frame = JSON.parse(message);
      if (frame.kind === 'hello' && later) frame.server = '99.0.0';
      near.send(JSON.stringify(frame));
    });
  });
  await enter(page, server.url, server.token);
  await create(page, 'puppet', server.project, 'go on');
  const agent = await puppets.next();
  check(await page.locator('#reload').isHidden(), 'nothing was upgraded');
  browser.allow(/WebSocket connection to|ERR_CONNECTION/);
  await server.stop('SIGKILL');
  await server.start();
  await page.waitForSelector(LIVE);
  await page.locator('#reload').waitFor();
  await looksRight(page, 'upgraded');
  const size = page.viewportSize();
  await page.setViewportSize({ width: 360, height: 640 });
  await looksRight(page, 'upgraded-phone');
  await page.setViewportSize(size);
  agent.text('the old page shows it');
  await see(page, '#log .said', 'the old page shows it');
  await page.locator('#reload').click();
  await page.waitForSelector(LIVE);
  await see(page, '#log .said', 'the old page shows it');
  agent.end();
  await see(page, '#log .end.good', 'finished');
}

export async function anOfflineDeviceSaysSo({ browser, server }) {
  const page = await browser.page(server.url);
  await enter(page, server.url, server.token);
  browser.allow(/WebSocket connection to|ERR_INTERNET_DISCONNECTED/);
  await page.context().setOffline(true);
  await see(page, '#bar-text', 'this device is offline');
  await page.context().setOffline(false);
  await page.waitForSelector(LIVE);
  check(await page.locator('#bar').isHidden(), 'the bar stays');
}
