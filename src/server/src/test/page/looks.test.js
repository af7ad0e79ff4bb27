import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { test } from 'node:test';
import { demo } from './demo.js';
import { cellsOf } from './mock.js';
import { browser, say } from './setup.js';

const it = browser();
const AXE = createRequire(import.meta.url).resolve('axe-core/axe.min.js');

/** What axe-core finds wrong, contrast too. */
async function faults(page) {
    await page.evaluate(await (await import('node:fs/promises')).readFile(AXE, 'utf8'));
    const { violations } = await page.evaluate(() => window.axe.run({ resultTypes: ['violations'] }));
    return violations.map((v) => `${v.id}: ${v.nodes.map((n) => `${n.target} ${n.failureSummary}`).join('; ')}`);
}

/** The same tokens in all shades that there can be over all heads. */
function shades(cells) {
    const all = [];
    for (let d = 0; d <= 4; d++) for (let m = 0; m + d <= 4; m++) all.push([1 - (d + m) / 4, m / 4, d / 4]);
    cells.tokens.forEach((token, i) => (token.shares = all[i % all.length]));
    return cells;
}

for (const colorScheme of ['light', 'dark']) {
    for (const viewport of [
        { width: 1280, height: 800 },
        { width: 360, height: 740 },
    ]) {
        const narrow = viewport.width < 860;
        test(`accessible: ${colorScheme}, ${viewport.width} pixels wide`, async () => {
            const page = await it.open({ colorScheme, viewport });
            assert.deepEqual(await faults(page), [], 'empty');
            if (narrow) await page.getByRole('button', { name: 'Cache', exact: true }).click();
            assert.deepEqual(await faults(page), [], 'the empty cache');
            if (narrow) await page.getByRole('button', { name: 'Chat', exact: true }).click();
            await demo(page, it.mock, narrow);
            assert.deepEqual(await faults(page), [], 'a conversation, one head');
            const { cells } = it.mock;
            it.mock.cells = (layer) => shades(cells(layer));
            await page.getByLabel('Layer').selectOption('');
            await page.locator('.t.d4.m0.gone').first().waitFor();
            assert.deepEqual(await faults(page), [], 'all heads');
            await page.getByRole('button', { name: 'Settings' }).click();
            assert.deepEqual(await faults(page), [], 'settings');
            await page.getByRole('button', { name: 'Cancel' }).click();
            if (narrow) await page.getByRole('button', { name: 'Chat', exact: true }).click();
            it.mock.chat = (answer) => answer.refuses(503, 'The queue is full', { 'Retry-After': '2' });
            await say(page, 'Hi');
            assert.deepEqual(await faults(page), [], 'an error');
            it.mock.key = 'secret';
            await page.getByRole('button', { name: 'Send' }).click();
            await page.locator('#key[open]').waitFor();
            assert.deepEqual(await faults(page), [], 'the API key');
            await page.keyboard.press('Escape');
        });
    }
}

test('the colour scheme is that of the system', async () => {
    const background = (page) => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    assert.equal(await background(await it.open({ colorScheme: 'light' })), 'rgb(250, 249, 245)');
    assert.equal(await background(await it.open({ colorScheme: 'dark' })), 'rgb(20, 23, 26)');
});

test('at 360 pixels nothing is cut off, and chat and cache take turns', async () => {
    const page = await it.open({ viewport: { width: 360, height: 740 } });
    it.mock.cells = () => cellsOf([{ piece: 'x'.repeat(500) }]);
    await say(page, 'y'.repeat(500));
    const wide = () => page.evaluate(() => document.scrollingElement.scrollWidth);
    assert.equal(await wide(), 360);
    assert.equal(await page.getByLabel('Layer').isVisible(), false);
    await page.getByRole('button', { name: 'Cache', exact: true }).click();
    await page.locator('#t0').waitFor();
    assert.equal(await wide(), 360);
    assert.equal(await page.getByLabel('Your message').isVisible(), false);
    const outside = await page
        .locator('button:visible, select:visible, dd:visible, #tokens .t')
        .evaluateAll((all) =>
            all
                .filter((e) => e.getBoundingClientRect().right > 360 || e.getBoundingClientRect().left < 0)
                .map((e) => e.outerHTML),
        );
    assert.deepEqual(outside, []);
});

test('all is reached with the Tab key, in the order of the page', async () => {
    const page = await it.open();
    it.mock.cells = () => cellsOf([{}, {}]);
    await say(page, 'Hi');
    await page.locator('#t1').waitFor();
    await page.getByRole('button', { name: 'New conversation' }).focus();
    const names = [];
    for (let i = 0; i < 16 && names.at(-1) !== 'tokens'; i++) {
        await page.keyboard.press('Tab');
        names.push(await page.evaluate(() => document.activeElement.id || document.activeElement.textContent));
    }
    assert.deepEqual(names, ['open-settings', 'messages', 'Answer again', 'text', 'send', 'layer', 'tokens']);
});

test('the page asks nobody but its server', async () => {
    const page = await it.open();
    const asked = [];
    page.on('request', (request) => asked.push(request.url()));
    await page.reload();
    await say(page, 'Hi');
    assert.ok(asked.length > 10);
    assert.deepEqual(
        asked.filter((url) => !url.startsWith(it.mock.url)),
        [],
    );
});
