import assert from 'node:assert/strict';
import { test } from 'node:test';
import { PAGE } from './mock.js';

const { events } = await import(`${PAGE}/sse.js`);
const { isSpecial, quoted, readable, shown } = await import(`${PAGE}/pieces.js`);

/** The events of a body that comes in pieces of so many bytes. */
async function read(text, size) {
    const bytes = new TextEncoder().encode(text);
    const body = new ReadableStream({
        start(controller) {
            for (let i = 0; i < bytes.length; i += size) controller.enqueue(bytes.slice(i, i + size));
            controller.close();
        },
    });
    const all = [];
    for await (const data of events(body)) all.push(data);
    return all;
}

test('events are the same however the body is cut, and for each line end', async () => {
    const text = ': ping\n\ndata: {"a":"héllo 👋"}\n\nevent: x\ndata:two\ndata:  lines\n\n\ndata: [DONE]\n\n';
    for (const end of ['\n', '\r\n', '\r']) {
        for (const size of [1, 2, 3, 7, 1000]) {
            const got = await read(text.replaceAll('\n', end), size);
            assert.deepEqual(got, ['{"a":"héllo 👋"}', 'two\n lines', '[DONE]'], `${JSON.stringify(end)}, ${size}`);
        }
    }
});

test('a last event counts without an empty line behind it', async () => {
    assert.deepEqual(await read('data: a\n\ndata: b', 4), ['a', 'b']);
});

test('pieces are shown by name where they are not text', () => {
    assert.equal(shown(' word'), ' word');
    assert.equal(shown('a\nb\tc'), 'a↵\nb⇥\tc');
    assert.equal(shown('\u0000\u001b\r'), '␀␛␍');
    assert.equal(shown('\u202eabc\u2066'), '⟨U+202E⟩abc⟨U+2066⟩');
    assert.equal(shown('\u200b\ufeff\u2028\u0085\u007f'), '⟨U+200B⟩⟨U+FEFF⟩⟨U+2028⟩⟨U+0085⟩⟨U+007F⟩');
    assert.equal(shown([0xf0, 0x9f]), '⟨F0 9F⟩');
    assert.equal(shown('\ud83d'), '\ufffd');
    assert.equal(shown(''), '⟨⟩');
    assert.equal(shown(undefined), '⟨⟩');
    assert.equal(shown('👋é日本'), '👋é日本');
});

test('a piece in a line of its own is cut and has no line ends', () => {
    assert.equal(quoted(' a\n'), '␣a↵');
    assert.equal(quoted('x'.repeat(100)), `${'x'.repeat(40)}…`);
    assert.equal(quoted(`${'x'.repeat(39)}👋`), `${'x'.repeat(39)}\ufffd…`);
});

test('a message keeps its line ends and loses what turns or hides text', () => {
    assert.equal(readable('a\r\nb\tc'), 'a\nb\tc');
    assert.equal(readable('\u0007\u202e\u2028\ud83d'), '␇\ufffd\ufffd\ufffd');
    assert.equal(readable('👩‍🚀 שלום'), '👩‍🚀 שלום');
});

test("a chat template's tokens are told from text", () => {
    for (const piece of ['<|im_start|>', '<s>', '</s>', '<start_of_turn>', '<｜User｜>', '<|end▁of▁sentence|>']) {
        assert.ok(isSpecial(piece), piece);
    }
    for (const piece of ['<', ' <b', 'a<s>', '<img src=x>', [60]]) assert.ok(!isSpecial(piece), String(piece));
});
