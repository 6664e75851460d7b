// What people do with the page, one scenario a function. Each gets the world that `main.mjs` makes.
import http from 'node:http';
import { once } from 'node:events';
import { check, compare, create, enter, same, send } from './harness.mjs';
import {
  LIVE, card, looksRight, see, shot, unfold,
} from './looks.mjs';

/** Answers the demo's question. */
async function answer(page, tone) {
  const question = card(page, 'The agent asks');
  await question.getByLabel(tone).check();
  await question.getByRole('button', { name: 'Answer' }).click();
  await see(page, '#log .card.done', 'the agent has the answer');
}

export async function aWrongTokenIsRefusedAndTheRightOneRemembered({ browser, server }) {
  const page = await browser.page(server.url);
  await page.goto(server.url);
  await page.getByLabel('Token').fill('not-the-token');
  await page.getByRole('button', { name: 'Log in' }).click();
  await page.waitForFunction(() => document.querySelector('#login-error').textContent !== '');
  check(await page.locator('#page').isHidden(), 'a wrong token shows the page');
  await looksRight(page, 'wrong-token');
  await enter(page, server.url, server.token);
  check(await page.locator('#login').isHidden(), 'the login stays');
  await page.getByLabel('Agent', { exact: true }).waitFor();
  await looksRight(page, 'first-visit');
  await page.reload();
  await page.waitForSelector(LIVE);
  check(await page.locator('#login').isHidden(), 'the cookie is not remembered');
  const kept = await page.evaluate(() => document.cookie + JSON.stringify(localStorage)
    + JSON.stringify(sessionStorage));
  check(!kept.includes(server.token), 'scripts can read the token');
}

export async function aLinkLetsOneBrowserInUntilItIsLoggedOut({ browser, server }) {
  const { links: [link], code } = await server.send('POST', 'pair', { scope: 'control', name: 'a phone' });
  const page = await browser.page(server.url);
  const asked = [];
  page.on('request', (request) => asked.push(request.url()));
  await page.goto(link);
  await page.waitForSelector(LIVE);
  check(await page.locator('#login').isHidden(), 'a link asks for a token');
  check(!page.url().includes('code'), `the code stays in the address: ${page.url()}`);
  check(!asked.some((url) => url.includes(code)), 'the code is in a request\'s address');
  await page.reload();
  await page.waitForSelector(LIVE);

  // It opens once: whoever finds it afterwards is told so, and asked.
  const other = await browser.page(server.url);
  await other.goto(link);
  await see(other, '#login-error', 'opens once');
  check(await other.locator('#page').isHidden(), 'a used link opens');
  check(!other.url().includes('code'), 'a used code stays in the address');
  await looksRight(other, 'used-link');

  const { items } = await server.get('devices');
  const device = items.find((one) => one.name === 'a phone');
  await server.send('DELETE', `devices/${device.id}`);
  await page.waitForFunction(() => !document.querySelector('#login').hidden);
  check(await page.locator('#page').isHidden(), 'a device that was logged out still shows sessions');
}

export async function aDirectoryThatIsNotThereIsSaid({ browser, server }) {
  const page = await browser.page(server.url);
  browser.allow(/status of 400/);
  await enter(page, server.url, server.token);
  await page.locator('#new').click();
  await page.getByLabel('Agent', { exact: true }).fill('demo');
  await page.getByLabel('Directory').fill('/nowhere/at/all');
  await page.getByLabel('What is to be done?').fill('speed 0');
  await page.getByRole('button', { name: 'Start' }).click();
  await page.waitForFunction(() => document.querySelector('#new-error').textContent !== '');
  await looksRight(page, 'bad-directory');
  same(await page.getByLabel('What is to be done?').inputValue(), 'speed 0', 'the prompt');
}

