/**
 * A value as JSON in the browser's storage. Storage may be forbidden, full, or hold what another version wrote: then
 * the page goes on without, with the value that was set last.
 */
class Stored {
    #value;
    #storage;
    #name;
    #valid;

    constructor(storage, name, usual, valid) {
        this.#storage = storage;
        this.#name = `kvmerge.${name}`;
        this.#valid = valid;
        this.#value = usual;
        try {
            const value = JSON.parse(storage().getItem(this.#name));
            if (valid(value)) this.#value = value;
        } catch {
            // As above.
        }
    }

    get() {
        return this.#value;
    }

    set(value) {
        this.#value = value;
        try {
            this.#storage().setItem(this.#name, JSON.stringify(value));
        } catch {
            // As above.
        }
    }
}

const session = () => window.sessionStorage;
const local = () => window.localStorage;
const isObject = (value) => value !== null && typeof value === 'object' && !Array.isArray(value);

/** The API key, for this tab only. */
export const key = new Stored(session, 'key', '', (value) => typeof value === 'string');

/** System prompt and sampling: only what the reader has set. */
export const settings = new Stored(local, 'settings', {}, isObject);

/** The conversation of this tab: messages, and the slot that read them last. */
export const conversation = new Stored(
    session,
    'conversation',
    { messages: [], slot: null },
    (value) =>
        isObject(value) &&
        Array.isArray(value.messages) &&
        value.messages.every((m) => isObject(m) && typeof m.role === 'string' && typeof m.content === 'string'),
);
