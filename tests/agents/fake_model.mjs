// A model API on loopback that says what the prompt tells it to: for the real agent CLIs in
// tests/agents. It speaks the streaming Messages API as far as Claude Code needs it.
//
// A prompt with [[bash:COMMAND]] makes it call the Bash tool once; with [[hold]] it stops in the
// middle of its text until `release` is called; anything else is answered with a text that counts
// the prompts of the conversation, so that a resumed one can be told from a fresh one.
import http from 'node:http';

const textOf = (content) =>
  typeof content === 'string'
    ? content
    : (content ?? []).map((part) => (part.type === 'text' ? part.text : '')).join('\n');

const isResult = (message) =>
  Array.isArray(message.content) && message.content.some((part) => part.type === 'tool_result');

// Prompts of the person carry our mark; what the CLI adds of its own does not.
const prompts = (messages) =>
  messages.filter((message) => message.role === 'user' && textOf(message.content).includes('§'));

function answer(body) {
  const last = body.messages.at(-1);
  if (isResult(last)) {
    const result = last.content.find((part) => part.type === 'tool_result');
    return { text: `The tool said: ${textOf(result.content).trim()}` };
  }
  const asked = prompts(body.messages);
  const prompt = asked.length > 0 ? textOf(asked.at(-1).content) : '';
  const command = /\[\[bash:(.*?)\]\]/s.exec(prompt)?.[1];
  const canRun = (body.tools ?? []).some((tool) => tool.name === 'Bash');
  if (command && canRun) {
    return { text: 'I will run a command.', tool: { command, description: 'as asked' } };
  }
  if (prompt.includes('[[hold]]') && canRun) {
    return { text: `This is prompt ${asked.length}, said in two halves.`, hold: true };
  }
  return { text: `This is prompt ${asked.length}.` };
}

// Stands between two events where the model stops to be released.
const HOLD = Symbol('hold');

function* events(body) {
  const { text, tool, hold } = answer(body);
  const usage = { input_tokens: 100, output_tokens: 1 };
  const message = { id: `msg_${Date.now()}${Math.random().toString(36).slice(2)}`, type: 'message',
    role: 'assistant', model: body.model, content: [], stop_reason: null, usage };
  yield { type: 'message_start', message };
  yield { type: 'content_block_start', index: 0, content_block: { type: 'text', text: '' } };
  const pieces = text.match(/.{1,8}/gs) ?? [];
  for (const [at, piece] of pieces.entries()) {
    if (hold && at === Math.floor(pieces.length / 2)) yield HOLD;
    yield { type: 'content_block_delta', index: 0, delta: { type: 'text_delta', text: piece } };
  }
  yield { type: 'content_block_stop', index: 0 };
  if (tool) {
    const id = `toolu_${Date.now()}${Math.random().toString(36).slice(2)}`;
    yield { type: 'content_block_start', index: 1,
      content_block: { type: 'tool_use', id, name: 'Bash', input: {} } };
    yield { type: 'content_block_delta', index: 1,
      delta: { type: 'input_json_delta', partial_json: JSON.stringify(tool) } };
    yield { type: 'content_block_stop', index: 1 };
  }
  yield { type: 'message_delta', delta: { stop_reason: tool ? 'tool_use' : 'end_turn' },
    usage: { output_tokens: 20 } };
  yield { type: 'message_stop' };
}

function whole(body) {
  const { text } = answer(body);
  return { id: 'msg_whole', type: 'message', role: 'assistant', model: body.model,
    content: [{ type: 'text', text }], stop_reason: 'end_turn',
    usage: { input_tokens: 100, output_tokens: 20 } };
}

export function start() {
  const held = [];
  const release = () => held.splice(0).forEach((go) => go());
  const stream = async (body, response) => {
    response.writeHead(200, { 'content-type': 'text/event-stream' });
    for (const event of events(body)) {
      if (event === HOLD) await new Promise((go) => held.push(go));
      else response.write(`event: ${event.type}\ndata: ${JSON.stringify(event)}\n\n`);
    }
    response.end();
  };
  const server = http.createServer((request, response) => {
    const chunks = [];
    request.on('data', (chunk) => chunks.push(chunk));
    request.on('end', () => {
      const path = request.url.split('?')[0];
      const json = (value) => {
        response.writeHead(200, { 'content-type': 'application/json' });
        response.end(JSON.stringify(value));
      };
      if (request.method !== 'POST' || !path.startsWith('/v1/messages')) return json({});
      const body = JSON.parse(Buffer.concat(chunks).toString());
      if (path.endsWith('/count_tokens')) return json({ input_tokens: 100 });
      if (!body.stream) return json(whole(body));
      stream(body, response);
    });
  });
  return new Promise((resolve) => {
    server.listen(0, '127.0.0.1', () => resolve({ server, port: server.address().port, release, held }));
  });
}