export async function aWholeTurnOfTheDemo({ browser, server }) {
  const page = await browser.page(server.url);
  await enter(page, server.url, server.token);
  const session = await create(page, 'demo', server.project, 'seed 3 speed 4');
  // What streams is there before it is finished.
  await page.waitForSelector('#log > .said.raw');
  await card(page, 'The agent asks').getByLabel('Warm').waitFor();
  await see(page, '#sessions .waiting', 'needs you');
  check((await page.title()).startsWith('(1) '), 'the title does not say that somebody is needed');
  await looksRight(page, 'question');
  const missing = card(page, 'The agent asks');
  await missing.getByRole('button', { name: 'Answer' }).click();
  await see(page, '#log .card', 'An answer is missing');
  await answer(page, 'Warm');
  const edit = card(page, 'wants to use');
  await edit.getByRole('button', { name: 'Allow once' }).waitFor();
  check(await edit.locator('.diff .add').count() > 0, 'the card shows no diff');
  await looksRight(page, 'permission');
  await edit.getByRole('button', { name: 'Allow once' }).click();
  await see(page, '#log .end.good', 'finished');
  await see(page, '#log .card.done', 'allowed');
  check(await page.locator('#log .tool').count() >= 4, 'tools are missing');
  check(await page.locator('#log .tool .diff .cut').count() > 0, 'the tool shows no diff');
  check(await page.locator('#log .tool.sub').count() > 0, 'a subagent stands apart');
  check(!(await page.locator('#log').textContent()).includes('\u001b'), 'escapes are shown');
  check(await page.locator('#log .said h5, #log .said li').count() > 3, 'Markdown is not rendered');
  check(await page.locator('#stop').isHidden(), 'Stop stays after the end');
  await page.locator('#sessions .waiting, #sessions .running').waitFor({ state: 'detached' });
  await unfold(page);
  await compare(page, server, session);
  await looksRight(page, 'finished');
  await page.locator('#log').evaluate((log) => { log.scrollTop = 0; });
  await shot(page, 'finished-top');
}

export async function twoDevicesOneAnswer({ browser, server, puppets }) {
  const one = await browser.page(server.url);
  await enter(one, server.url, server.token);
  const session = await create(one, 'puppet', server.project, 'ask me');
  const agent = await puppets.next();
  const two = await browser.page(server.url);
  await enter(two, `${server.url}#s=${session}`, server.token);
  agent.text('Shall I?');
  agent.say({
    kind: 'permission_request', requestId: 'r1', toolName: 'Shell', input: { command: 'make all' },
    title: 'Build it', cwd: server.project,
  });
  for (const page of [one, two]) await card(page, 'make all').waitFor();
  await card(two, 'make all').getByText('More').click();
  await card(two, 'make all').getByLabel('A note to the agent', { exact: true }).fill('but quickly');
  await looksRight(two, 'more');
  await card(two, 'make all').getByRole('button', { name: 'Allow once' }).click();
  const heard = await agent.hear('permission-response');
  same([heard.requestId, heard.allow, heard.message], ['r1', true, 'but quickly'], 'the answer');
  for (const page of [one, two]) {
    await see(page, '#log .card.done', 'the agent has the answer');
    check(await card(page, 'make all').getByRole('button').count() === 0
      || await card(page, 'make all').getByRole('button').first().isHidden(), 'buttons stay');
  }
  await see(one, '#log .card.done', 'allowed');
  agent.end();
  for (const page of [one, two]) {
    await see(page, '#log .end.good', 'finished');
    const events = await compare(page, server, session);
    const states = events.filter((event) => event.kind === 'permission_resolved')
      .map((event) => event.state);
    same(states, ['recorded', 'delivered'], 'what became of the answer');
  }
  await looksRight(one, 'answered-elsewhere');
}

export async function aCardGoesFromSentToRecordedToDelivered({ browser, server, puppets }) {
  const page = await browser.page(server.url);
  await enter(page, server.url, server.token);
  await create(page, 'puppet', server.project, 'ask slowly');
  const agent = await puppets.next();
  agent.say({ kind: 'permission_request', requestId: 'r1', toolName: 'Shell', input: { command: 'ls' } });
  await card(page, 'ls').waitFor();
  // Each state that the card ever shows, in order.
  await page.evaluate(() => {
    window.states = [];
    const state = document.querySelector('#log .card [role="status"]');
    new MutationObserver((changes) => {
      for (const change of changes) {
        for (const node of change.addedNodes) window.states.push(node.textContent);
      }
    }).observe(state, { childList: true, characterData: true });
  });
  await card(page, 'ls').getByRole('button', { name: 'Deny' }).click();
  same((await agent.hear('permission-response')).allow, false, 'the answer');
  await see(page, '#log .card.done', 'the agent has the answer');
  const states = await page.evaluate(() => window.states);
  same(states.map((state) => /sending|recorded|has the answer/.exec(state)?.[0]),
    ['sending', 'recorded', 'has the answer'], `states: ${states}`);
  await see(page, '#log .card.done', 'denied');
  agent.end();
  await see(page, '#log .end.good', 'finished');
}

