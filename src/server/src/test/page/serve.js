import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { say } from './setup.js';

const HOME = join(import.meta.dirname, '../../../../..');
const MODEL = join(
    process.env.KVMERGE_DOWNLOADS ?? join(HOME, 'downloads'),
    'models/SmolLM2-135M-Instruct.Q4_1.gguf',
);

/** A file that kvmerge serve needs and that is not here, or undefined. */
export const missing = [join(HOME, 'target/kvmerge.jar'), MODEL].find((file) => !existsSync(file));

/** Starts kvmerge serve with SmolLM2 and conversations of 256 cells. @returns its url, and what ends it */
export async function serve() {
    const options = ['--cells', '256', '--parallel', '1', '--port', '0', '-t', '1'];
    const server = spawn(
        join(HOME, 'bin/kvmerge'),
        ['serve', '-m', MODEL, '-a', 'SmolLM2-135M-Instruct', ...options],
        {
            stdio: ['ignore', 'pipe', 'pipe'],
        },
    );
    const over = new Promise((resolve) => server.on('exit', resolve));
    const url = await new Promise((resolve, reject) => {
        let said = '';
        const listen = (data) => {
            said += data;
            const at = /serving at (http:\S+)/.exec(said);
            if (at) resolve(`${at[1]}/`);
        };
        server.stdout.on('data', listen);
        server.stderr.on('data', listen);
        over.then((code) => reject(new Error(`kvmerge serve ended with ${code}:\n${said}`)));
    });
    const stop = () => {
        server.kill('SIGTERM');
        return over;
    };
    return { url, stop };
}

export const SYSTEM = 'You answer in one or two short sentences.';

/** Talks until the conversation has outgrown its cells. @param settings more of them, by their labels */
export async function talk(page, settings) {
    await page.getByRole('button', { name: 'Settings' }).click();
    await page.getByLabel('System prompt').fill(SYSTEM);
    for (const [label, value] of Object.entries(settings)) await page.getByLabel(label).fill(value);
    await page.getByRole('button', { name: 'Save' }).click();
    for (const message of [
        'Tell me about the sea, the tides and the moon.',
        'And what lives in the deep, where no light comes? Name a few animals, and say what they eat.',
        'Now tell me about lighthouses: who built them, how the lamps work, and what a keeper does all night.',
        'Which of the things that we talked about would you like to see yourself?',
        'Say goodbye in a friendly way, and thank me for the long talk that we had.',
    ]) {
        await say(page, message);
    }
}

/** The layer and head of the first slot in which many tokens are merged and many dropped: [layer, head]. */
export async function mixed(url) {
    const { layers, kv_heads: heads } = await (await fetch(`${url}slots/0/cells`)).json();
    let best = [0, 0];
    let most = -1;
    for (let layer = 0; layer < layers; layer++) {
        for (let head = 0; head < heads; head++) {
            const { tokens } = await (await fetch(`${url}slots/0/cells?layer=${layer}&head=${head}`)).json();
            const count = (fate) => tokens.filter((token) => token.fate === fate).length;
            const fewer = Math.min(count('merged'), count('dropped'));
            if (fewer > most) [best, most] = [[layer, head], fewer];
        }
    }
    return best;
}
