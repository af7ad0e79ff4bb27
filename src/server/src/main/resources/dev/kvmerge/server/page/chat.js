import { readable } from './pieces.js';
import { Written } from './written.js';

const SUGGESTIONS = [
    'Tell me a long story about a lighthouse keeper.',
    'Explain how a key-value cache makes a language model faster.',
];

/** The messages of a conversation, as text: nothing in them is ever taken for HTML. */
export class Chat {
    #root;
    #onSuggestion;
    #onAgain;
    #onRestore;

    constructor(root, { onSuggestion, onAgain, onRestore }) {
        this.#root = root;
        this.#onSuggestion = onSuggestion;
        this.#onAgain = onAgain;
        this.#onRestore = onRestore;
    }

    /** Shows a whole conversation. @param canRestore whether the conversation before can be brought back */
    show(messages, system, canRestore = false) {
        this.#root.replaceChildren();
        if (system) this.#systemPrompt(system);
        if (messages.length === 0) this.#welcome(canRestore);
        for (const message of messages) this.add(message).finish();
        this.#offerAgain();
    }

    /** Adds a message below. @returns what goes on with it: append(text), finish(note), remove() */
    add(message) {
        this.#root.querySelector('.welcome')?.remove();
        this.#root.querySelector('.again')?.remove();
        const element = make('article', `message ${message.role}`);
        element.append(make('h3', 'who', message.role === 'user' ? 'You' : 'Answer'));
        const body = make('div', 'text');
        body.dir = 'auto';
        const written = new Written(body);
        if (message.role === 'user') body.textContent = readable(message.content);
        else written.append(message.content);
        element.append(body);
        if (message.note) element.append(make('p', 'note', message.note));
        this.#root.append(element);
        this.#toEnd();
        // Tokens may come faster than the screen shows them.
        let waiting = '';
        let frame = null;
        const show = () => {
            if (frame !== null) cancelAnimationFrame(frame);
            frame = null;
            const atEnd = this.#atEnd();
            if (waiting) written.append(waiting);
            waiting = '';
            if (atEnd) this.#toEnd();
        };
        return {
            append: (more) => {
                waiting += more;
                frame ??= requestAnimationFrame(show);
            },
            finish: (note) => {
                show();
                const atEnd = this.#atEnd();
                written.end();
                if (note) element.append(make('p', 'note', note));
                this.#offerAgain();
                if (atEnd) this.#toEnd();
            },
            remove: () => element.remove(),
        };
    }

    removeLast() {
        this.#root.lastElementChild?.remove();
    }

    #systemPrompt(system) {
        const element = make('details', 'message system');
        element.append(make('summary', 'who', 'System prompt, pinned'));
        const body = make('div', 'text', readable(system));
        body.dir = 'auto';
        element.append(body);
        this.#root.append(element);
    }

    #welcome(canRestore) {
        const element = make('div', 'welcome');
        element.append(
            make('p', 'lead', 'A long conversation in few cells.'),
            make(
                'p',
                '',
                'Every token that the model reads takes a cell of its key-value cache. Here their number is fixed: ' +
                    'what is needed is kept, what is alike is merged, and what nobody attends to is dropped. ' +
                    'Talk on, and see which tokens are still there.',
            ),
        );
        const list = make('ul', 'suggestions');
        for (const text of SUGGESTIONS) {
            const item = make('li');
            item.append(button(text, () => this.#onSuggestion(text)));
            list.append(item);
        }
        if (canRestore) {
            const item = make('li');
            item.append(button('Bring the last conversation back', this.#onRestore));
            list.append(item);
        }
        element.append(list);
        this.#root.append(element);
    }

    #offerAgain() {
        this.#root.querySelector('.again')?.remove();
        const last = this.#root.lastElementChild;
        if (last?.classList.contains('assistant')) {
            const again = button('Answer again', this.#onAgain);
            again.className = 'again';
            last.append(again);
        }
    }

    #atEnd() {
        const { scrollHeight, scrollTop, clientHeight } = this.#root;
        return scrollHeight - scrollTop - clientHeight < 48;
    }

    #toEnd() {
        this.#root.scrollTop = this.#root.scrollHeight;
    }
}

function make(name, className = '', text = '') {
    const element = document.createElement(name);
    if (className) element.className = className;
    if (text) element.textContent = text;
    return element;
}

function button(text, onClick) {
    const element = make('button', '', text);
    element.type = 'button';
    element.addEventListener('click', onClick);
    return element;
}