export async function stopStops({ browser, server, puppets }) {
  const page = await browser.page(server.url);
  await enter(page, server.url, server.token);
  const session = await create(page, 'puppet', server.project, 'work for hours');
  const agent = await puppets.next();
  agent.text('I begin.');
  await see(page, '#log .said', 'I begin.');
  await page.getByRole('button', { name: 'Stop', exact: true }).click();
  await see(page, '#stop', 'Stopping');
  await agent.hear('abort');
  agent.end({ aborted: true });
  await see(page, '#log .end', 'aborted');
  await page.locator('#stop').waitFor({ state: 'hidden' });
  const log = await compare(page, server, session);
  same(log.at(-1).aborted, true, 'aborted');
  await looksRight(page, 'stopped');
}

/** A turn that nobody asked for: work of the agent in the background has reported. */
export async function anAgentThatGoesOnByItself({ browser, server, puppets }) {
  const page = await browser.page(server.url);
  await enter(page, server.url, server.token);
  const session = await create(page, 'talker', server.project, 'build it in the background');
  const agent = await puppets.next();
  const line = (more) => agent.say({ session_id: 'native', ...more });
  const words = (id, text) => line({ type: 'assistant',
    message: { id, role: 'assistant', model: 'm', content: [{ type: 'text', text }] } });
  line({ type: 'system', subtype: 'init', cwd: server.project, model: 'm', tools: [] });
  words('m1', 'It builds in the background.');
  line({ type: 'result', subtype: 'success', is_error: false, result: 'It builds.' });
  await see(page, '#log .end.good', 'finished');
  check(await page.locator('#stop').isHidden(), 'Stop stays');
  words('m2', 'The build has finished.');
  await see(page, '#log', 'The agent went on by itself.');
  await see(page, '#log .said', 'The build has finished.');
  await see(page, '#sessions .running', 'running by itself');
  await see(page, '#status', 'by itself');
  await page.getByRole('button', { name: 'Stop', exact: true }).waitFor();
  await looksRight(page, 'by-itself');
  await send(page, 'one more thing');
  await see(page, '#queue li', 'one more thing');
  await page.waitForFunction(() => document.querySelector('#text').value === '');
  await looksRight(page, 'by-itself-queued');
  line({ type: 'result', subtype: 'success', is_error: false, result: 'Done.', origin: { kind: 'task-notification' } });
  await page.waitForFunction(() => document.querySelectorAll('#log .end.good').length === 2);
  // The same process takes the prompt that waited.
  await see(page, '#log .prompt', 'one more thing');
  await page.locator('#queue').waitFor({ state: 'hidden' });
  words('m3', 'Here it is.');
  line({ type: 'result', subtype: 'success', is_error: false, result: 'Here it is.' });
  await page.waitForFunction(() => document.querySelectorAll('#log .end.good').length === 3);
  const log = await compare(page, server, session);
  same(log.filter((event) => event.kind === 'run_started').map((event) => event.origin),
    ['user', 'agent', 'user'], 'who began the runs');
}

/** What is sent while the agent works waits, and every device sees it. */
export async function messagesWaitForTheAgentOnEveryDevice({ browser, server, puppets }) {
  const page = await browser.page(server.url);
  await enter(page, server.url, server.token);
  await create(page, 'puppet', server.project, 'first');
  const agent = await puppets.next();
  agent.text('working on it');
  await see(page, '#log .said', 'working on it');
  await page.getByRole('button', { name: 'Queue' }).waitFor();
  await send(page, 'second');
  await see(page, '#queue li', 'second');
  const other = await browser.page(server.url);
  await enter(other, server.url, server.token);
  await other.goto(page.url());
  await see(other, '#queue li', 'second');
  await send(other, 'third, in words that are long enough to be cut where one line ends, '.repeat(4));
  await page.waitForFunction(() => document.querySelectorAll('#queue li').length === 2);
  await looksRight(page, 'queue');
  await other.getByRole('button', { name: 'Remove message 1' }).click();
  await page.waitForFunction(() => document.querySelectorAll('#queue li').length === 1);
  await see(page, '#queue li', 'third');

  // Stopping holds what waits, also across a reload.
  await page.getByRole('button', { name: 'Stop', exact: true }).click();
  await see(page, '#queue', 'held since the agent was stopped');
  await page.reload();
  await see(page, '#queue', 'held since the agent was stopped');
  await looksRight(page, 'queue-held');
  await page.getByRole('button', { name: 'Go on' }).click();
  const next = await puppets.next();
  const prompt = await next.hear('prompt');
  check(prompt.content.startsWith('third'), prompt.content);
  next.text('here is the third');
  next.end();
  await see(other, '#log .said', 'here is the third');
  await page.locator('#queue').waitFor({ state: 'hidden' });
}

