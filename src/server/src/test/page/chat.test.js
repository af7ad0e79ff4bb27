import assert from 'node:assert/strict';
import { test } from 'node:test';
import { browser, over, say } from './setup.js';

const it = browser();
const messages = (page) => page.locator('.message .text').allTextContents();

test('an answer is streamed, and the next request holds the whole conversation', async () => {
    const page = await it.open();
    let goOn;
    it.mock.chat = async (answer) => {
        answer.begin();
        answer.text('Half');
        await new Promise((resolve) => (goOn = resolve));
        answer.text(' and whole.');
        answer.end();
    };
    await page.getByLabel('Your message').fill('Hi');
    await page.getByLabel('Your message').press('Enter');
    await page.getByText('Half', { exact: true }).waitFor();
    assert.equal(await page.locator('#messages').getAttribute('aria-busy'), 'true');
    goOn();
    await over(page);
    assert.deepEqual(await messages(page), ['Hi', 'Half and whole.']);
    assert.equal(await page.locator('#status').textContent(), 'The answer is complete.');

    it.mock.chat = (answer) => answer.says('Sure.');
    await say(page, 'More');
    assert.deepEqual(it.mock.asked[1], {
        messages: [
            { role: 'user', content: 'Hi' },
            { role: 'assistant', content: 'Half and whole.' },
            { role: 'user', content: 'More' },
        ],
        stream: true,
        stream_options: { include_usage: true },
    });
});

test('Shift+Enter begins a line, and nothing is sent while it is empty', async () => {
    const page = await it.open();
    const text = page.getByLabel('Your message');
    await text.press('Enter');
    await text.fill('  \n ');
    await text.press('Enter');
    assert.equal(it.mock.asked.length, 0);
    await text.fill('a');
    await text.press('Shift+Enter');
    await text.pressSequentially('b');
    await text.press('Enter');
    await over(page);
    assert.equal(it.mock.asked[0].messages[0].content, 'a\nb');
});

for (const how of ['the button', 'Escape']) {
    test(`${how} stops an answer, which stays as far as it came`, async () => {
        const page = await it.open();
        let gone;
        it.mock.chat = async (answer) => {
            answer.begin();
            answer.text('Once upon');
            gone = answer.gone;
        };
        await page.getByLabel('Your message').fill('Go');
        await page.getByLabel('Your message').press('Enter');
        await page.getByText('Once upon').waitFor();
        if (how === 'Escape') await page.keyboard.press('Escape');
        else await page.getByRole('button', { name: 'Stop' }).click();
        await over(page);
        assert.equal(await gone, true); // The server saw that nobody listens any more.
        assert.deepEqual(await messages(page), ['Go', 'Once upon']);
        assert.match(await page.locator('.assistant .note').textContent(), /^stopped/);
        assert.equal(await page.locator('#alert').textContent(), '');
        it.mock.chat = (answer) => answer.says('Yes.');
        await say(page, 'On');
        assert.equal(it.mock.asked[1].messages[1].content, 'Once upon');
    });
}

test('stopped before its first token, the message goes back into the field', async () => {
    const page = await it.open();
    it.mock.chat = async (answer) => answer.begin();
    await page.getByLabel('Your message').fill('Wait');
    await page.getByLabel('Your message').press('Enter');
    await page.getByRole('button', { name: 'Stop' }).click();
    await over(page);
    assert.equal(await page.getByLabel('Your message').inputValue(), 'Wait');
    assert.deepEqual(await messages(page), []);
});

test('the conversation is there after a reload; a new one can be begun and the old one brought back', async () => {
    const page = await it.open();
    await say(page, 'Remember me');
    await page.reload();
    assert.deepEqual(await messages(page), ['Remember me', 'Hello there.']);
    await page.getByRole('button', { name: 'New conversation' }).click();
    assert.deepEqual(await messages(page), []);
    await page.getByRole('button', { name: 'Bring the last conversation back' }).click();
    assert.deepEqual(await messages(page), ['Remember me', 'Hello there.']);
    await say(page, 'Still?');
    assert.equal(it.mock.asked[1].messages.length, 3);
});

test('a new conversation ends the answer that runs, and takes nothing of it along', async () => {
    const page = await it.open();
    let gone;
    it.mock.chat = async (answer) => {
        answer.begin();
        answer.text('Long');
        gone = answer.gone;
    };
    await page.getByLabel('Your message').fill('A');
    await page.getByLabel('Your message').press('Enter');
    await page.getByText('Long').waitFor();
    await page.getByRole('button', { name: 'New conversation' }).click();
    assert.equal(await gone, true);
    await page.locator('.welcome').waitFor();
    it.mock.chat = (answer) => answer.says('New.');
    await say(page, 'B');
    assert.deepEqual(it.mock.asked[1].messages, [{ role: 'user', content: 'B' }]);
    assert.deepEqual(await messages(page), ['B', 'New.']);
});

test('an answer is written again', async () => {
    const page = await it.open();
    await say(page, 'Q');
    it.mock.chat = (answer) => answer.says('Another.');
    await page.getByRole('button', { name: 'Answer again' }).click();
    await page.getByText('Another.').waitFor();
    await over(page);
    assert.deepEqual(it.mock.asked[1].messages, [{ role: 'user', content: 'Q' }]);
    assert.deepEqual(await messages(page), ['Q', 'Another.']);

    it.mock.chat = (answer) => answer.refuses(500, 'No');
    await page.getByRole('button', { name: 'Answer again' }).click();
    await page.getByText('No.', { exact: true }).waitFor();
    assert.deepEqual(await messages(page), ['Q', 'Another.']); // The one that was there stays.
});

