// A `jsonl` agent: the prompt `count N MS` makes N events, MS apart; their contents are what
// separates careful clients from others.
import readline from 'node:readline';

const lines = readline.createInterface({ input: process.stdin });
const say = (event) => process.stdout.write(`${JSON.stringify(event)}\n`);
const odd = ['plain', 'two\nlines', '\r\n', 'data: x\n\nid: 3\n\n', '\u2028\u2029', '\u{1f980}é', '\u0000'];

lines.once('line', async (line) => {
  const [, count, pause] = JSON.parse(line).content.split(' ').map(Number);
  for (let n = 1; n <= count; n += 1) {
    say({ kind: 'text', content: `${n} ${odd[n % odd.length]}` });
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
  say({ kind: 'complete', exitCode: 0, success: true });
  process.exit(0);
});