/** A page of another origin, in a browser that is logged in, gets nothing and changes nothing. */
export async function aPageOfAnotherOriginGetsNothing({ browser, server }) {
  const page = await browser.page(server.url);
  await enter(page, server.url, server.token);
  const before = await server.get('sessions?limit=500');
  const evil = http.createServer((_, answer) => {
    answer.setHeader('Content-Type', 'text/html');
    answer.end('<!doctype html><title>another</title><iframe name="hole"></iframe>');
  });
  evil.listen(0, '127.0.0.1');
  await once(evil, 'listening');
  // What the browser refuses, it says; and it talks to the other origin, as it should here.
  browser.allow(/./);
  try {
    // Same host, so that the browser itself would send the cookie along.
    await page.goto(`http://127.0.0.1:${evil.address().port}/`);
    const got = await page.evaluate(async ({ url, project }) => {
      const found = [];
      const attempt = async (name, act) => {
        try {
          const what = await act();
          if (what) found.push(`${name}: ${what}`);
        } catch {
          // Refused, as it should be.
        }
      };
      const body = JSON.stringify({ provider: 'demo', projectPath: project, title: 'stolen' });
      const read = async (answer) => (answer.type === 'opaque' ? '' : `${answer.status} ${await answer.text()}`);
      const json = { 'Content-Type': 'application/json' };
      await attempt('GET', async () => read(await fetch(`${url}api/v1/sessions`, { credentials: 'include' })));
      await attempt('GET blind', async () => read(await fetch(`${url}api/v1/sessions`, { mode: 'no-cors', credentials: 'include' })));
      await attempt('POST', async () => read(await fetch(`${url}api/v1/sessions`, { method: 'POST', body, headers: json, credentials: 'include' })));
      await attempt('POST blind', async () => read(await fetch(`${url}api/v1/sessions`, { method: 'POST', body, mode: 'no-cors', credentials: 'include' })));
      await attempt('beacon', async () => {
        navigator.sendBeacon(`${url}api/v1/sessions`, new Blob([body], { type: 'text/plain' }));
      });
      await attempt('EventSource', () => new Promise((resolve) => {
        const source = new EventSource(`${url}api/v1/sessions/x/events`, { withCredentials: true });
        source.onopen = () => resolve('opened');
        source.onerror = () => { source.close(); resolve(''); };
      }));
      await attempt('WebSocket', () => new Promise((resolve) => {
        const socket = new WebSocket(`${url.replace('http', 'ws')}ws`);
        socket.onopen = () => resolve('opened');
        socket.onclose = () => resolve('');
      }));
      await attempt('form', () => new Promise((resolve) => {
        const form = document.createElement('form');
        form.method = 'POST';
        form.enctype = 'text/plain';
        form.action = `${url}api/v1/sessions`;
        form.target = 'hole';
        const field = document.createElement('input');
        field.name = body.slice(0, -1);
        field.value = '}';
        form.append(field);
        document.body.append(form);
        document.querySelector('iframe').onload = () => resolve('');
        form.submit();
      }));
      await attempt('frame', () => new Promise((resolve) => {
        const frame = document.querySelector('iframe');
        frame.onload = () => {
          try {
            resolve(frame.contentDocument?.body?.textContent ?? '');
          } catch {
            resolve('');
          }
        };
        frame.src = url;
      }));
      await attempt('script', () => new Promise((resolve) => {
        const script = document.createElement('script');
        script.src = `${url}app.js`;
        script.onload = () => resolve('loaded');
        script.onerror = () => resolve('');
        document.body.append(script);
      }));
      return found;
    }, { url: server.url, project: server.project });
    same(got, [], 'what another origin got');
    const framed = page.frames().find((frame) => frame !== page.mainFrame());
    check(!framed || !framed.url().startsWith(server.url) || (await framed.locator('#page').count()) === 0, 'the page can be framed');
    const after = await server.get('sessions?limit=500');
    same(after.items.map((one) => one.id), before.items.map((one) => one.id), 'the sessions');
  } finally {
    evil.close();
    evil.closeAllConnections();
  }
}

