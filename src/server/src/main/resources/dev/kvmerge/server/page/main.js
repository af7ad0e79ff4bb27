import { complete, get } from './api.js';
import { CachePane } from './cachepane.js';
import { Chat } from './chat.js';
import { askForKey, sampling, setUpSettings, showDefaults, systemPrompt } from './dialogs.js';
import { conversation } from './store.js';
import { Turn } from './turn.js';

/** A server that is gone is asked so often whether it is back, in milliseconds. */
const BACK = 3000;
const byId = (id) => document.getElementById(id);
const text = byId('text');

// The conversation: its messages, the slot that read it last, and the fingerprint of its tokens there.
let { messages, slot = null, print = null } = conversation.get();
let before = null; // the conversation that "New conversation" put away
let running = null; // the AbortController of the answer that is being written
let over = Promise.resolve(); // when that answer is over, and all is put where it belongs
let asking = null; // the timer that asks whether the server is back

const pane = new CachePane((fingerprint) => {
    print = fingerprint;
    save();
});
const chat = new Chat(byId('messages'), {
    onSuggestion: (suggestion) => send(suggestion),
    onAgain: () => again(),
    onRestore: () => switchTo(before),
});

function save() {
    conversation.set({ messages, slot, print });
}

function send(content) {
    if (running || !content.trim()) return;
    over = (async () => {
        messages.push({ role: 'user', content });
        const shown = chat.add(messages.at(-1));
        if (await answer()) return;
        // Without an answer the message goes back to where it can be changed and sent again.
        messages.pop();
        shown.remove();
        if (messages.length === 0) chat.show(messages, systemPrompt(), before !== null);
        setText(text.value.trim() ? `${content}\n\n${text.value}` : content);
        save();
    })();
}

/** Has the last answer written anew. */
function again() {
    if (running) return;
    over = (async () => {
        const old = messages.pop();
        chat.removeLast();
        if (await answer()) return;
        messages.push(old);
        chat.add(old).finish();
        save();
    })();
}

/** Asks for an answer to the conversation. @returns whether one came, or a part of one */
async function answer() {
    running = new AbortController();
    setRunning(true);
    let heard = false;
    try {
        for (let ask = true; ask;) {
            const failure = await attempt(running.signal);
            heard = messages.at(-1).role === 'assistant';
            ask = failure?.status === 401 && (await askForKey());
            if (!ask) tell(failure, heard);
            else connect();
        }
    } finally {
        running = null;
        setRunning(false);
    }
    return heard;
}

/** One request. @returns what went wrong, or null */
async function attempt(signal) {
    const turn = new Turn();
    let shown = null;
    let failure = null;
    pane.begin();
    try {
        await complete(request(), signal, (chunk) => {
            const more = turn.take(chunk);
            if (more && !shown) {
                messages.push(turn.message);
                shown = chat.add(turn.message);
            } else if (more) {
                shown.append(more);
            }
            slot = turn.slot ?? slot;
            print = null;
            if (turn.slot !== null) pane.progress(turn.slot);
            pane.usage(turn.cells);
            pane.speed(turn.speed());
        });
    } catch (e) {
        failure = e;
    }
    pane.end();
    if (shown) {
        turn.message.note = turn.note(failure?.name === 'AbortError', failure !== null);
        shown.finish(turn.message.note);
    }
    save();
    return failure;
}

function request() {
    const system = systemPrompt();
    const spoken = messages.map(({ role, content }) => ({ role, content }));
    return {
        messages: system ? [{ role: 'system', content: system }, ...spoken] : spoken,
        stream: true,
        stream_options: { include_usage: true },
        ...sampling(),
    };
}

/** Says how an answer ended. */
function tell(failure, heard) {
    const stopped = failure?.name === 'AbortError';
    if (stopped) byId('status').textContent = 'The answer was stopped.';
    else if (!failure && heard) byId('status').textContent = 'The answer is complete.';
    else byId('alert').textContent = failure ? failure.message : 'The model answered with nothing.';
    if (failure?.status === 0) connect();
}

function setRunning(is) {
    const button = byId('send');
    button.textContent = is ? 'Stop' : 'Send';
    button.classList.toggle('stop', is);
    byId('messages').ariaBusy = String(is); // so that a screen reader reads the answer once it is whole
    if (is) {
        byId('alert').textContent = '';
        byId('status').textContent = 'The model is answering.';
    }
}

async function switchTo(next) {
    running?.abort();
    await over;
    before = messages.length ? { messages, slot, print } : before;
    ({ messages, slot, print } = next ?? { messages: [], slot: null, print: null });
    byId('alert').textContent = '';
    pane.reset();
    pane.show(slot, print);
    chat.show(messages, systemPrompt(), before !== null);
    save();
    text.focus();
}

/** Asks who answers here; again and again while nobody does. */
async function connect() {
    clearTimeout(asking);
    try {
        const props = await get('props');
        const own = props.kvmerge ?? {};
        const name =
            props.model_alias ||
            String(props.model_path ?? '')
                .split(/[\\/]/)
                .pop() ||
            'a model';
        const details = [name];
        if (own.cells) details.push(`${own.cells.toLocaleString('en')} cells`);
        if (own.strategy) details.push(own.strategy);
        byId('server').textContent = details.join(' · ');
        byId('dot').className = 'dot up';
        pane.shape(own.layers, own.kv_heads);
        showDefaults(props.default_generation_settings?.params);
    } catch (e) {
        byId('dot').className = 'dot down';
        const why = {
            0: 'The server does not answer',
            401: 'The server asks for an API key',
            503: 'The server is loading',
        };
        byId('server').textContent = why[e.status] ?? e.message;
        if (e.status === 0 || e.status === 503) asking = setTimeout(connect, BACK);
        return e.status;
    }
    return 200;
}

function setText(value) {
    text.value = value;
    // The field grows with its text; style.css says how far.
    text.style.height = 'auto';
    text.style.height = `${text.scrollHeight + 2}px`;
}

function setView(view) {
    document.body.dataset.view = view;
    for (const button of document.querySelectorAll('.views button')) {
        button.ariaPressed = String(button.dataset.view === view);
    }
    if (view === 'cache') pane.shown();
}

byId('composer').addEventListener('submit', (e) => {
    e.preventDefault();
    const content = text.value;
    if (running) running.abort();
    else if (content.trim()) {
        setText('');
        send(content);
    }
});
text.addEventListener('input', () => setText(text.value));
text.addEventListener('keydown', (e) => {
    if (e.key !== 'Enter' || e.shiftKey || e.isComposing) return;
    e.preventDefault();
    if (!running) byId('composer').requestSubmit();
});
document.addEventListener('keydown', (e) => {
    if (e.key === 'Escape' && running && !document.querySelector('dialog[open]')) running.abort();
});
byId('new').addEventListener('click', () => switchTo(null));
for (const button of document.querySelectorAll('.views button')) {
    button.addEventListener('click', () => setView(button.dataset.view));
}
document.addEventListener('visibilitychange', () => document.hidden || pane.shown());
addEventListener('pagehide', save);

setUpSettings(() => over.then(() => chat.show(messages, systemPrompt(), before !== null)));
chat.show(messages, systemPrompt());
connect().then(async (status) => {
    if (status === 401 && (await askForKey())) await connect();
    pane.show(slot, print);
});
