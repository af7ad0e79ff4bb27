import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { smaller } from './png.js';
import { mixed, serve, talk } from './serve.js';
import { launch } from './setup.js';

/** Makes the screenshots of docs, of a real conversation with SmolLM2: node screenshots.js FOLDER [SEED]. */
const folder = process.argv[2];
const server = await serve();
const browser = await launch();
try {
    const page = await (
        await browser.newContext({ bypassCSP: true, viewport: { width: 1280, height: 760 } })
    ).newPage();
    page.setDefaultTimeout(300_000);
    await page.goto(server.url);
    // A font as desktops have it, where it is installed: Chromium without a desktop takes any for system-ui.
    await page.addStyleTag({ content: ':root { font-family: Inter, system-ui, sans-serif }' });
    await talk(page, { Seed: process.argv[3] ?? '3', 'Tokens at most': '100' });
    const [layer, head] = await mixed(server.url);
    await page.getByLabel('Layer').selectOption(String(layer));
    await page.getByLabel('KV head').selectOption(String(head));
    await page.locator('#tokens .merged').first().waitFor({ state: 'attached' });
    await page.locator('#tokens').press('Home');
    for (let i = 0; i < 6; i++) await page.keyboard.press('m');
    await page.getByLabel('Your message').click();

    const save = async (name) => writeFile(join(folder, `${name}.png`), smaller(await page.screenshot()));
    await save('page-light');
    await page.emulateMedia({ colorScheme: 'dark' });
    await page.waitForTimeout(300);
    await save('page-dark');
    await page.emulateMedia({ colorScheme: 'light' });
    await page.setViewportSize({ width: 360, height: 740 });
    await page.getByRole('button', { name: 'Cache', exact: true }).click();
    await page.waitForTimeout(300);
    await save('page-narrow');
} finally {
    // Also where the talk failed: nothing is left running.
    await browser.close();
    await server.stop();
}
