// A session's log as elements. Knows the vocabulary of events; not sockets, not the server.
//
// What an agent says goes into the page as text alone: `textContent` and text nodes, never markup.

const SHOWN_CHARS = 20000;

// An element with a class and text.
export function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// Terminal escapes mean nothing here.
export function plain(text) {
  return String(text)
    // eslint-disable-next-line no-control-regex
    .replace(/\u001b(?:\[[0-?]*[ -/]*[@-~]|[\]P^_X][^\u0007\u001b]*(?:\u0007|\u001b\\)?|.)/g, '')
    // eslint-disable-next-line no-control-regex
    .replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f]/g, '');
}

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
    root.replaceChildren();
  }

  event(event) {
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
    this.root.append(made);
    return made;
  }

  runStarted(event) {
    const when = event.startedAt ? new Date(event.startedAt).toLocaleString() : '';
    this.line(`${event.provider} · ${when}`);
    this.add(event, element('div', 'prompt', plain(event.content)));
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
    const said = element('div', 'said');
    // Said aloud when finished, not piece by piece.
    said.setAttribute('aria-live', 'off');
    said.append(text);
    let outer = said;
    if (thinking) {
      outer = element('details');
      outer.append(element('summary', 'faint', 'Thinking'), said);
    }
    this.add({ parentToolId: event.parentToolId }, outer);
    return { outer, said, text };
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
    const content = plain(event.content);
    block.said.removeAttribute('aria-live');
    if (block.text.data !== content) block.text.data = content;
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
    tool.about.textContent = about && about !== event.toolName ? `: ${oneLine(about)}` : '';
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
      const list = element('ul', 'faint');
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
    if (this.current) {
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
    const edited = event.edited ? ', with changes' : '';
    const how = event.decision === 'allow' ? 'allowed' : 'denied';
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

// A permission request, with what can be answered.
class Card {
  constructor(event, decide) {
    this.event = event;
    this.root = element('div', 'card');
    this.root.setAttribute('role', 'group');
    const asks = event.interaction === 'question';
    const title = {
      question: 'The agent asks',
      plan: 'The agent proposes a plan',
    }[event.interaction] ?? `The agent wants to use ${plain(event.toolName)}`;
    this.root.setAttribute('aria-label', title);
    this.root.append(element('h2', '', title));
    if (event.title && !asks) this.root.append(element('p', '', plain(event.title)));
    if (event.description) this.root.append(element('p', '', plain(event.description)));
    if (event.cwd) this.root.append(element('p', 'faint', `in ${plain(event.cwd)}`));
    if (event.diff) this.root.append(diff(event.diff));
    else if (event.input?.plan) this.root.append(element('p', '', plain(event.input.plan)));
    else if (!asks && event.input && Object.keys(event.input).length > 0) {
      this.root.append(pre(summaryOf(event.input)));
    }
    this.controls = element('div');
    this.state = element('p', 'faint');
    this.state.setAttribute('role', 'status');
    this.root.append(this.controls, this.state);
    this.decide = (fields) => {
      this.enable(false);
      this.state.textContent = 'sending…';
      decide(fields);
    };
    this.build();
  }

  build() {
    const { event } = this;
    this.fields = (event.questions ?? []).map((question, at) => this.question(question, at));
    const note = element('input');
    note.setAttribute('aria-label', 'A note to the agent');
    note.placeholder = 'A note to the agent';
    const decide = (allow, choice, input) => {
      const fields = { allow };
      if (choice) fields.choiceId = choice.id;
      if (input !== undefined) fields.updatedInput = input;
      if (note.value.trim()) fields.message = note.value.trim();
      this.decide(fields);
    };
    const choices = event.choices ?? [];
    const first = (kind) => choices.find((choice) => choice.kind === kind);
    const buttons = element('div', 'buttons');
    const deny = button('Deny', 'deny', () => decide(false, first('reject_once')));
    const allow = button(this.fields.length ? 'Answer' : 'Allow once', 'allow', () => {
      if (!this.fields.length) {
        decide(true, first('allow_once'));
        return;
      }
      const answers = {};
      for (const field of this.fields) {
        const value = field.value();
        if (!value) {
          this.state.textContent = 'An answer is missing.';
          return;
        }
        answers[field.id] = value;
      }
      decide(true, first('allow_once'), { ...event.input, answers });
    });
    buttons.append(deny, allow);
    const more = element('details');
    more.append(element('summary', '', 'More'), note);
    for (const choice of choices.filter((one) => /always$/.test(one.kind))) {
      const rule = choice.rule ? ` — saves the rule: ${plain(choice.rule)}` : '';
      more.append(button(`${plain(choice.label)}${rule}`, '', () => {
        decide(choice.kind === 'allow_always', choice);
      }));
    }
    if (event.editable && !this.fields.length) {
      const input = element('textarea');
      input.rows = 6;
      input.value = JSON.stringify(event.input, null, 2);
      input.setAttribute('aria-label', 'What to allow instead, as JSON');
      more.append(input, button('Allow this instead', '', () => {
        try {
          decide(true, first('allow_once'), JSON.parse(input.value));
        } catch (error) {
          this.state.textContent = `That is not JSON: ${error.message}`;
        }
      }));
    }
    this.controls.append(buttons, more);
  }

  question(question, at) {
    const set = element('fieldset');
    set.append(element('legend', '', plain(question.text)));
    const name = `q-${this.event.requestId}-${at}`;
    const boxes = (question.options ?? []).map((option) => {
      const label = element('label');
      const box = element('input');
      box.type = question.multi ? 'checkbox' : 'radio';
      box.name = name;
      box.value = option;
      label.append(box, document.createTextNode(plain(option)));
      set.append(label);
      return box;
    });
    const own = element('input');
    own.placeholder = boxes.length ? 'or in your own words' : 'Your answer';
    own.setAttribute('aria-label', own.placeholder);
    set.append(own);
    this.controls.append(set);
    return {
      id: question.id,
      value: () => {
        const words = own.value.trim();
        const chosen = boxes.filter((box) => box.checked).map((box) => box.value);
        if (words && (question.multi || !chosen.length)) chosen.push(words);
        return chosen.join(', ');
      },
    };
  }

  enable(on) {
    for (const control of this.controls.querySelectorAll('button, input, textarea')) {
      control.disabled = !on;
    }
  }

  again(text) {
    this.enable(true);
    this.state.textContent = text;
  }

  done(text) {
    this.controls.hidden = true;
    this.root.classList.add('done');
    this.state.textContent = text;
  }
}

function button(text, className, act) {
  const made = element('button', className, text);
  made.type = 'button';
  made.addEventListener('click', act);
  return made;
}

// Long output is shown in part, with a button for the rest.
function pre(text) {
  const whole = plain(text);
  const shown = element('pre', '', whole.slice(0, SHOWN_CHARS));
  if (whole.length <= SHOWN_CHARS) return shown;
  const outer = element('div');
  const more = button(`Show all ${whole.length} characters`, '', () => {
    shown.textContent = whole;
    more.remove();
  });
  outer.append(shown, more);
  return outer;
}

function diff(text) {
  const shown = element('pre', 'diff');
  for (const line of plain(text).split('\n')) {
    const kind = line.startsWith('+') ? 'add' : line.startsWith('-') ? 'cut' : 'same';
    shown.append(element('span', kind, line || ' '));
  }
  return shown;
}

function summaryOf(input) {
  if (!input || typeof input !== 'object') return input === undefined || input === null ? '' : String(input);
  for (const name of ['command', 'file_path', 'path', 'pattern', 'query', 'url', 'description']) {
    if (typeof input[name] === 'string') return input[name];
    if (name === 'command' && Array.isArray(input[name])) return input[name].join(' ');
  }
  return Object.keys(input).length ? JSON.stringify(input) : '';
}

function textOf(content) {
  if (content === undefined || content === null) return '';
  if (typeof content === 'string') return content;
  if (Array.isArray(content) && content.every((part) => typeof part?.text === 'string')) {
    return content.map((part) => part.text).join('\n');
  }
  return JSON.stringify(content, null, 2);
}

function oneLine(text) {
  const line = text.replace(/\s+/g, ' ').trim();
  return line.length > 160 ? `${line.slice(0, 160)}…` : line;
}

function word(text) {
  return plain(text ?? '').replaceAll('_', ' ');
}

function seconds(ms) {
  return ms < 1000 ? `${ms} ms` : ms < 60000 ? `${(ms / 1000).toFixed(1)} s`
    : `${Math.floor(ms / 60000)} min ${Math.round((ms % 60000) / 1000)} s`;
}
