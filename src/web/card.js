// A request of the agent, with what can be answered. Knows no sockets: it calls `decide`.

import { button, diff, element, plain, pre, summaryOf } from './parts.js';

// A permission request, with what can be answered.
export class Card {
  constructor(event, decide) {
    this.event = event;
    this.root = element('div', 'card');
    this.root.setAttribute('role', 'group');
    const asks = event.interaction === 'question';
    this.asks = asks;
    this.closed = false;
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
    this.closed = true;
    this.controls.hidden = true;
    this.root.classList.add('done');
    this.state.textContent = text;
  }
}
