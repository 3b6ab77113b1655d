// The cluster's page in a real browser, on a desk and on a phone:
//
//   node cluster_page.mjs '{"url":"http://127.0.0.1:8080","nodes":2,"screenshots":"DIR","chromium":"/usr/bin/chromium"}'
//
// One JSON line per step, `{"ok":true,"what":…}`; code 1 at the first step that fails. `nodes`: on how many the
// three clients must be, at least.

import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import process from 'node:process';
import { chromium } from 'playwright-core';

const LIMIT_MS = 30_000;
const STEP_MS = 5_000;
const DESK = { width: 1280, height: 800 };
const PHONE = { width: 390, height: 844 };
const CLIENTS = ['ana', 'ben', 'cleo'];
const BROWSER_FLAGS = [
  '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync', '--disable-dev-shm-usage',
];

const config = JSON.parse(process.argv[2] ?? '{}');
const { url, nodes: nodesMin = 1, screenshots, chromium: executablePath = '/usr/bin/chromium' } = config;
const problems = [];
const report = (ok, what, details = {}) => process.stdout.write(`${JSON.stringify({ ok, what, ...details })}\n`);
setTimeout(() => {
  report(false, 'time_limit', { limit_ms: LIMIT_MS });
  process.exit(1);
}, LIMIT_MS);

function assert(condition, message) {
  if (!condition) throw new Error(message);
}

async function step(what, action) {
  try {
    report(true, what, await action());
  } catch (error) {
    report(false, what, { message: error.message });
    throw error;
  }
}

async function open(browser, viewport) {
  const context = await browser.newContext({ viewport, reducedMotion: 'reduce' });
  context.setDefaultTimeout(STEP_MS);
  const page = await context.newPage();
  page.on('console', (line) => line.type() === 'error' && problems.push(line.text()));
  page.on('pageerror', (error) => problems.push(error.message));
  page.on('requestfailed', (request) => problems.push(`${request.url()} ${request.failure()?.errorText}`));
  page.on('request', (request) => {
    if (new URL(request.url()).host !== new URL(url).host) problems.push(`asks ${request.url()}`);
  });
  await page.goto(new URL('/demo/cluster', url).href);
  await allOnline(page);
  return page;
}

async function allOnline(page) {
  for (const client of CLIENTS) await page.locator(`#pane-${client}[data-state=online]`).waitFor();
}

const nodesOf = (page) => Promise.all(CLIENTS.map((client) => page.locator(`#pane-${client}`).getAttribute('data-server')));

/** Sends one event and waits until everybody has another row. */
async function send(page, button) {
  const before = await rowsOf(page);
  await button.click();
  for (const [index, client] of CLIENTS.entries()) {
    await page.locator(`#pane-${client} .event-row`).nth(before[index].length).waitFor();
  }
}

/** Each client's events, newest first, with how often each came. */
function rowsOf(page) {
  return Promise.all(CLIENTS.map((client) => page.locator(`#pane-${client} .event-row`).evaluateAll(
    (rows) => rows.map((row) => ({ id: row.dataset.event, times: Number(row.dataset.times), text: row.innerText })),
  )));
}

async function shoot(page, name) {
  if (screenshots) await page.screenshot({ path: join(screenshots, `${name}.png`) });
}

async function story(browser) {
  let desk;
  await step('three_clients_are_spread_over_the_nodes', async () => {
    desk = await open(browser, DESK);
    const nodes = await nodesOf(desk);
    assert(nodes.every(Boolean), `not every client knows its node: ${nodes}`);
    assert(new Set(nodes).size >= nodesMin, `${nodesMin} nodes wanted, the clients are on ${nodes}`);
    return { nodes, summary: await desk.locator('#summary').textContent() };
  });
  await step('one_event_reaches_all_three_exactly_once', async () => {
    // Whoever sends. What came twice would have come before the next.
    for (const client of CLIENTS) await send(desk, desk.locator(`#pane-${client} [data-do=send]`));
    await send(desk, desk.locator('#send'));
    const rows = await rowsOf(desk);
    const ids = rows.map((of) => of.map(({ id }) => id).join());
    assert(rows.every((of) => of.length === 4), `4 events were sent, rows are ${rows.map((of) => of.length)}`);
    assert(new Set(ids).size === 1, `not the same in the same order everywhere: ${ids.join(' | ')}`);
    assert(rows.flat().every(({ times }) => times === 1), `an event came twice: ${JSON.stringify(rows)}`);
    await shoot(desk, 'cluster-desk');
    return { first_row: rows[0][0].text.replaceAll('\n', ' ') };
  });
  await step('connected_anew_they_are_spread_again', async () => {
    await desk.locator('#spread').click();
    await desk.locator('#pane-ana:not([data-state=online])').waitFor();
    await allOnline(desk);
    await send(desk, desk.locator('#send'));
    const nodes = await nodesOf(desk);
    assert(new Set(nodes).size >= nodesMin, `${nodesMin} nodes wanted, the clients are on ${nodes}`);
    return { nodes };
  });
  await step('a_phone_shows_it_all', async () => {
    const phone = await open(browser, PHONE);
    await send(phone, phone.locator('#send'));
    const [content, window] = await phone.evaluate(() => [
      Math.max(document.documentElement.scrollWidth, ...[...document.querySelectorAll('.pane, .top')].map((part) => part.getBoundingClientRect().right)),
      window.innerWidth,
    ]);
    assert(content <= window, `${content} px of content in ${window} px`);
    await shoot(phone, 'cluster-phone');
    return { content_px: content };
  });
  await step('no_errors_in_the_console', async () => assert(problems.length === 0, problems.join('; ')));
}

let browser;
let code = 0;
try {
  if (screenshots) mkdirSync(screenshots, { recursive: true });
  browser = await chromium.launch({ executablePath, args: BROWSER_FLAGS });
  await story(browser);
} catch (error) {
  report(false, 'failed', { message: error.message });
  code = 1;
}
await browser?.close();
process.exit(code);
