// A session's log as elements. Knows the vocabulary of events; not sockets, not the server.

import { Card } from './card.js';
import { markdown } from './markdown.js';
import { diff, element, oneLine, plain, pre, seconds, summaryOf, textOf, word } from './parts.js';

export class View {
  // `answer(requestId, fields)` is called when the person decides.
  constructor(root, answer) {
    this.root = root;
    this.answer = answer;
    this.blocks = new Map();
    this.tools = new Map();
    this.cards = new Map();
    this.statuses = new Map();
    this.current = null; // what goes on now
    this.plan = null;
    this.at = null; // the event that is being shown
    this.shown = []; // {run, ranges: [[first, last]...]}: every event shown, in the order of showing
    root.replaceChildren();
  }

  // The account of what was shown, for tests and for anyone who looks: a hole, a double or a
  // wrong order is seen at once. Cheap, since a run without faults is one range.
  note({ runId, seq }) {
    let run = this.shown.at(-1);
    if (run?.run !== runId) {
      run = { run: runId, ranges: [] };
      this.shown.push(run);
    }
    const range = run.ranges.at(-1);
    if (range && seq === range[1] + 1) range[1] = seq;
    else run.ranges.push([seq, seq]);
  }

  account() {
    return this.shown.map(({ run, ranges }) =>
      `${run}:${ranges.map(([first, last]) => `${first}-${last}`).join(',')}`).join(' ');
  }

  event(event) {
    this.at = event;
    this.note(event);
    switch (event.kind) {
      case 'run_started': return this.runStarted(event);
      case 'stream_delta': return this.delta(event);
      case 'stream_end': return undefined;
      case 'text':
      case 'thinking': return this.block(event);
      case 'tool_use': return this.toolUse(event);
      case 'tool_result': return this.toolResult(event);
      case 'permission_request': return this.request(event);
      case 'permission_resolved': return this.resolved(event);
      case 'permission_cancelled': return this.cancelled(event);
      case 'task_notification':
        return this.add(event, element('p', 'faint',
          `background task ${event.status}: ${plain(event.summary ?? event.taskId ?? '')}`));
      case 'status': return this.status(event);
      case 'error':
        return this.add(event, element('p', 'error', `${word(event.source)}: ${plain(event.content)}`));
      case 'raw':
        return this.add(event, element('p', 'faint', `${event.stream}| ${plain(event.content)}`));
      case 'complete': return this.complete(event);
      default: return this.unknown(event);
    }
  }

  // A line across: what was missed, what is gone.
  line(text) {
    const line = element('p', 'divider', text);
    this.root.append(line);
    return line;
  }

  add(event, made) {
    if (event.parentToolId) made.classList.add('sub');
    if (event.truncated) {
      made.append(document.createElement('br'), element('span', 'faint',
        `cut; all ${event.truncated.bytes} bytes: ${event.truncated.href}`));
    }
    made.dataset.run = this.at.runId;
    made.dataset.seq = this.at.seq;
    this.root.append(made);
    return made;
  }

  runStarted(event) {
    const when = event.startedAt ? new Date(event.startedAt).toLocaleString() : '';
    this.line(`${event.provider} · ${when}`);
    if (event.origin === 'agent') this.add(event, element('p', 'faint', 'The agent went on by itself.'));
    else this.add(event, element('div', 'prompt', plain(event.content)));
    this.statuses.clear();
  }

  delta(event) {
    let block = this.blocks.get(event.blockId);
    if (!block) {
      block = this.newBlock(event, event.block === 'thinking');
      this.blocks.set(event.blockId, block);
    }
    block.text.appendData(plain(event.content));
  }

  newBlock(event, thinking) {
    const text = document.createTextNode('');
    const said = element('div', 'said raw');
    said.dataset.kind = thinking ? 'thinking' : 'text';
    // Said aloud when finished, not piece by piece.
    said.setAttribute('aria-live', 'off');
    said.append(text);
    let outer = said;
    if (thinking) {
      outer = element('details', 'thinking');
      outer.append(element('summary', 'faint', 'Thinking'), said);
    }
    this.add({ parentToolId: event.parentToolId }, outer);
    return { said, text };
  }

  // The finished block is the truth, whatever deltas said before.
  block(event) {
    if (event.role === 'user') {
      this.add(event, element('div', 'prompt', plain(event.content)));
      return;
    }
    const streamed = event.blockId ? this.blocks.get(event.blockId) : undefined;
    const block = streamed ?? this.newBlock(event, event.kind === 'thinking');
    if (event.blockId) this.blocks.delete(event.blockId);
    block.said.removeAttribute('aria-live');
    block.said.classList.remove('raw');
    block.said.replaceChildren(markdown(plain(event.content)));
    if (event.truncated) {
      block.said.append(element('p', 'faint',
        `cut; all ${event.truncated.bytes} bytes: ${event.truncated.href}`));
    }
  }

  toolUse(event) {
    let tool = this.tools.get(event.toolId);
    if (!tool) {
      const outer = element('details', 'tool');
      const summary = element('summary');
      const name = element('strong');
      const about = element('span');
      const state = element('span', 'faint', ' · at work');
      summary.append(name, about, state);
      const body = element('div');
      outer.append(summary, body);
      tool = { outer, name, about, state, body };
      this.tools.set(event.toolId, tool);
      this.add({ parentToolId: event.parentToolId }, outer);
    }
    tool.name.textContent = plain(event.toolName ?? 'tool');
    const about = plain(event.title || summaryOf(event.toolInput));
    // Titles such as "Edit main.rs" say the name once more.
    const name = `${tool.name.textContent} `.toLowerCase();
    tool.about.textContent = !about || about === event.toolName ? ''
      : about.toLowerCase().startsWith(name) ? oneLine(about).slice(name.length - 1)
        : `: ${oneLine(about)}`;
    tool.body.replaceChildren();
    if (event.diff) {
      tool.body.append(diff(event.diff));
      tool.outer.open = true;
    } else if (event.toolInput && Object.keys(event.toolInput).length > 0) {
      tool.body.append(pre(JSON.stringify(event.toolInput, null, 2)));
    }
  }

