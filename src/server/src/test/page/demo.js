import { cellsOf } from './mock.js';
import { say } from './setup.js';

const TURNS = [
    [
        'I am Mara, and I keep the lighthouse at Kinnard Point. Please remember that my lamp burns 14 litres a night.',
        [
            'Good to meet you, Mara. I will keep in mind that the lamp at Kinnard Point burns 14 litres a night.\n\n',
            'A lighthouse keeper has a long watch. If you like, we can go through the log of the week, plan the oil ',
            'for the winter, or talk until the fog lifts. What would you like to begin with?',
        ],
    ],
    [
        'Tell me how the light works. A few sentences are enough.',
        [
            'A small flame stands in the middle of a large lens. Augustin Fresnel cut the lens into rings of glass, ',
            'each of which bends the light a little more than the one inside it, so that what would have gone to ',
            'the ceiling and the floor goes out to sea in one flat beam.\n\n',
            'The lens floats on mercury and turns by clockwork. To a ship the beam sweeping past looks like a flash, ',
            'and each lighthouse has a rhythm of its own: the captain counts the seconds and knows the coast.',
        ],
    ],
    ['How much oil do I need for thirty nights?', ['Thirty nights at 14 litres each: you need 420 litres.']],
];

/** A conversation that has outgrown its cells, made by hand so that all fates are in sight. */
export async function demo(page, mock, narrow = false) {
    const read = [];
    const add = (text) => read.push(...(text.match(/<\|\w+\|>|\n| ?[^\s<]{1,6}|\s/g) ?? []));
    add('<|im_start|>system\nYou help the keeper of a lighthouse, and answer briefly.<|im_end|>\n');
    mock.cells = (layer) => fates(read, layer);
    mock.chat = async (answer, request) => {
        const [question, parts] = TURNS[request.messages.filter((m) => m.role === 'user').length - 1];
        const said = parts.join('');
        const cached = read.length;
        add(`<|im_start|>user\n${question}<|im_end|>\n<|im_start|>assistant\n`);
        const prompt = read.length;
        add(`${said}<|im_end|>\n`);
        const written = read.length - prompt;
        await answer.says(said, {
            usage: {
                prompt_tokens: prompt,
                completion_tokens: written,
                prompt_tokens_details: { cached_tokens: cached },
            },
            timings: {
                prompt_n: prompt,
                prompt_per_second: 412.6,
                predicted_n: written,
                predicted_per_second: 47.31,
            },
            kvmerge: { cells: 192, allocated: 256, mib: 4.2 },
        });
    };
    await page.getByRole('button', { name: 'Settings' }).click();
    await page.getByLabel('System prompt').fill('You help the keeper of a lighthouse, and answer briefly.');
    await page.getByRole('button', { name: 'Save' }).click();
    for (const [question] of TURNS) await say(page, question);
    if (narrow) await page.getByRole('button', { name: 'Cache', exact: true }).click();
    await page.waitForTimeout(1100); // the cells are asked for once a second
    await page.getByLabel('Layer').selectOption('14');
    const merged = page.locator('#tokens .merged');
    await merged.first().waitFor();
    await merged.nth(14).click();
}

/** Sinks and the newest are kept; in between, what a hash says. */
function fates(pieces, layer) {
    const hash = (i) => ((i * 2654435761) >>> 8) % 100;
    let pivot = null;
    const tokens = pieces.map((piece, i) => {
        const age = pieces.length - i;
        const token = { id: i, piece };
        const pressure = i < 22 || age < 60 ? 0 : Math.min(1, age / 200);
        const drop = (0.35 + 0.4 * (hash(i + 7) / 100)) * pressure;
        const merge = 0.55 * pressure * (hash(i + 3) / 100);
        token.shares = [1 - drop - merge, merge, drop];
        if (pressure && hash(i) < 45 * pressure) token.fate = 'dropped';
        else if (pressure && hash(i) < 80 * pressure && pivot !== null && i - pivot < 12) {
            token.fate = 'merged';
            token.into = pivot;
        } else if (pressure) pivot = hash(i) % 3 === 0 || pivot === null || i - pivot > 9 ? i : pivot;
        return layer === null ? { ...token, fate: 'kept', into: null } : token;
    });
    return cellsOf(tokens, { cells: 192, allocated: 256, mib: 4.2, pinned: 21 });
}