export async function aReloadShowsEverythingAgain({ browser, server, puppets }) {
  const page = await browser.page(server.url);
  await enter(page, server.url, server.token);
  const session = await create(page, 'puppet', server.project, 'first');
  const first = await puppets.next();
  for (let n = 0; n < 300; n += 1) first.text(`line ${n}`);
  first.end();
  await see(page, '#log .end.good', 'finished');
  await send(page, 'second');
  const second = await puppets.next();
  second.say({ kind: 'stream_delta', blockId: 'b', block: 'text', content: 'half a sen' });
  second.say({ kind: 'permission_request', requestId: 'r', toolName: 'Edit', input: { path: 'a' } });
  await card(page, 'wants to use Edit').waitFor();
  await page.reload();
  await page.waitForSelector(LIVE);
  await see(page, '#log .said.raw', 'half a sen');
  await card(page, 'wants to use Edit').getByRole('button', { name: 'Allow once' }).click();
  second.say({ kind: 'text', blockId: 'b', content: 'half a sentence, and the other half.' });
  second.end();
  await page.waitForFunction(() => document.querySelectorAll('#log .end').length === 2);
  await compare(page, server, session);
  const bottom = await page.locator('#log').evaluate((log) =>
    log.scrollHeight - log.scrollTop - log.clientHeight);
  check(bottom < 48, `the newest is not in sight: ${bottom} px below`);
  // Whoever reads further up is left there.
  await page.locator('#log').evaluate((log) => { log.scrollTop = 0; });
  await send(page, 'third');
  const third = await puppets.next();
  third.text('down here');
  await see(page, '#log .said', 'down here');
  await page.getByRole('button', { name: 'To the newest' }).click();
  await page.locator('#to-end').waitFor({ state: 'hidden' });
  third.end();
  await page.waitForFunction(() => document.querySelectorAll('#log .end').length === 3);
}

const EVIL = [
  '<img src=x onerror="document.title=\'owned\'">',
  '<script>document.title="owned"</script>',
  '[click](javascript:alert(1))',
  '![pixel](http://127.0.0.1:1/pixel.png)',
  '"><svg onload=alert(1)>',
].join('\n\n');

export async function whatAnAgentSaysIsText({ browser, server, puppets }) {
  const page = await browser.page(server.url);
  await enter(page, server.url, server.token);
  await create(page, 'puppet', server.project, `show ${EVIL}`);
  const agent = await puppets.next();
  agent.say({ kind: 'stream_delta', blockId: 'b', block: 'text', content: EVIL });
  agent.say({ kind: 'text', blockId: 'b', content: EVIL });
  agent.say({ kind: 'thinking', content: EVIL });
  agent.say({ kind: 'tool_use', toolId: 't', toolName: EVIL, toolInput: { command: EVIL }, title: EVIL, diff: `+${EVIL}` });
  agent.say({ kind: 'tool_result', toolId: 't', toolResult: { content: EVIL, isError: false } });
  agent.say({ kind: 'error', content: EVIL, source: 'agent' });
  agent.say({ kind: 'status', status: 'working', text: EVIL });
  agent.say({ kind: 'status', status: 'plan', plan: [{ content: EVIL, status: 'pending' }] });
  agent.say({ kind: EVIL.slice(0, 40), content: EVIL });
  agent.say({ kind: 'permission_request', requestId: 'r', toolName: EVIL, input: { command: EVIL }, title: EVIL, description: EVIL, questions: [{ id: 'q', text: EVIL, options: [EVIL], multi: true }] });
  await card(page, 'wants to use').waitFor();
  agent.end({ error: EVIL, success: false });
  await see(page, '#log .end', 'failed');
  const made = await page.locator('#page img, #page script, #page svg, #page iframe, #page a:not([href^="http"])').count();
  same(made, 0, 'elements out of an agent\'s text');
  check(!(await page.title()).includes('owned') || (await page.title()).includes('show'), 'script ran');
  same(await page.locator('#log .said[data-kind="text"]').textContent().then((text) => text.includes('onerror=')), true, 'the text is there');
  await looksRight(page, 'evil');
}

