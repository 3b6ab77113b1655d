// Two browsers on the demo page, a guard in one and a resident in the other:
//
//   node demo_page.mjs '{"url":"http://127.0.0.1:3000","screenshots":"DIR","chromium":"/usr/bin/chromium"}'
//
// One JSON line per step, `{"ok":true,"what":…}`; code 1 at the first step that fails. The time
// limit is 20 s and the server's own visitor time-out on top.

import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import process from 'node:process';
import { chromium } from 'playwright-core';

const LIMIT_MS = 20_000;
const TIMEOUT_MS_MAX = 40_000; // a server with a longer visitor time-out is not in demo mode
const STEP_MS = 5_000;
const DESK = { width: 1440, height: 900 };
const PHONE = { width: 390, height: 844 };
const BROWSER_FLAGS = [
  '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync', '--disable-dev-shm-usage',
];

const config = JSON.parse(process.argv[2] ?? '{}');
const { url, screenshots, chromium: executablePath = process.env.CHROMIUM ?? '/usr/bin/chromium' } = config;
const problems = [];
const report = (ok, what, details = {}) => process.stdout.write(`${JSON.stringify({ ok, what, ...details })}\n`);

let timeLimit = setTimeout(() => end(LIMIT_MS), LIMIT_MS);
function end(limitMs) {
  report(false, 'time_limit', { limit_ms: limitMs });
  process.exit(1);
}

async function step(what, action) {
  try {
    report(true, what, await action());
  } catch (error) {
    report(false, what, { message: error.message });
    throw error;
  }
}

function assert(condition, message) {
  if (!condition) throw new Error(message);
}

async function open(browser, pane, viewport) {
  const context = await browser.newContext({ viewport, reducedMotion: 'reduce' });
  context.setDefaultTimeout(STEP_MS);
  const page = await context.newPage();
  page.on('console', (line) => line.type() === 'error' && problems.push(`${pane}: ${line.text()}`));
  page.on('pageerror', (error) => problems.push(`${pane}: ${error.message}`));
  page.on('requestfailed', (request) => problems.push(`${pane}: ${request.url()} ${request.failure()?.errorText}`));
  page.on('request', (request) => {
    if (new URL(request.url()).host !== new URL(url).host) problems.push(`${pane}: asks ${request.url()}`);
  });
  await page.goto(new URL(pane === 'all' ? '/demo' : `/demo?pane=${pane}`, url).href);
  const panes = pane === 'all' ? ['guard', 'resident1', 'resident2'] : [pane];
  for (const one of panes) await page.locator(`#pane-${one}[data-state=online]`).waitFor();
  return page;
}

async function shoot(page, name) {
  if (screenshots) await page.screenshot({ path: join(screenshots, `${name}.png`) });
}

async function register(guard, name) {
  const form = guard.locator('.register');
  await form.locator('[name=visitor_name]').fill(name);
  await form.locator('[name=flat_id]').selectOption('A-101');
  await form.locator('[name=purpose]').fill('Delivery');
  await form.locator('[type=submit]').click();
  await card(guard, name).waitFor();
}

/** A visitor's card, by name; in `status` if given. */
function card(page, name, status) {
  return page.locator(status ? `.card[data-status=${status}]` : '.card', { hasText: name }).first();
}

async function overflow(page) {
  const [content, window] = await page.evaluate(() => {
    // Pages side by side are the deck's to scroll; within each, nothing may stick out.
    const widths = [...document.querySelectorAll('.pane, .log, .top')].map((part) => part.scrollWidth);
    return [Math.max(document.documentElement.scrollWidth, ...widths), window.innerWidth];
  });
  assert(content <= window, `${content} px of content in ${window} px`);
  return { content_px: content, window_px: window };
}

async function story(browser, timeoutMs) {
  const run = Date.now().toString(36).slice(-4);
  const [welcome, ignored] = [`Meera ${run}`, `Imran ${run}`];
  let guard;
  let resident;
  await step('both_online', async () => {
    [guard, resident] = await Promise.all([open(browser, 'guard', DESK), open(browser, 'resident1', DESK)]);
  });
  await step('request_arrives', async () => {
    await register(guard, welcome);
    await card(resident, welcome, 'pending').waitFor();
    await shoot(resident, 'resident-request');
  });
  await step('approval_reaches_the_guard', async () => {
    await card(resident, welcome).locator('.approve').click();
    await card(guard, welcome, 'approved').waitFor();
    await card(resident, welcome, 'approved').waitFor();
    await shoot(guard, 'guard-approved');
  });
  await step('unanswered_times_out_at_both', async () => {
    await register(guard, ignored);
    const wait = { timeout: timeoutMs + STEP_MS };
    await Promise.all([card(guard, ignored, 'timed_out').waitFor(wait), card(resident, ignored, 'timed_out').waitFor(wait)]);
    await shoot(guard, 'guard-timed-out');
  });
  await step('a_cut_connection_catches_up', async () => {
    const late = `Divya ${run}`;
    await resident.locator('[data-do=switch]').click();
    await resident.locator('#pane-resident1[data-state=offline]').waitFor();
    await register(guard, late);
    await resident.locator('[data-do=switch]').click();
    await card(resident, late, 'pending').waitFor();
    return { notice: await resident.locator('.notice').textContent() };
  });
}

async function looks(browser) {
  await step('three_panes_on_a_desk', async () => {
    const page = await open(browser, 'all', DESK);
    await page.locator('#race-run').click();
    await page.locator('.outcome.note').first().waitFor();
    await shoot(page, 'desk');
    return { ...(await overflow(page)), note: await page.locator('.outcome.note').first().textContent() };
  });
  await step('nothing_overflows_on_a_phone', async () => {
    const page = await open(browser, 'all', PHONE);
    await shoot(page, 'phone-guard');
    await page.locator('[data-tab=resident1]').click();
    await page.locator('[data-tab=resident1][aria-current=true]').waitFor();
    await shoot(page, 'phone-resident');
    return overflow(page);
  });
  await step('no_errors_in_the_console', async () => assert(problems.length === 0, problems.join('; ')));
}

let browser;
let code = 0;
try {
  if (screenshots) mkdirSync(screenshots, { recursive: true });
  const { timeout_ms: timeoutMs } = await (await fetch(new URL('/demo/tokens.json', url))).json();
  assert(timeoutMs <= TIMEOUT_MS_MAX, `visitors time out after ${timeoutMs} ms, more than ${TIMEOUT_MS_MAX}`);
  clearTimeout(timeLimit);
  timeLimit = setTimeout(() => end(LIMIT_MS + timeoutMs), LIMIT_MS + timeoutMs);
  browser = await chromium.launch({ executablePath, args: BROWSER_FLAGS });
  await story(browser, timeoutMs);
  await looks(browser);
} catch (error) {
  report(false, 'failed', { message: error.message });
  code = 1;
}
await browser?.close();
process.exit(code);