  toolResult(event) {
    const tool = this.tools.get(event.toolId);
    this.tools.delete(event.toolId);
    const result = event.toolResult ?? {};
    const words = [result.isError ? 'failed' : 'done'];
    if (typeof event.exitCode === 'number') words.push(`exit ${event.exitCode}`);
    if (typeof event.durationMs === 'number') words.push(seconds(event.durationMs));
    if (event.synthetic) words.push('the agent gave no result');
    const content = textOf(result.content);
    if (!tool) {
      const outer = this.add(event, element('details'));
      outer.append(element('summary', result.isError ? 'error' : 'faint', words.join(' · ')));
      if (content) outer.append(pre(content));
      return;
    }
    tool.state.textContent = ` · ${words.join(' · ')}`;
    tool.state.className = result.isError ? 'error' : 'faint';
    if (content) tool.body.append(pre(content));
    if (result.isError) tool.outer.open = true;
  }

  status(event) {
    this.statuses.set(event.status, event);
    if (!['plan', 'usage', 'model', 'mode'].includes(event.status)) this.current = event;
    if (event.status === 'plan' && Array.isArray(event.plan)) {
      const list = element('ul', 'faint plan');
      for (const item of event.plan) {
        const mark = { completed: '✓', in_progress: '▸' }[item.status] ?? '○';
        list.append(element('li', '', `${mark} ${plain(item.content)}`));
      }
      // The plan has one place: where it was last told.
      this.plan?.remove();
      this.plan = this.add(event, list);
    }
  }

  // What goes on, on one line.
  statusLine() {
    const parts = [];
    const asking = [...this.cards.values()].some((card) => !card.closed);
    if (asking) parts.push('waiting for you');
    else if (this.current) {
      parts.push([word(this.current.status), plain(this.current.text ?? '')].filter(Boolean).join(': '));
    }
    const model = this.statuses.get('model');
    if (model) parts.push(plain(model.model ?? model.text ?? ''));
    const usage = this.statuses.get('usage');
    if (usage?.tokenBudget) {
      const { used, total } = usage.tokenBudget;
      parts.push(total ? `${used} of ${total} tokens` : `${used} tokens`);
    }
    if (typeof usage?.costUsd === 'number') parts.push(`$${usage.costUsd.toFixed(4)}`);
    return parts.join(' · ');
  }

  complete(event) {
    this.blocks.clear();
    this.tools.clear();
    this.statuses.clear();
    this.current = null;
    this.plan = null;
    const parts = [word(event.reason)];
    if (event.by?.name) parts.push(`by ${plain(event.by.name)}`);
    if (!event.success && typeof event.exitCode === 'number') parts.push(`exit ${event.exitCode}`);
    if (typeof event.durationMs === 'number') parts.push(seconds(event.durationMs));
    if (event.usage) {
      parts.push(`${event.usage.inputTokens} in, ${event.usage.outputTokens} out`);
      if (typeof event.usage.costUsd === 'number') parts.push(`$${event.usage.costUsd.toFixed(4)}`);
    }
    const mark = event.success ? '✓' : '✗';
    this.add(event, element('p', `end ${event.success ? 'good' : 'bad'}`, `${mark} ${parts.join(' · ')}`));
    if (event.error) this.root.append(pre(event.error));
  }

  unknown(event) {
    const own = { ...event };
    for (const name of ['id', 'kind', 'sessionId', 'runId', 'seq', 'timestamp', 'provider']) {
      delete own[name];
    }
    const outer = element('details');
    outer.append(element('summary', 'faint', plain(event.kind)), pre(JSON.stringify(own, null, 2)));
    this.add({}, outer);
  }

  request(event) {
    const card = new Card(event, (fields) => this.answer(event.requestId, fields));
    this.cards.set(event.requestId, card);
    this.add({ parentToolId: event.parentToolId }, card.root);
  }

  resolved(event) {
    const card = this.cards.get(event.requestId);
    const who = event.by?.name ? ` by ${plain(event.by.name)}` : '';
    const answers = card?.asks && event.decision === 'allow' ? event.updatedInput?.answers : null;
    const edited = event.edited && !answers ? ', with changes' : '';
    const how = answers ? `answered “${oneLine(plain(Object.values(answers).join('”, “')))}”`
      : event.decision === 'allow' ? 'allowed' : 'denied';
    const state = {
      recorded: 'recorded, on its way to the agent',
      delivered: 'the agent has the answer',
      undeliverable: 'the agent was gone before it had the answer',
    }[event.state] ?? plain(event.state);
    const text = `${how}${who}${edited}: ${state}${event.message ? ` (${plain(event.message)})` : ''}`;
    if (card) card.done(text);
    else this.add(event, element('p', 'faint', text));
  }

  cancelled(event) {
    this.cards.get(event.requestId)?.done(`no answer needed any more: ${word(event.reason)}`);
  }

  // An answer was refused: it can be given again, unless somebody was faster.
  refused(requestId, text) {
    this.cards.get(requestId)?.again(text);
  }
}
