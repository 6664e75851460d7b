// Small pieces of the page: elements, long texts, diffs, words. Know nothing of events as a whole.
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

export function button(text, className, act) {
  const made = element('button', className, text);
  made.type = 'button';
  made.addEventListener('click', act);
  return made;
}

// Long output is shown in part, with a button for the rest.
export function pre(text) {
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

export function diff(text) {
  const shown = element('pre', 'diff');
  // The names of the files stand before the first hunk, with marks like those of lines.
  let head = /^--- .*\n\+\+\+ /.test(text) || text.startsWith('diff ');
  for (const line of plain(text).replace(/\n$/, '').split('\n')) {
    if (line.startsWith('@@')) head = false;
    else if (line.startsWith('diff ')) head = true;
    const kind = head || line.startsWith('@@') ? 'about'
      : line.startsWith('+') ? 'add' : line.startsWith('-') ? 'cut' : 'same';
    shown.append(element('span', kind, line || ' '));
  }
  return shown;
}

export function summaryOf(input) {
  if (!input || typeof input !== 'object') return input === undefined || input === null ? '' : String(input);
  for (const name of ['command', 'file_path', 'path', 'pattern', 'query', 'url', 'description']) {
    if (typeof input[name] === 'string') return input[name];
    if (name === 'command' && Array.isArray(input[name])) return input[name].join(' ');
  }
  return Object.keys(input).length ? JSON.stringify(input) : '';
}

export function textOf(content) {
  if (content === undefined || content === null) return '';
  if (typeof content === 'string') return content;
  if (Array.isArray(content) && content.every((part) => typeof part?.text === 'string')) {
    return content.map((part) => part.text).join('\n');
  }
  return JSON.stringify(content, null, 2);
}

export function oneLine(text) {
  const line = text.replace(/\s+/g, ' ').trim();
  return line.length > 160 ? `${line.slice(0, 160)}…` : line;
}

export function word(text) {
  return plain(text ?? '').replaceAll('_', ' ');
}

export function seconds(ms) {
  return ms < 1000 ? `${ms} ms` : ms < 60000 ? `${(ms / 1000).toFixed(1)} s`
    : `${Math.floor(ms / 60000)} min ${Math.round((ms % 60000) / 1000)} s`;
}
