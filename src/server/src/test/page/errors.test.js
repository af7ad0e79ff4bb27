import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Mock } from './mock.js';
import { browser, over, say } from './setup.js';

const it = browser();
const alert = (page) => page.getByRole('alert').textContent();
const field = (page) => page.getByLabel('Your message').inputValue();

for (const [status, message, headers, want] of [
    [503, 'The queue is full', { 'Retry-After': '5' }, 'The queue is full. It asks to try again in 5 seconds.'],
    [503, 'The queue is full.', { 'Retry-After': '1' }, 'The queue is full. It asks to try again in a second.'],
    [503, '', {}, 'The server is busy.'],
    [400, 'max_tokens is 0: give 1 or more', {}, 'max_tokens is 0: give 1 or more.'],
    [400, '<img src=x onerror=alert(1)>', {}, '<img src=x onerror=alert(1)>.'],
]) {
    test(`refused with ${status} '${message}': said, and the message can be sent again`, async () => {
        const page = await it.open();
        it.mock.chat = (answer) => answer.refuses(status, message, headers);
        await say(page, 'Hi');
        assert.equal(await alert(page), want);
        assert.equal(await field(page), 'Hi');
        assert.equal(await page.locator('.message').count(), 0);
        it.mock.chat = (answer) => answer.says('Now.');
        await page.getByRole('button', { name: 'Send' }).click();
        await page.getByText('Now.').waitFor();
        await over(page);
        assert.equal(await alert(page), '');
        assert.deepEqual(it.mock.asked[1].messages, [{ role: 'user', content: 'Hi' }]);
    });
}

test('what was written meanwhile stays below the message that was refused', async () => {
    const page = await it.open();
    let refuse;
    it.mock.chat = (answer) => (refuse = () => answer.refuses(500, 'No'));
    await page.getByLabel('Your message').fill('First');
    await page.getByLabel('Your message').press('Enter');
    await page.getByLabel('Your message').fill('Second');
    while (!refuse) await page.waitForTimeout(10);
    refuse();
    await over(page);
    assert.equal(await field(page), 'First\n\nSecond');
});

test('an answer that is no error object is named by its status', async () => {
    const page = await it.open();
    await page.route('**/v1/chat/completions', (route) =>
        route.fulfill({ status: 502, body: '<h1>Bad gateway</h1>' }),
    );
    await say(page, 'Hi');
    assert.equal(await alert(page), 'The server answers with HTTP status 502.');
});

test('an error in the middle of an answer, and a connection that breaks off: what came stays', async () => {
    const page = await it.open();
    for (const [fail, want] of [
        [
            (answer) => answer.chunk({ error: { message: 'The generation timed out', code: 500 } }),
            'The generation timed out.',
        ],
        [(answer) => answer.raw('data: {"choi'), 'The connection broke off in the middle of the answer.'],
        [() => {}, 'The connection broke off in the middle of the answer.'],
    ]) {
        it.mock.chat = async (answer) => {
            answer.begin();
            answer.text('A part');
            fail(answer);
            answer.cut();
        };
        await say(page, 'Hi');
        assert.equal(await alert(page), want);
        assert.equal(await page.locator('.message .text').last().textContent(), 'A part');
        assert.match(await page.locator('.message .note').last().textContent(), /^broken off/);
        assert.equal(await field(page), '');
    }
});

test('an answer of no tokens is said', async () => {
    const page = await it.open();
    it.mock.chat = (answer) => answer.says('');
    await say(page, 'Hi');
    assert.equal(await alert(page), 'The model answered with nothing.');
    assert.equal(await field(page), 'Hi');
});

test('a server that is gone is said, and noticed when it is back', async () => {
    const page = await it.open();
    const { port } = it.mock;
    await it.mock.stop();
    await say(page, 'Hi');
    assert.equal(
        await alert(page),
        `The server does not answer. Is kvmerge serve still running at http://127.0.0.1:${port}?`,
    );
    await page.getByText('The server does not answer', { exact: true }).waitFor();
    it.mock = await new Mock().start(port);
    await page.getByText('SmolLM2-135M-Instruct').waitFor();
    await page.getByRole('button', { name: 'Send' }).click();
    await page.getByText('Hello there.').waitFor();
});

test('the API key is asked for, sent, and remembered by this tab', async () => {
    it.mock.key = 'secret';
    const page = await it.open();
    await page.getByRole('textbox', { name: 'API key' }).fill('secret');
    await page.keyboard.press('Enter');
    await page.getByText('SmolLM2-135M-Instruct').waitFor();
    await page.reload();
    await say(page, 'Hi');
    assert.equal(await page.locator('.message .text').last().textContent(), 'Hello there.');
    assert.deepEqual(await page.evaluate(() => Object.keys(localStorage).filter((k) => /key/.test(k))), []);
});

test('a wrong key is asked for again, and the message is not lost', async () => {
    it.mock.key = 'secret';
    const page = await it.open();
    await page.getByRole('button', { name: 'Cancel' }).click();
    await page.getByText('The server asks for an API key', { exact: true }).first().waitFor();
    await page.getByLabel('Your message').fill('Hi');
    await page.getByLabel('Your message').press('Enter');
    await page.getByRole('textbox', { name: 'API key' }).fill('wrong');
    await page.getByRole('button', { name: 'Use this key' }).click();
    await page.waitForFunction(() => document.querySelector('#key[open] input')?.value === '');
    await page.getByRole('textbox', { name: 'API key' }).fill('secret');
    await page.getByRole('button', { name: 'Use this key' }).click();
    await page.getByText('Hello there.').waitFor();
    await over(page);
    assert.equal(it.mock.asked.length, 1);

    it.mock.key = 'changed';
    await page.getByLabel('Your message').fill('Again');
    await page.getByLabel('Your message').press('Enter');
    await page.getByRole('button', { name: 'Cancel' }).click();
    await over(page);
    assert.equal(await alert(page), 'Invalid API key.');
    assert.equal(await field(page), 'Again');
});

test('storage that is forbidden or holds rubbish is done without', async () => {
    const page = await it.open();
    await page.evaluate(() => {
        sessionStorage.setItem('kvmerge.conversation', '{"messages":[{"role":1}]}');
        localStorage.setItem('kvmerge.settings', '[3');
    });
    await page.reload();
    await say(page, 'Hi');
    assert.equal(await page.locator('.message').count(), 2);
    await page.addInitScript(() => {
        const forbidden = {
            get: () => {
                throw new DOMException('no', 'SecurityError');
            },
        };
        Object.defineProperty(window, 'localStorage', forbidden);
        Object.defineProperty(window, 'sessionStorage', forbidden);
    });
    await page.reload();
    await say(page, 'Hi');
    assert.equal(await page.locator('.message').count(), 2);
});
