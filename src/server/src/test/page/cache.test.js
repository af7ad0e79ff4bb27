import assert from 'node:assert/strict';
import { test } from 'node:test';
import { cellsOf } from './mock.js';
import { browser, say } from './setup.js';

const it = browser();
const GROUPED = [
    { piece: 'The' },
    { piece: ' quick', fate: 'merged', into: 1, shares: [0.25, 0.75, 0] },
    { piece: ' brown', fate: 'merged', into: 1, shares: [0, 1, 0] },
    { piece: ' fox', fate: 'dropped', shares: [0, 0, 1] },
    { piece: ' jumps', shares: [0.5, 0.25, 0.25] },
    { piece: ' over', fate: 'merged', into: 6, shares: [0, 1, 0] },
    { piece: ' it', shares: [1, 0, 0] }, // a pivot that the server calls kept
];
const shown = async (page) => page.locator('#tokens').waitFor();
const classes = (page) => page.locator('#tokens .t').evaluateAll((all) => all.map((t) => t.className));
const lit = (page) => page.locator('#tokens [data-lit]').allTextContents();
const legend = (page) =>
    page
        .locator('#legend li:visible')
        .evaluateAll((all) => all.map((li) => li.innerText.replace(/\s+/g, ' ').trim()));
/** Counts what happens in the token view from now on: of each kind of change, the tokens it met. */
const watch = (page) =>
    page.evaluate(() => {
        window.seen = { added: 0, removed: 0, changed: 0 };
        const isToken = (n) => n.classList?.contains('t') || n.classList?.contains('block');
        const count = (nodes) =>
            [...nodes].filter(isToken).reduce((n, e) => n + (e.querySelectorAll?.('.t').length || 1), 0);
        new MutationObserver((records) => {
            for (const r of records) {
                window.seen.added += count(r.addedNodes);
                window.seen.removed += count(r.removedNodes);
                if (r.type === 'attributes' && r.target.classList.contains('t')) window.seen.changed++;
                if (r.type === 'characterData') window.seen.changed++;
            }
        }).observe(document.getElementById('tokens'), {
            childList: true,
            subtree: true,
            characterData: true,
            attributes: true,
        });
    });
const seen = (page) => page.evaluate(() => window.seen);

test('over all heads: shades by share, and the mean of a head in the legend', async () => {
    const page = await it.open();
    it.mock.cells = () => cellsOf(GROUPED, { pinned: 1, cells: 5, allocated: 256, mib: 4.25 });
    await say(page, 'Hi');
    await shown(page);
    assert.deepEqual(await classes(page), [
        't d0 m0 pinned',
        't d0 m3',
        't d0 m4',
        't d4 m0 gone',
        't d1 m1',
        't d0 m4',
        't d0 m0',
    ]);
    assert.deepEqual(await legend(page), [
        'kept 3 39 %',
        'merged 3 43 %',
        'dropped 1 18 %',
        'pinned 1',
        'mean over heads',
    ]);
    assert.equal(await page.locator('#cells').textContent(), '5 of 256');
    assert.equal(await page.locator('#mib').textContent(), '4.3 MiB');
    await page.locator('#t4').hover();
    assert.equal(
        await page.locator('#detail').textContent(),
        'Token 4 ‘␣jumps’, id 1004 · kept in 50 % of the heads, merged in 25 %, dropped in 25 %',
    );
    assert.deepEqual(await lit(page), []);
});

test('in one head: fates, and the group of a token that is pointed at or reached by keys', async () => {
    const page = await it.open();
    it.mock.cells = () => cellsOf(GROUPED);
    await say(page, 'Hi');
    await shown(page);
    await page.getByLabel('Layer').selectOption('29');
    await page.locator('#tokens .merged').first().waitFor();
    assert.equal(it.mock.cellsAsked.at(-1), '?layer=29&head=0');
    await page.getByLabel('KV head').selectOption('2');
    while (it.mock.cellsAsked.at(-1) !== '?layer=29&head=2') await page.waitForTimeout(10);
    assert.deepEqual(await classes(page), [
        't kept',
        't pivot',
        't merged',
        't dropped',
        't kept',
        't merged',
        't pivot',
    ]);
    assert.deepEqual((await legend(page)).slice(0, 4), [
        'kept 3 43 %',
        'merged 3 43 %',
        'dropped 1 14 %',
        'pivot 2',
    ]);

    await page.locator('#t2').hover();
    assert.deepEqual(await lit(page), [' quick', ' brown']);
    assert.match(await page.locator('#detail').textContent(), /merged into token 1 ‘␣quick’, a group of 2$/);
    await page.locator('#t6').hover();
    assert.deepEqual(await lit(page), [' over', ' it']);
    assert.match(await page.locator('#detail').textContent(), /· kept, with 1 merged into it$/);
    await page.locator('#cache-title').hover();
    assert.deepEqual(await lit(page), []);

    await page.getByLabel('KV head').press('Tab');
    const at = () => page.locator('#tokens').getAttribute('aria-activedescendant');
    assert.equal(await at(), 't0');
    for (const [key, want, group] of [
        ['ArrowRight', 't1', [' quick', ' brown']],
        ['ArrowLeft', 't0', []],
        ['ArrowLeft', 't0', []],
        ['End', 't6', [' over', ' it']],
        ['ArrowRight', 't6', [' over', ' it']],
        ['m', 't1', [' quick', ' brown']],
        ['m', 't2', [' quick', ' brown']],
        ['m', 't5', [' over', ' it']],
        ['Home', 't0', []],
        ['PageDown', 't6', [' over', ' it']],
    ]) {
        await page.keyboard.press(key);
        assert.equal(await at(), want, key);
        assert.deepEqual(await lit(page), group, key);
        assert.equal(await page.locator('[aria-selected=true]').getAttribute('id'), want);
    }
    await page.getByLabel('Layer').selectOption('');
    await page.locator('.t.m4').first().waitFor();
    assert.equal(await page.getByLabel('KV head').isDisabled(), true);
});