export async function markdownIsReadable({ browser, server, puppets }) {
  const page = await browser.page(server.url);
  await enter(page, server.url, server.token);
  await create(page, 'puppet', server.project, 'explain');
  const agent = await puppets.next();
  agent.text(['# A title', '', 'Some **bold** and *slanted* text with `code`, snake_case_names and',
    'a [link](https://example.org/a?b=c). 2 * 3 * 4 = 24.', '', '- one', '- two', '  - deeper',
    '  - and `more`', '- three', '', '1. first', '2. second', '', '> a quote', '', '```rust',
    'fn main() {', '    println!("**not bold** <b>");', '}', '```', '', '---', '', 'The end.'].join('\n'));
  agent.end();
  await see(page, '#log .end.good', 'finished');
  const count = (selector) => page.locator(`#log .said ${selector}`).count();
  same([await count('strong'), await count('em'), await count('h3'), await count('ol > li'),
    await count('ul > li'), await count('ul ul > li'), await count('blockquote'), await count('pre'),
    await count('hr'), await count('a')], [1, 1, 1, 2, 5, 2, 1, 1, 1, 1], 'elements');
  same(await page.locator('#log .said pre').textContent(),
    'fn main() {\n    println!("**not bold** <b>");\n}', 'code');
  same(await page.locator('#log .said a').getAttribute('rel'), 'noopener noreferrer', 'rel');
  await looksRight(page, 'markdown');
}

export async function aPhone({ browser, server, puppets }) {
  const page = await browser.page(server.url, {
    viewport: { width: 360, height: 640 }, hasTouch: true, isMobile: true, colorScheme: 'dark',
  });
  await enter(page, server.url, server.token);
  await looksRight(page, 'phone-list');
  await create(page, 'puppet', server.project, `a prompt with ${'averylongword'.repeat(30)}`);
  const agent = await puppets.next();
  agent.say({ kind: 'tool_use', toolId: 't', toolName: 'Edit', toolInput: {}, title: `edit ${'/deep/path'.repeat(20)}`, diff: `--- a\n+++ b\n-${'old '.repeat(60)}\n+${'new '.repeat(60)}` });
  agent.text(`${'x'.repeat(500)}\n\n\`\`\`\n${'wide code '.repeat(40)}\n\`\`\``);
  agent.say({ kind: 'permission_request', requestId: 'r', toolName: 'Shell', input: { command: `make ${'-j8 '.repeat(50)}` }, cwd: '/a'.repeat(80) });
  const asks = card(page, 'wants to use Shell');
  await asks.waitFor();
  await asks.getByText('More').tap();
  await looksRight(page, 'phone-permission');
  for (const control of await asks.getByRole('button').all()) {
    const box = await control.boundingBox();
    check(box.height >= 48 && box.width >= 48, `a control of ${box.width}x${box.height}`);
  }
  await asks.getByRole('button', { name: 'Allow once' }).tap();
  await agent.hear('permission-response');
  agent.end();
  await see(page, '#log .end.good', 'finished');
  await looksRight(page, 'phone-end');
  await page.locator('#menu').tap();
  await page.locator('#new').waitFor();
  await looksRight(page, 'phone-sessions');
  await page.locator('#new').tap();
  await looksRight(page, 'phone-new');
}

export async function darkIsDark({ browser, server }) {
  const page = await browser.page(server.url, { colorScheme: 'dark' });
  await page.goto(server.url);
  await page.getByLabel('Token').waitFor();
  await looksRight(page, 'dark-login');
  await enter(page, server.url, server.token);
  await create(page, 'demo', server.project, 'speed 0');
  await answer(page, 'Short');
  await card(page, 'wants to use').getByRole('button', { name: 'Deny' }).waitFor();
  await looksRight(page, 'dark-permission');
  await card(page, 'wants to use').getByRole('button', { name: 'Deny' }).click();
  await see(page, '#log .end', 'finished');
  await unfold(page);
  await looksRight(page, 'dark-finished');
  const back = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  check(back.match(/\d+/g).every((part) => Number(part) < 60), `not dark: ${back}`);
}

