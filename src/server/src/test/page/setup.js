import { chromium } from 'playwright-core';
import { after, afterEach, before, beforeEach } from 'node:test';
import { Mock } from './mock.js';

/** A browser for the tests of a file, and for each test a mock server and a page at it, as `it.mock` and `it.page`. */
export function browser() {
    const it = {};
    let running;
    before(async () => {
        running = await launch();
    });
    after(() => running.close());
    beforeEach(async () => {
        it.mock = await new Mock().start();
        it.errors = [];
        it.open = async (options = {}) => {
            await it.page?.context().close();
            it.page = await (
                await running.newContext({ viewport: { width: 1280, height: 800 }, ...options })
            ).newPage();
            it.page.on('pageerror', (e) => it.errors.push(String(e)));
            it.page.on('console', (m) => {
                // The browser itself logs what a server refuses; the page tells it to the reader.
                if (m.type() === 'error' && !/Failed to load resource/.test(m.text())) it.errors.push(m.text());
            });
            it.page.setDefaultTimeout(20_000);
            await it.page.goto(it.mock.url);
            return it.page;
        };
    });
    afterEach(async () => {
        await it.page?.context().close();
        it.page = null;
        await it.mock.stop();
        if (it.errors.length) throw new Error(`The page's console: ${it.errors.join('\n')}`);
    });
    return it;
}

export const launch = () =>
    chromium.launch({
        executablePath: process.env.KVMERGE_CHROMIUM ?? '/usr/bin/chromium',
        // CI runs as root in a container; text in shades of grey makes small screenshots.
        args: ['--no-sandbox', '--disable-gpu', '--disable-lcd-text', '--font-render-hinting=none'],
    });

/** Sends a message and waits until its answer is over. */
export async function say(page, text) {
    await page.getByLabel('Your message').fill(text);
    await page.getByRole('button', { name: 'Send' }).click();
    await over(page);
}

/** Waits until no answer runs. */
export const over = (page) => page.locator('#messages[aria-busy=false]').waitFor();
