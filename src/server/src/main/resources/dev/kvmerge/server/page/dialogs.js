import { key, settings } from './store.js';

const NUMBERS = ['temperature', 'top_k', 'top_p', 'min_p', 'repeat_penalty', 'seed', 'max_tokens'];
const byId = (id) => document.getElementById(id);

/** What the reader has set, as fields of a request. */
export function sampling() {
    const set = settings.get();
    return Object.fromEntries(
        NUMBERS.filter((name) => Number.isFinite(set[name])).map((name) => [name, set[name]]),
    );
}

export const systemPrompt = () => (typeof settings.get().system === 'string' ? settings.get().system.trim() : '');

/** Sets up the dialog of system prompt and sampling. @param onChange called once something was saved */
export function setUpSettings(onChange) {
    const dialog = byId('settings');
    const form = byId('settings-form');
    byId('open-settings').addEventListener('click', () => {
        for (const name of ['system', ...NUMBERS]) form.elements[name].value = settings.get()[name] ?? '';
        dialog.showModal();
    });
    byId('cancel-settings').addEventListener('click', () => dialog.close());
    byId('reset-settings').addEventListener('click', () => form.reset());
    // Not on the dialog's close event: that comes after Escape too.
    form.addEventListener('submit', () => {
        const set = {};
        if (form.elements.system.value.trim()) set.system = form.elements.system.value;
        for (const name of NUMBERS)
            if (form.elements[name].value !== '') set[name] = form.elements[name].valueAsNumber;
        settings.set(set);
        onChange();
    });
}

/** Shows the server's own sampling where nothing is set. @param params default_generation_settings.params of /props */
export function showDefaults(params) {
    for (const name of NUMBERS) {
        const value = params?.[name];
        // llama.cpp says -1 for "no end", and the greatest seed for "any".
        const usable = Number.isFinite(value) && value >= 0 && value !== 4294967295;
        byId('settings-form').elements[name].placeholder = usable ? String(Number(value.toPrecision(6))) : '';
    }
}

/** Asks for the API key. @returns whether one was given */
export function askForKey() {
    const dialog = byId('key');
    const form = byId('key-form');
    form.reset();
    return new Promise((resolve) => {
        const given = () => key.set(form.elements.key.value);
        const cancel = () => dialog.close('');
        form.addEventListener('submit', given, { once: true });
        byId('cancel-key').addEventListener('click', cancel, { once: true });
        dialog.returnValue = '';
        let done = false;
        form.addEventListener('submit', () => (done = true), { once: true });
        dialog.addEventListener(
            'close',
            () => {
                form.removeEventListener('submit', given);
                byId('cancel-key').removeEventListener('click', cancel);
                resolve(done);
            },
            { once: true },
        );
        dialog.showModal();
    });
}
