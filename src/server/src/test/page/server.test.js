import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { missing, mixed, serve, SYSTEM, talk } from './serve.js';
import { launch } from './setup.js';

// In CI it must be there.
const skip = missing && !process.env.CI ? `${missing} is not here: 'make build setup' brings it` : false;
let server;
let browser;

before(async () => {
    if (skip) return;
    server = await serve();
    browser = await launch();
});

after(async () => {
    await browser?.close();
    await server?.stop();
});

test('a conversation with SmolLM2 outgrows its cells: some tokens are dropped, some merged', { skip }, async () => {
    const page = await (await browser.newContext()).newPage();
    const errors = [];
    page.on('pageerror', (e) => errors.push(String(e)));
    page.setDefaultTimeout(300_000);
    await page.goto(server.url);
    await page.getByText('SmolLM2-135M-Instruct · 256 cells · entropy-merged').waitFor();
    await talk(page, { Temperature: '0', 'Tokens at most': '80' });

    const counted = async (kind) => Number(await page.locator(`#count-${kind}`).textContent());
    // The answer's last token is in the cache once something follows it.
    await page.waitForFunction(() => document.querySelectorAll('#tokens .t').length > 400);
    assert.ok((await counted('dropped')) > 0);
    assert.ok((await counted('merged')) > 0);
    const [, used, allocated] = /^(\d+) of (\d+)$/.exec(await page.locator('#cells').textContent());
    assert.ok(Number(used) > 0 && Number(used) <= Number(allocated), `${used} of ${allocated}`);
    assert.ok((await counted('kept')) <= Number(used));
    assert.match(await page.locator('#mib').textContent(), /^\d+\.\d MiB$/);
    for (const speed of ['#prompt-speed', '#speed']) {
        assert.match(await page.locator(speed).textContent(), /^[\d.,]+ tok\/s$/);
    }

    // What was read stands there, the template's tokens too, and each head keeps the system prompt, which is pinned.
    const tokens = await page
        .locator('#tokens .t')
        .evaluateAll((all) => all.map((t) => ({ piece: t.textContent, kept: t.matches('.d0.m0') })));
    const system = tokens.slice(0, 1 + tokens.findIndex(({ piece }) => piece === '<|im_end|>'));
    assert.equal(system.map(({ piece }) => piece).join(''), `<|im_start|>system↵\n${SYSTEM}<|im_end|>`);
    assert.deepEqual(
        system.filter(({ kept }) => !kept),
        [],
    );

    const [layer, head] = await mixed(server.url);
    await page.getByLabel('Layer').selectOption(String(layer));
    await page.getByLabel('KV head').selectOption(String(head));
    await page.locator('#tokens .merged').first().waitFor({ state: 'attached' });
    await page.locator('#tokens').press('Home');
    await page.locator('#tokens').press('m');
    assert.match(await page.locator('#detail').textContent(), /merged into token \d+/);
    assert.ok((await page.locator('#tokens [data-lit]').count()) > 1);
    assert.deepEqual(errors, []);
});
