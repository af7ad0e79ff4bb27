import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { launch } from './setup.js';
import { demo } from './demo.js';
import { Mock } from './mock.js';
import { smaller } from './png.js';

/** Makes the screenshots of docs: node screenshots.js FOLDER. */
const folder = process.argv[2];
const browser = await launch();
const mock = await new Mock().start();
for (const [name, options] of [
    ['page-light', { colorScheme: 'light', viewport: { width: 1280, height: 760 } }],
    ['page-dark', { colorScheme: 'dark', viewport: { width: 1280, height: 760 } }],
    ['page-narrow', { colorScheme: 'light', viewport: { width: 360, height: 740 }, narrow: true }],
]) {
    const page = await (await browser.newContext({ bypassCSP: true, ...options })).newPage();
    await page.goto(mock.url);
    // A font as desktops have it, where it is installed: Chromium without a desktop takes any for system-ui.
    await page.addStyleTag({ content: ':root { font-family: Inter, system-ui, sans-serif }' });
    await demo(page, mock, options.narrow);
    await page.waitForTimeout(300);
    await writeFile(join(folder, `${name}.png`), smaller(await page.screenshot()));
    await page.context().close();
}
await mock.stop();
await browser.close();
