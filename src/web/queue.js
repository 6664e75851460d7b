// The prompts that wait in the opened session, above the composer. Knows the queue alone.
import { button, element, oneLine, plain } from './parts.js';
import { call } from './rest.js';

export class Queue {
  // `failed` is told in words what could not be done.
  constructor(outer, failed) {
    this.outer = outer;
    this.failed = failed;
    this.session = null;
    this.items = [];
    this.held = false;
    this.asking = false;
    this.again = false;
  }

  // Another session is shown, whose queue is not known yet.
  open(session) {
    this.session = session;
    this.show([], false);
  }

  show(items, held) {
    this.items = items;
    this.held = held;
    const focused = document.activeElement?.dataset?.queued;
    const list = element('ol');
    list.append(...items.map((item) => this.row(item)));
    const parts = items.length > 0 ? [this.head(), list] : [];
    this.outer.replaceChildren(...parts);
    this.outer.hidden = items.length === 0;
    if (focused) this.outer.querySelector(`[data-queued="${CSS.escape(focused)}"]`)?.focus();
  }

  // Something in the session's queue changed, or may have.
  async refresh() {
    if (this.asking) {
      this.again = true;
      return;
    }
    this.asking = true;
    const { session } = this;
    try {
      const { items, held } = await call('GET', `api/v1/sessions/${session}/queue`);
      if (session === this.session) this.show(items, held);
    } catch {
      // The next change, or the next connection, tells.
    }
    this.asking = false;
    if (this.again) {
      this.again = false;
      this.refresh();
    }
  }

  head() {
    const head = element('p', 'faint');
    const count = this.items.length === 1 ? '1 message waits' : `${this.items.length} messages wait`;
    if (!this.held) {
      head.textContent = `${count} for the agent:`;
      return head;
    }
    head.append(`${count}, held since the agent was stopped. `);
    head.append(button('Go on', 'small', () => this.change('POST', '/resume')));
    return head;
  }

  row(item) {
    const row = element('li');
    row.append(element('span', 'text', `${item.position}. ${oneLine(plain(item.content))}`));
    const remove = button('Remove', 'small', () => this.change('DELETE', `/${item.queueId}`));
    remove.dataset.queued = item.queueId;
    remove.setAttribute('aria-label', `Remove message ${item.position}`);
    row.append(remove);
    return row;
  }

  async change(method, path) {
    try {
      await call(method, `api/v1/sessions/${this.session}/queue${path}`, method === 'POST' ? {} : undefined);
    } catch (problem) {
      this.failed(problem.code === 'QUEUED_PROMPT_NOT_FOUND'
        ? 'That message has begun, or somebody removed it.' : problem.message);
    }
    this.refresh();
  }
}