/** Tab alone reaches what matters, and it can be seen where one is. */
export async function theKeyboardIsEnough({ browser, server, puppets }) {
  const page = await browser.page(server.url);
  await page.goto(server.url);
  await page.getByLabel('Token').waitFor();
  await page.keyboard.type(server.token);
  await page.keyboard.press('Enter');
  await page.waitForSelector(LIVE);
  const tabTo = async (selector) => {
    for (let n = 0; n < 60; n += 1) {
      await page.keyboard.press('Tab');
      if (await page.evaluate((text) => document.activeElement.matches(text), selector)) {
        const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
        check(outline !== 'none', `${selector}: focus cannot be seen`);
        return;
      }
    }
    throw new Error(`Tab never comes to ${selector}`);
  };
  await page.evaluate(() => document.activeElement.blur());
  await tabTo('#new');
  await page.keyboard.press('Enter');
  await page.getByLabel('Agent', { exact: true }).fill('puppet');
  await page.getByLabel('Directory').fill(server.project);
  await page.getByLabel('What is to be done?').focus();
  await page.keyboard.type('keys only');
  await tabTo('#new-form button[type="submit"]');
  await page.keyboard.press('Enter');
  const agent = await puppets.next();
  agent.say({ kind: 'permission_request', requestId: 'r', toolName: 'Shell', input: { command: 'ls' } });
  await card(page, 'wants to use Shell').waitFor();
  await tabTo('.card .allow');
  await page.keyboard.press('Enter');
  await agent.hear('permission-response');
  await tabTo('#text');
  agent.text('going on');
  await see(page, '#log .said', 'going on');
  await tabTo('#stop');
  await page.keyboard.press('Enter');
  await agent.hear('abort');
  agent.end({ aborted: true });
  await see(page, '#log .end', 'aborted');
  await page.evaluate(() => document.activeElement.blur());
  await tabTo('#sessions button[aria-current="true"]');
}

/** Another site in the same browser, with the person logged in here. */
export async function anotherSiteGetsNothing({ browser, server }) {
  const site = http.createServer((_, answer) => {
    answer.setHeader('Content-Type', 'text/html');
    answer.end(`<title>other</title><a href="${server.url}">there</a>`);
  });
  site.listen(0, '127.0.0.1');
  await once(site, 'listening');
  const there = `http://127.0.0.1:${site.address().port}/`;
  const page = await browser.page(server.url);
  await enter(page, server.url, server.token);
  // It asks the server, is refused, and the browser says so.
  browser.allow(/.*/);
  await page.goto(there);
  const before = (await server.get('sessions?limit=500')).items.length;
  const got = await page.evaluate(async ({ url, project }) => {
    const body = JSON.stringify({ provider: 'puppet', projectPath: project });
    const ask = (path, options) => fetch(url + path, { credentials: 'include', ...options })
      .then((answer) => `${answer.type} ${answer.status}`, () => 'failed');
    const socket = new WebSocket(`${url.replace('http', 'ws')}ws`);
    const connected = await new Promise((resolve) => {
      socket.onopen = () => resolve('open');
      socket.onerror = () => resolve('failed');
    });
    return [
      await ask('api/v1/sessions', { method: 'POST', body, headers: { 'Content-Type': 'application/json' } }),
      await ask('api/v1/sessions', { method: 'POST', body, headers: { 'Content-Type': 'text/plain' } }),
      await ask('api/v1/sessions', { method: 'POST', body, mode: 'no-cors' }),
      await ask('api/v1/sessions'),
      connected,
    ];
  }, { url: server.url, project: server.project });
  same(got, ['failed', 'failed', 'opaque 0', 'failed', 'failed'], 'what another site gets');
  same((await server.get('sessions?limit=500')).items.length, before, 'sessions');
  // It cannot be put into a frame there,
  await page.evaluate((url) => {
    const frame = document.createElement('iframe');
    frame.src = url;
    document.body.append(frame);
    return new Promise((resolve) => { frame.onload = resolve; });
  }, server.url);
  check(!(await Promise.all(page.frames().slice(1).map((frame) => frame.locator('#top').count())))
    .some((count) => count > 0), 'the page lets itself be framed');
  // but a link leads here.
  await page.getByRole('link', { name: 'there' }).click();
  await page.waitForSelector(LIVE);
  site.close();
}