test('pieces are text, whatever they hold', async () => {
    const page = await it.open();
    const pieces = [
        '<img src=x onerror="document.title=1">',
        '<script>document.title=2</script>',
        '</span></div>',
        '&lt;',
        [0xf0, 0x9f],
        '\u0000\u202e',
        '\ud83d',
        '',
        '\n',
        '<|im_start|>',
    ];
    it.mock.cells = () => cellsOf(pieces.map((piece) => ({ piece })));
    await say(page, 'Hi');
    await shown(page);
    assert.deepEqual(await page.locator('#tokens .t').allTextContents(), [
        '<img src=x onerror="document.title=1">',
        '<script>document.title=2</script>',
        '</span></div>',
        '&lt;',
        '⟨F0 9F⟩',
        '␀⟨U+202E⟩',
        '\ufffd',
        '⟨⟩',
        '↵\n',
        '<|im_start|>',
    ]);
    for (let i = 0; i < pieces.length; i++) await page.locator(`#t${i}`).hover();
    assert.equal(await page.locator('#tokens img, #tokens script, #detail *').count(), 0);
    assert.equal(await page.title(), 'kvmerge');
});

test('an update of 5,000 tokens touches only what changed', async () => {
    const page = await it.open();
    const tokens = Array.from({ length: 5000 }, (_, i) => ({ piece: i % 40 === 39 ? '\n' : ` w${i}` }));
    it.mock.cells = () => cellsOf(tokens);
    await say(page, 'Hi');
    await shown(page);
    assert.equal(await page.locator('#tokens .t').count(), 5000);
    const blocks = await page.locator('#tokens .block').count();
    assert.ok(blocks >= 17 && blocks <= 84, `${blocks} blocks`); // 60 to 300 tokens each
    assert.equal(
        await page
            .locator('#tokens .block')
            .first()
            .evaluate((b) => getComputedStyle(b).contentVisibility),
        'auto',
    );

    await watch(page);
    tokens[7].shares = [0, 1, 0];
    tokens[4000].shares = [0, 0, 1];
    tokens.push({ piece: ' new' }, { piece: ' ones' });
    const asked = it.mock.cellsAsked.length;
    await say(page, 'More');
    while (it.mock.cellsAsked.length === asked) await page.waitForTimeout(10);
    await page.locator('#t5001').waitFor({ state: 'attached' });
    assert.deepEqual(await seen(page), { added: 2, removed: 0, changed: 2 });
    assert.equal(await page.locator('#t4000').getAttribute('class'), 't d4 m0 gone');

    // An edited history: only from the block on that holds the first other token.
    tokens[4990].id = 1;
    tokens.length = 4995;
    await page.evaluate(() => (window.seen = { added: 0, removed: 0, changed: 0 }));
    await say(page, 'And more');
    await page.locator('#t4995').waitFor({ state: 'detached' });
    const { added, removed, changed } = await seen(page);
    assert.ok(removed >= 12 && removed <= 302 && added === removed - 7, JSON.stringify({ added, removed }));
    assert.equal(changed, 0);
    assert.equal(await page.locator('#tokens .t').count(), 4995);
});

test('a token that was current and is gone is current no more', async () => {
    const page = await it.open();
    it.mock.cells = () => cellsOf(GROUPED);
    await say(page, 'Hi');
    await shown(page);
    await page.locator('#tokens').focus();
    await page.keyboard.press('End');
    it.mock.cells = () => cellsOf(GROUPED.slice(0, 2));
    await say(page, 'Hi');
    await page.locator('#t2').waitFor({ state: 'detached' });
    assert.equal(await page.locator('#tokens').getAttribute('aria-activedescendant'), null);
    await page.locator('#tokens').focus();
    await page.keyboard.press('End');
    assert.equal(await page.locator('#tokens').getAttribute('aria-activedescendant'), 't1');
});

