// An agent in the test's hands: it says what the test tells it to say, and passes on what it hears.
//
// It speaks the `jsonl` dialect on stdin and stdout, and the same lines with the test over a
// connection to PUPPET_PORT on loopback.
import net from 'node:net';

const test = net.connect({ host: '127.0.0.1', port: Number(process.env.PUPPET_PORT) });
test.on('error', () => process.exit(4));
test.on('close', () => process.exit(0));
process.stdin.on('error', () => process.exit(0));
process.stdin.pipe(test, { end: false });
process.stdin.on('end', () => process.exit(0));
test.pipe(process.stdout);
