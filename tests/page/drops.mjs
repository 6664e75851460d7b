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
  await server.stop('SIGKILL');
  await page.locator('#bar').waitFor();
  await page.waitForFunction(() => /again in \d+ s/.test(document.querySelector('#bar-text').textContent));
  await agent.gone;
  await server.start();
  await page.waitForSelector(LIVE);
  await see(page, '#log .end.bad', 'agent lost');
  await see(page, '#log .card.done', 'no answer needed any more');
  check(await page.locator('#stop').isHidden(), 'Stop stays');
  await compare(page, server, session);
  await looksRight(page, 'killed');
  await send(page, 'go on');
  const next = await puppets.next();
  next.text('Here I am again.');
  next.end();
  await see(page, '#log .end.good', 'finished');
  await compare(page, server, session);
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
