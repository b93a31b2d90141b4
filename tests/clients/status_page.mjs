// Opens the status page in Chromium: status_page.mjs URL USER TOKEN REQUEST_ID [FOLDER for screenshots].
// Prints one line for each thing that is wrong, and exits 1 if there is any.
import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';
import { chromium } from 'playwright-core';

const [url, username, password, requestId, folder] = process.argv.slice(2);
const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const HEADINGS = [
  'Last hour', 'One delivery', 'Last deliveries that failed', 'Targets that fail most', 'Slowest targets', 'Configuration',
  'Earlier changes', 'Source addresses', 'Suspected allow-list gaps', 'Now', 'Limits near full', 'Audit log',
  'Certificates and revocation lists',
];
// More elements than the page has.
const TABS_MAX = 60;
const wrong = [];

const browser = await chromium.launch({
  executablePath: '/usr/bin/chromium',
  args: ['--no-sandbox', '--disable-background-networking'],
});

async function open(name, width, colorScheme, javaScriptEnabled) {
  const viewport = { width, height: 844 };
  const httpCredentials = { username, password };
  const context = await browser.newContext({ viewport, colorScheme, javaScriptEnabled, httpCredentials });
  const page = await context.newPage();
  page.on('console', (message) => wrong.push(`${name}: console: ${message.text()}`));
  page.on('pageerror', (error) => wrong.push(`${name}: script: ${error}`));
  page.on('request', (request) => {
    const isOwn = new URL(request.url()).origin === new URL(url).origin;
    if (!isOwn && !request.url().startsWith('data:')) wrong.push(`${name}: request to ${request.url()}`);
  });
  const response = await page.goto(url);
  if (response.status() !== 200) wrong.push(`${name}: status ${response.status()}`);
  const headings = await page.locator('h2').allInnerTexts();
  for (const heading of HEADINGS) if (!headings.includes(heading)) wrong.push(`${name}: no heading ${heading}`);
  if (folder) await page.screenshot({ path: `${folder}/${name}.png`, fullPage: true });
  return { context, page };
}

for (const [name, width, scheme] of [
  ['light', 1200, 'light'], ['dark', 1200, 'dark'], ['phone-light', 390, 'light'], ['phone-dark', 390, 'dark'],
]) {
  const { context, page } = await open(name, width, scheme, true);
  const scrolled = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
  if (scrolled > 0) wrong.push(`${name}: ${scrolled} px wider than the window`);
  await page.evaluate(axe);
  for (const { id, nodes } of (await page.evaluate(() => window.axe.run())).violations) {
    wrong.push(`${name}: axe: ${id}: ${nodes.map((node) => node.target).join(' ')}`);
  }
  await context.close();
}

// By keyboard: Tab reaches the search field, and Enter shows the delivery.
const { context, page } = await open('keyboard', 1200, 'light', true);
const isSearch = () => page.evaluate(() => document.activeElement?.id === 'request');
let tabs = 0;
while (tabs < TABS_MAX && !(await isSearch())) {
  await page.keyboard.press('Tab');
  tabs += 1;
}
if (!(await isSearch())) wrong.push('keyboard: Tab does not reach the search field');
await page.keyboard.type(requestId);
await Promise.all([page.waitForNavigation(), page.keyboard.press('Enter')]);
const steps = await page.locator('dl.steps').innerText().catch((error) => `${error}`);
if (!steps.includes('fault')) wrong.push(`keyboard: no steps of the delivery: ${steps}`);
// The script replaces the content, and stops when the reader says so.
if (!(await page.locator('#live').isVisible())) wrong.push('script: no button');
await page.locator('#live').click();
if ((await page.locator('#live').getAttribute('aria-pressed')) !== 'false') wrong.push('script: the button stays pressed');
if (folder) await page.screenshot({ path: `${folder}/delivery.png`, fullPage: true });
await context.close();

const plain = await open('without-script', 390, 'dark', false);
if (await plain.page.locator('#live').isVisible()) wrong.push('without script: a button that does nothing');
await plain.context.close();

await browser.close();
console.log(wrong.join('\n'));
process.exit(wrong.length === 0 ? 0 : 1);
