// Runs the scenarios, each with a deadline: `node main.mjs [part of a name...]`.
import fs from 'node:fs';
import * as drops from './drops.mjs';
import { Browser, Puppets, Server, shots, within } from './harness.mjs';
import { shot } from './looks.mjs';
import * as scenarios from './scenarios.mjs';

const SCENARIO_MS = 120000;

const wanted = process.argv.slice(2);
const chosen = Object.entries({ ...scenarios, ...drops })
  .filter(([name]) => wanted.length === 0 || wanted.some((part) => name.includes(part)));
// The first visit is one only on a server without sessions.
chosen.sort(([one], [two]) => first(two) - first(one));

function first(name) {
  return name === 'aWrongTokenIsRefusedAndTheRightOneRemembered' ? 1 : 0;
}

fs.rmSync(shots, { recursive: true, force: true });
const puppets = new Puppets();
await puppets.listen();
const server = new Server(puppets.port);
const browser = new Browser();
let passed = 0;
let failed = 0;
try {
  await server.start();
  await browser.start();
  for (const [name, scenario] of chosen) {
    const start = Date.now();
    try {
      await within(SCENARIO_MS, name, scenario({ browser, server, puppets }));
      browser.verdict();
      passed += 1;
      console.log(`ok   ${name} (${Date.now() - start} ms)`);
    } catch (error) {
      failed += 1;
      console.log(`FAIL ${name}\n${error.stack ?? error}`);
      for (const page of browser.pages()) await shot(page, `failed-${name}`).catch(() => {});
      console.log(`the server said:\n${server.log.slice(-10).join('\n')}`);
    }
    await browser.closePages();
    puppets.dismiss();
  }
} catch (error) {
  failed += 1;
  console.log(error.stack ?? error);
} finally {
  await browser.stop().catch((error) => console.log(`browser: ${error}`));
  await server.stop().catch(() => server.child?.kill('SIGKILL'));
  fs.rmSync(server.dir, { recursive: true, force: true });
}
if (passed + failed === 0) {
  console.log(`no scenario has ${wanted.join(' or ')} in its name`);
  failed = 1;
}
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed === 0 ? 0 : 1);