test('during an answer the cells are asked for, once a second at most, of the slot that is named', async () => {
    const page = await it.open();
    const slots = new Set();
    let during = 0;
    let isOver = false;
    it.mock.cells = (layer, head, slot) => {
        slots.add(slot);
        during += isOver ? 0 : 1;
        return cellsOf([isOver ? { piece: 'after', id: 2 } : { piece: 'during', id: 1 }]);
    };
    it.mock.chat = async (answer) => {
        answer.begin(3);
        for (let i = 0; i < 25; i++) {
            answer.text(` ${i}`);
            await new Promise((resolve) => setTimeout(resolve, 100));
        }
        isOver = true;
        answer.end({ kvmerge: { slot: 3 } });
    };
    await say(page, 'Count');
    assert.ok(during >= 2, `${during} requests in 2.5 seconds`);
    await page.getByRole('option', { name: 'after' }).waitFor(); // and once when it is over
    assert.deepEqual([...slots], [3]);
    const times = await page.evaluate(() =>
        performance
            .getEntriesByType('resource')
            .filter((e) => /cells/.test(e.name))
            .map((e) => e.startTime),
    );
    for (let i = 1; i < times.length; i++) assert.ok(times[i] - times[i - 1] > 990, `${times}`);
});

test('speed: as the server says, else as the chunks came', async () => {
    const page = await it.open();
    const figures = () => page.locator('.figures dd').allTextContents();
    it.mock.chat = (answer) =>
        answer.says('One two three.', {
            usage: { prompt_tokens: 231, completion_tokens: 18, prompt_tokens_details: { cached_tokens: 208 } },
            timings: { prompt_n: 23, prompt_per_second: 1412.6, predicted_n: 18, predicted_per_second: 47.31 },
            kvmerge: { cells: 192, allocated: 2048, mib: 120.4 },
        });
    it.mock.cells = () => null;
    await say(page, 'Hi');
    const [, , prompt, generation, first] = await figures();
    assert.deepEqual([prompt, generation], ['1,413 tok/s', '47.3 tok/s']);
    assert.match(first, /^[\d.]+ s$/);
    assert.equal(
        await page.locator('.assistant .note').textContent(),
        '18 tokens written · 23 of 231 prompt tokens read · 47.3 tokens/s',
    );
    await page.getByText('The server no longer holds this conversation').waitFor();

    it.mock.chat = async (answer) => {
        answer.begin();
        for (let i = 0; i < 6; i++) {
            answer.text(' x');
            await new Promise((resolve) => setTimeout(resolve, 50));
        }
        answer.end({ usage: { completion_tokens: 6, prompt_tokens: 1 }, reason: 'length' });
    };
    await say(page, 'Hi');
    const [, , , measured] = await figures();
    assert.match(measured, /^[\d.,]+ tok\/s$/);
    assert.ok(Number.parseFloat(measured) > 0, measured);
    assert.match(await page.locator('.assistant .note').last().textContent(), /^cut at the most tokens allowed/);
});

test("after a reload the cells are shown where they are still this conversation's", async () => {
    const page = await it.open();
    it.mock.cells = () => cellsOf(GROUPED);
    await say(page, 'Hi');
    await shown(page);
    await page.reload();
    await shown(page);
    assert.equal(await page.locator('#tokens .t').count(), 7);

    it.mock.cells = () => cellsOf([{ piece: 'SECRET', id: 5 }]);
    await page.getByLabel('Layer').selectOption('1');
    await page.getByText('Another conversation has this slot now').waitFor();
    await page.reload();
    await page.getByText('Another conversation has this slot now').waitFor();
    assert.equal(await page.getByText('SECRET').count(), 0);
    assert.equal(await page.locator('#cells').textContent(), '–');

    for (const gone of [null, cellsOf([])]) {
        it.mock.cells = () => gone;
        await page.reload();
        await page.getByText('The server no longer holds this conversation').waitFor();
    }
});

test('a new conversation empties the pane, and what comes too late is not shown', async () => {
    const page = await it.open();
    it.mock.cells = () => cellsOf(GROUPED);
    await say(page, 'Hi');
    await shown(page);
    let late;
    await page.route('**/cells*', async (route) => (late = () => route.continue()));
    await page.getByLabel('Layer').selectOption('1');
    while (!late) await page.waitForTimeout(10);
    await page.getByRole('button', { name: 'New conversation' }).click();
    await late().catch(() => {}); // the page has broken the request off
    await page.locator('#help').waitFor();
    await page.waitForTimeout(200);
    assert.equal(await page.locator('#tokens .t').count(), 0);
    assert.deepEqual(await page.locator('.figures dd').allTextContents(), ['–', '–', '–', '–', '–']);
});

test('a click on the strip goes to the tokens there', async () => {
    const page = await it.open();
    it.mock.cells = () => cellsOf(Array.from({ length: 4000 }, () => ({})));
    await say(page, 'Hi');
    await shown(page);
    const { width } = await page.locator('#map').boundingBox();
    await page.locator('#map').click({ position: { x: width / 2, y: 10 } });
    const at = Number((await page.locator('#tokens').getAttribute('aria-activedescendant')).slice(1));
    assert.ok(Math.abs(at - 2000) < 20, `token ${at}`);
    await page.waitForFunction((id) => {
        const { top, bottom } = document.getElementById(id).getBoundingClientRect();
        const box = document.getElementById('tokens').getBoundingClientRect();
        return top >= box.top - 1 && bottom <= box.bottom + 1;
    }, `t${at}`);
});
