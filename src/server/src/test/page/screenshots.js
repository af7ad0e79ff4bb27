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
    ['page-empty', { colorScheme: 'light', viewport: { width: 1280, height: 760 } }],
    ['page-settings', { colorScheme: 'dark', viewport: { width: 1000, height: 760 } }],
]) {
    const page = await (await browser.newContext({ deviceScaleFactor: 1, ...options })).newPage();
    await page.goto(mock.url);
    if (name !== 'page-empty') await demo(page, mock, options.narrow);
    if (name === 'page-settings') await page.getByRole('button', { name: 'Settings' }).click();
    await page.waitForTimeout(300);
    await writeFile(join(folder, `${name}.png`), smaller(await page.screenshot()));
    await page.context().close();
}
await mock.stop();
await browser.close();
