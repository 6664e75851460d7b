// The common part of Markdown as elements: headings, lists, quotes, tables, code, emphasis, links.
//
// What it does not know stays as it was typed. Text becomes text nodes; the only addresses that it
// makes are links to http and https, which nothing follows by itself. No images: their address
// could carry away what the agent read.

import { element } from './parts.js';

// The text as a fragment of blocks.
export function markdown(text) {
  const out = document.createDocumentFragment();
  blocks(text.split('\n'), out, 0);
  return out;
}

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}> ?/;
const ROW = /^\s*\|.*\|\s*$/;
const ALIGN = /^\s*\|(?:\s*:?-+:?\s*\|)+\s*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
// Deeper than anybody writes; a text of a million `>` must not end the stack.
const DEPTH_MAX = 8;

function blocks(lines, out, depth) {
  let at = 0;
  let paragraph = [];
  const flush = () => {
    if (paragraph.length) out.append(inline(element('p'), paragraph.join('\n')));
    paragraph = [];
  };
  while (at < lines.length) {
    const line = lines[at];
    const fence = FENCE.exec(line);
    const heading = HEADING.exec(line);
    if (fence) {
      flush();
      at = code(lines, at, fence[1], out);
      continue;
    }
    if (RULE.test(line)) {
      flush();
      out.append(element('hr'));
    } else if (heading) {
      flush();
      // The page's own headings come first.
      out.append(inline(element(`h${Math.min(heading[1].length + 2, 6)}`), heading[2]));
    } else if (depth < DEPTH_MAX && QUOTE.test(line)) {
      flush();
      let end = at;
      while (end < lines.length && QUOTE.test(lines[end])) end += 1;
      const quote = element('blockquote');
      blocks(lines.slice(at, end).map((one) => one.replace(QUOTE, '')), quote, depth + 1);
      out.append(quote);
      at = end;
      continue;
    } else if (depth < DEPTH_MAX && ITEM.test(line)) {
      flush();
      at = list(lines, at, out, depth);
      continue;
    } else if (ROW.test(line) && ALIGN.test(lines[at + 1] ?? '')) {
      flush();
      at = table(lines, at, out);
      continue;
    } else if (line.trim() === '') flush();
    else paragraph.push(line);
    at += 1;
  }
  flush();
}

function code(lines, from, fence, out) {
  let end = from + 1;
  const closes = (line) => line.trim().startsWith(fence) && /^\s*[`~]+\s*$/.test(line);
  while (end < lines.length && !closes(lines[end])) end += 1;
  out.append(element('pre', '', lines.slice(from + 1, end).join('\n')));
  return end + 1;
}

function table(lines, from, out) {
  const made = element('table');
  const row = (line, kind) => {
    const cells = element('tr');
    for (const cell of line.trim().slice(1, -1).split('|')) {
      cells.append(inline(element(kind), cell.trim()));
    }
    return cells;
  };
  made.append(row(lines[from], 'th'));
  let at = from + 2;
  for (; at < lines.length && ROW.test(lines[at]); at += 1) made.append(row(lines[at], 'td'));
  const wide = element('div', 'wide');
  wide.append(made);
  out.append(wide);
  return at;
}

// Items of one list: lines that begin like the first; deeper lines belong to their item.
function list(lines, from, out, depth) {
  const [, lead, mark] = ITEM.exec(lines[from]);
  const numbered = /\d/.test(mark);
  const made = element(numbered ? 'ol' : 'ul');
  if (numbered) made.start = Number.parseInt(mark, 10);
  let at = from;
  while (at < lines.length) {
    const item = ITEM.exec(lines[at]);
    if (!item || item[1].length > lead.length + 1 || /\d/.test(item[2]) !== numbered) break;
    const own = [item[3]];
    at += 1;
    while (at < lines.length) {
      const deeper = /^\s/.test(lines[at]) && indent(lines[at]) > item[1].length;
      const blank = lines[at].trim() === '' && /^\s+\S/.test(lines[at + 1] ?? '');
      if (!deeper && !blank) break;
      own.push(lines[at].slice(Math.min(indent(lines[at]), item[1].length + item[2].length + 1)));
      at += 1;
    }
    const entry = element('li');
    if (own.length === 1) inline(entry, own[0]);
    else blocks(own, entry, depth + 1);
    made.append(entry);
    // A blank line between two items does not end the list.
    const next = ITEM.exec(lines[at + 1] ?? '');
    if (lines[at]?.trim() === '' && next && /\d/.test(next[2]) === numbered
        && next[1].length === lead.length) at += 1;
  }
  out.append(made);
  return at;
}

function indent(line) {
  return line.length - line.trimStart().length;
}

// Code first, since nothing inside it means anything. Each branch is bounded by its line or by a
// closing mark that is looked for once, so a long text takes a time in proportion.
const INLINE = new RegExp([
  '(?<ticks>`{1,3})(?<code>[^`]{1,2000})\\k<ticks>',
  '\\*\\*(?<bold>(?=\\S)[^*\\n]{1,1000})\\*\\*',
  '(?<![\\w*])\\*(?<slant>(?=\\S)[^*\\n]{1,1000})\\*(?![\\w*])',
  '(?<!\\w)_(?<under>(?=\\S)[^_\\n]{1,1000})_(?!\\w)',
  '!?\\[(?<label>[^\\]\\n]{1,300})\\]\\((?<target>https?://[^\\s()]{1,1000})\\)',
  '(?<bare>https?://[^\\s<>"\'`()\\[\\]]{1,1000}[^\\s<>"\'`()\\[\\].,;:!?*_])',
].join('|'), 'g');

function inline(into, text) {
  let from = 0;
  for (const found of text.matchAll(INLINE)) {
    into.append(text.slice(from, found.index));
    from = found.index + found[0].length;
    const { code: ticked, bold, slant, under, label, target, bare } = found.groups;
    if (ticked !== undefined) into.append(element('code', '', ticked));
    else if (bold !== undefined) into.append(inline(element('strong'), bold));
    else if (slant !== undefined) into.append(inline(element('em'), slant));
    else if (under !== undefined) into.append(inline(element('em'), under));
    else into.append(link(label ?? bare, target ?? bare));
  }
  into.append(text.slice(from));
  return into;
}

function link(text, target) {
  const made = element('a', '', text);
  made.href = target;
  made.target = '_blank';
  made.rel = 'noopener noreferrer';
  // A label can lie about where it leads.
  made.title = target;
  return made;
}