test('system prompt and sampling are sent as set, and kept', async () => {
    const page = await it.open();
    await page.getByRole('button', { name: 'Settings' }).click();
    assert.equal(await page.getByLabel('Temperature').getAttribute('placeholder'), '0.8');
    assert.equal(await page.getByLabel('Tokens at most').getAttribute('placeholder'), ''); // -1: no end
    await page.getByLabel('System prompt').fill('Be <brief>.');
    await page.getByLabel('Temperature').fill('0');
    await page.getByLabel('Seed').fill('7');
    await page.getByLabel('Tokens at most').fill('30');
    await page.getByRole('button', { name: 'Save' }).click();
    await page.reload();
    await say(page, 'Hi');
    const { messages: sent, stream, stream_options, ...set } = it.mock.asked[0];
    assert.deepEqual(set, { temperature: 0, seed: 7, max_tokens: 30 });
    assert.deepEqual(sent[0], { role: 'system', content: 'Be <brief>.' });
    assert.equal(await page.locator('.system .text').textContent(), 'Be <brief>.');

    await page.getByRole('button', { name: 'Settings' }).click();
    await page.getByLabel('Temperature').fill('-1');
    await page.getByRole('button', { name: 'Save' }).click();
    assert.ok(await page.locator('#settings').isVisible()); // The browser says what is wrong with it.
    await page.getByRole('button', { name: 'Clear all' }).click();
    await page.getByRole('button', { name: 'Save' }).click();
    await say(page, 'Hi');
    assert.equal(it.mock.asked[1].messages[0].role, 'user');
    assert.equal('temperature' in it.mock.asked[1], false);
});

test('what is cancelled in the settings is not set', async () => {
    const page = await it.open();
    for (const leave of [
        () => page.getByRole('button', { name: 'Cancel' }).click(),
        () => page.keyboard.press('Escape'),
    ]) {
        await page.getByRole('button', { name: 'Settings' }).click();
        await page.getByLabel('Seed').fill('7');
        await leave();
    }
    await say(page, 'Hi');
    assert.equal('seed' in it.mock.asked[0], false);
});

test('messages are text, whatever they hold', async () => {
    const page = await it.open();
    const evil = '<img src=x onerror="document.title=1"><script>document.title=2</script>&lt;b&gt; \u202eabc';
    it.mock.chat = (answer) => answer.says(evil);
    await say(page, evil);
    const want = evil.replace('\u202e', '\ufffd');
    assert.deepEqual(await messages(page), [want, want]);
    assert.equal(await page.title(), 'kvmerge');
    assert.equal(await page.locator('.message img, .message script').count(), 0);
    await page.reload();
    assert.deepEqual(await messages(page), [want, want]);
});

test('an answer that comes faster than the screen is drawn is shown a screen at a time', async () => {
    const page = await it.open();
    const words = Array.from({ length: 5000 }, (_, i) => ` w${i}`);
    it.mock.chat = (answer) => {
        answer.begin();
        for (const word of words) answer.text(word);
        answer.end();
    };
    await page.evaluate(() => {
        window.changes = 0;
        new MutationObserver((records) => (window.changes += records.length)).observe(
            document.getElementById('messages'),
            { childList: true, subtree: true, characterData: true },
        );
    });
    await say(page, 'Fast');
    assert.equal(await page.locator('.assistant .text').textContent(), words.join(''));
    const changes = await page.evaluate(() => window.changes);
    assert.ok(changes < 1000, `${changes} changes for 5,000 tokens`);
});

const MARKDOWN = [
    '# A *title*',
    'Some `code <b>`, **bold <i>** and 2 * 3 ** 4; ``a``.',
    '* a point',
    '  - below it',
    '',
    '```html',
    '<script>document.title = 2</script>',
    '  ~~~',
    '',
    'last',
    '```',
    'After.',
    '~~~',
    '```',
    '~~~~',
    'end <img src=x onerror=alert(1)>',
    '```js',
    'open()',
];

test('code, bold, headings and points of an answer are shown as such, however the text is cut', async () => {
    const page = await it.open();
    const text = MARKDOWN.join('\n');
    for (const size of [1, 5, text.length]) {
        it.mock.chat = (answer) => {
            answer.begin();
            for (let i = 0; i < text.length; i += size) answer.text(text.slice(i, i + size));
            answer.end();
        };
        await page.getByRole('button', { name: 'New conversation' }).click();
        await say(page, text);
        for (const when of ['streamed', 'after a reload']) {
            assert.equal(
                await page
                    .locator('.assistant .text')
                    .evaluate((e) => e.innerHTML.replace(/ (tabindex|role)="[^"]*"/g, '')),
                [
                    '<span class="heading">A *title*\n</span>',
                    '<span class="">Some <code>code &lt;b&gt;</code>, <strong>bold &lt;i&gt;</strong> and 2 * 3 ** 4; ',
                    '<code>a</code>.\n</span>',
                    '<span class="">• a point\n</span><span class="">  • below it\n</span><span class="">\n</span>',
                    '<pre aria-label="Code: html"><code>&lt;script&gt;document.title = 2&lt;/script&gt;\n  ~~~\n\n',
                    'last</code></pre>',
                    '<span class="">After.\n</span>',
                    '<pre aria-label="Code"><code>```</code></pre>',
                    '<span class="">end &lt;img src=x onerror=alert(1)&gt;\n</span>',
                    '<pre aria-label="Code: js"><code>open()</code></pre>',
                ].join(''),
                `pieces of ${size}, ${when}`,
            );
            assert.equal(await page.locator('.user .text').textContent(), text); // what a reader writes stays as it is
            await page.reload();
        }
    }
});
