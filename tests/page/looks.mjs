// How a page looks, and the few things that every scenario waits for.
import fs from 'node:fs';
import path from 'node:path';
import { same, shots } from './harness.mjs';

export const LIVE = '#state[data-state="live"]';

/** Waits until an element with this text is there. */
export function see(page, selector, text) {
  return page.locator(selector).filter({ hasText: text }).first().waitFor();
}

/** Nothing sticks out, all can be read; and a picture for whoever wants to look. */
export async function looksRight(page, what) {
  same(await overflow(page), [], `sticks out: ${what}`);
  same(await contrast(page), [], `poor contrast: ${what}`);
  await shot(page, what);
}

/** Opens everything that is folded: one at a time, since the list shrinks. */
export async function unfold(page) {
  const folded = page.locator('#log > details:not([open]) > summary');
  while (await folded.count() > 0) await folded.first().click();
}

/** The request with these words in it. */
export function card(page, title) {
  return page.locator('#log .card', { hasText: title });
}

/** Texts whose contrast with what lies behind them is below 4.5 (3 where large). */
export function contrast(page) {
  return page.evaluate(() => {
    const channel = (value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    const parse = (text) => (text.match(/[\d.]+/g) ?? []).map(Number);
    const luminance = ([r, g, b]) => 0.2126 * channel(r / 255) + 0.7152 * channel(g / 255)
      + 0.0722 * channel(b / 255);
    const behind = (node) => {
      for (let at = node; at; at = at.parentElement) {
        const colour = parse(getComputedStyle(at).backgroundColor);
        if (colour.length === 3 || colour[3] === 1) return colour;
      }
      return [255, 255, 255];
    };
    const poor = [];
    for (const node of document.querySelectorAll('body *')) {
      const own = [...node.childNodes].some((one) => one.nodeType === 3 && one.data.trim());
      if (!own || !node.checkVisibility({ opacityProperty: true }) || node.disabled
        || node.matches('option, .hidden, noscript')) continue;
      const style = getComputedStyle(node);
      const [one, two] = [luminance(parse(style.color)), luminance(behind(node))];
      const ratio = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
      if (ratio < 4.5) poor.push(`${node.tagName}.${node.className} "${node.textContent.slice(0, 40)}" ${ratio.toFixed(2)}`);
    }
    return poor;
  });
}

/** What sticks out of the viewport to the right. */
export function overflow(page) {
  return page.evaluate(() => {
    const width = document.documentElement.clientWidth;
    const wide = document.scrollingElement.scrollWidth > width ? ['the page itself'] : [];
    const log = document.querySelector('#log');
    if (log && log.scrollWidth > log.clientWidth) wide.push('the log');
    for (const node of document.querySelectorAll('header *, #bar *, #login *, #page *')) {
      if (node.closest('pre, .wide') || node.closest('.hidden')) continue;
      const box = node.getBoundingClientRect();
      const around = node.parentElement.closest('.card, details, .prompt, form');
      if (box.width && around && box.right > around.getBoundingClientRect().right + 1) {
        wide.push(`${node.tagName}.${node.className}#${node.id} out of its ${around.className || around.tagName}`);
      }
      if (box.width && box.right > width + 1) wide.push(`${node.tagName}.${node.className}#${node.id}`);
    }
    return wide;
  });
}

let counted = 0;

export async function shot(page, name) {
  fs.mkdirSync(shots, { recursive: true });
  counted += 1;
  await page.screenshot({ path: path.join(shots, `${String(counted).padStart(2, '0')}-${name}.png`) });
}
