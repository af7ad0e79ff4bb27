import { get } from './api.js';
import { TokenMap } from './tokenmap.js';
import { groupsOf, TokenView } from './tokenview.js';

/** The server is asked at most so often, in milliseconds, while an answer runs. */
const EVERY = 1000;
const byId = (id) => document.getElementById(id);
const number = (value, digits = 0) =>
    value.toLocaleString('en', { minimumFractionDigits: digits, maximumFractionDigits: digits });

/** The right half of the page: what the cache holds of the conversation, and how fast it went. */
export class CachePane {
    #slot = null;
    #known = null; // the fingerprint of our tokens, once an answer is over
    #running = false;
    #last = 0;
    #timer = null;
    #asking = null; // aborts the request that is under way
    #again = false;
    #onKnown;
    #view;
    #map;

    /** @param onKnown called with the fingerprint of the conversation's tokens, once its answer is over */
    constructor(onKnown) {
        this.#onKnown = onKnown;
        this.#map = new TokenMap(byId('map'), (index) => this.#view.activate(index));
        this.#view = new TokenView(byId('tokens'), (index, group) => {
            this.#map.point(index, group);
            byId('detail').textContent = this.#view.describe(index);
        });
        byId('layer').addEventListener('change', () => this.#choose());
        byId('head').addEventListener('change', () => this.#choose());
        this.#clear('');
    }

    /** How many layers and KV heads there are to choose from. */
    shape(layers, heads) {
        options(byId('layer'), layers);
        options(byId('head'), heads);
    }

    /** Shows a slot that read this conversation earlier, if it still holds it. */
    show(slot, fingerprint) {
        this.#slot = slot;
        this.#known = fingerprint;
        if (slot !== null && fingerprint) this.#ask();
    }

    /** An answer begins. Which slot reads it is told later. */
    begin() {
        this.#running = true;
        this.#known = null;
    }

    /** An answer goes on, in this slot. */
    progress(slot) {
        this.#slot = slot;
        this.#schedule();
    }

    /** The answer is over. */
    end() {
        this.#running = false;
        if (this.#slot !== null) this.#schedule(true); // in sight or not, so that the tokens are known as ours
    }

    /** The pane came into sight. */
    shown() {
        if (this.#slot !== null) this.#schedule();
    }

    /** @param stats { promptSpeed, speed } in tokens a second, { first } in seconds; what is missing is not known */
    speed({ promptSpeed, speed, first }) {
        byId('prompt-speed').textContent = promptSpeed
            ? `${number(promptSpeed, promptSpeed < 10 ? 1 : 0)} tok/s`
            : '–';
        byId('speed').textContent = speed ? `${number(speed, speed < 100 ? 1 : 0)} tok/s` : '–';
        byId('first').textContent = first === undefined ? '–' : `${number(first, first < 10 ? 2 : 1)} s`;
    }

    /** Cells in use and allocated, and their memory. */
    usage({ cells, allocated, mib }) {
        if (cells !== undefined) byId('cells').textContent = `${number(cells)} of ${number(allocated)}`;
        if (mib !== undefined) byId('mib').textContent = `${number(mib, mib < 100 ? 1 : 0)} MiB`;
    }

    /** A new conversation. */
    reset() {
        clearTimeout(this.#timer);
        this.#timer = null;
        this.#asking?.abort();
        this.#slot = null;
        this.#known = null;
        this.#running = false;
        this.speed({});
        this.#clear('');
    }

    #clear(note) {
        byId('cells').textContent = byId('mib').textContent = '–';
        for (const kind of ['kept', 'merged', 'dropped']) {
            byId(`count-${kind}`).textContent = '–';
            byId(`share-${kind}`).textContent = '';
        }
        byId('count-of').textContent = '';
        count('pivots', 0);
        count('pinned', 0);
        this.#view.update([], true);
        this.#map.update([]);
        this.#showTokens(false);
        byId('cache-note').textContent = note;
    }

    #showTokens(are) {
        byId('tokens').hidden = byId('detail').hidden = !are;
        byId('help').hidden = are;
    }

    #choose() {
        const head = byId('head');
        head.disabled = byId('layer').value === '';
        if (head.disabled) head.value = '';
        else if (head.value === '') head.value = '0';
        if (this.#slot !== null) this.#ask();
    }

    #schedule(unseen = false) {
        const inSight = !document.hidden && byId('legend').offsetParent !== null;
        if (this.#timer !== null || (!inSight && !unseen)) return;
        if (this.#asking) {
            this.#again = true;
            return;
        }
        this.#timer = setTimeout(() => this.#ask(), Math.max(0, this.#last + EVERY - Date.now()));
    }

    async #ask() {
        clearTimeout(this.#timer);
        this.#timer = null;
        this.#asking?.abort();
        this.#again = false;
        const asking = (this.#asking = new AbortController());
        this.#last = Date.now();
        const over = !this.#running;
        const layer = byId('layer').value;
        const chosen = layer === '' ? '' : `?layer=${layer}&head=${byId('head').value}`;
        try {
            const cells = await get(`slots/${this.#slot}/cells${chosen}`, asking.signal);
            this.#take(cells, chosen === '', over);
        } catch (e) {
            if (asking.signal.aborted) return;
            if (e.status === 404) this.#clear(GONE);
            else byId('cache-note').textContent = e.message;
        }
        this.#asking = null;
        if (this.#again) this.#schedule(!this.#running);
    }

    #take(cells, allHeads, over) {
        const print = fingerprint(cells.tokens);
        if (over && this.#known && print !== this.#known) {
            this.#clear(cells.tokens.length ? OTHERS : GONE);
            return;
        }
        if (over && !this.#known) this.#onKnown((this.#known = print));
        if (cells.layers) this.shape(cells.layers, cells.kv_heads);
        const shares = cells.tokens.map((token) => (allHeads && token.shares) || ONE[token.fate] || ONE.kept);
        this.#showTokens(cells.tokens.length > 0);
        byId('cache-note').textContent = '';
        this.#view.update(cells.tokens, allHeads, cells.pinned ?? 0);
        this.#map.update(shares);
        this.usage(cells);
        byId('count-of').textContent = allHeads ? 'mean over heads' : '';
        count('pivots', allHeads ? 0 : groupsOf(cells.tokens).size);
        count('pinned', cells.pinned ?? 0);
        ['kept', 'merged', 'dropped'].forEach((kind, k) => {
            const sum = shares.reduce((total, share) => total + share[k], 0);
            const percent = cells.tokens.length ? Math.round((sum / cells.tokens.length) * 100) : 0;
            byId(`count-${kind}`).textContent = number(Math.round(sum));
            byId(`share-${kind}`).textContent = `${percent} %`;
        });
    }
}

const GONE = 'The server no longer holds this conversation. The next message reads it again.';
const OTHERS = 'Another conversation has this slot now. The next message reads this one again.';
const ONE = { kept: [1, 0, 0], merged: [0, 1, 0], dropped: [0, 0, 1] };

/** An entry of the legend that is there only where there is something to count. */
function count(id, number) {
    byId(id).hidden = number === 0;
    byId(`count-${id}`).textContent = String(number);
}

/** Fills a choice with "all" and the numbers below count; what is chosen stays. */
function options(select, count) {
    if (!Number.isInteger(count) || select.options.length === count + 1) return;
    const chosen = select.value;
    select.replaceChildren(new Option('all', ''), ...Array.from({ length: count }, (_, i) => new Option(i, i)));
    select.value = chosen !== '' && Number(chosen) < count ? chosen : '';
}

/** A short name of a list of tokens: their number, and FNV-1a over their ids. */
function fingerprint(tokens) {
    let hash = 0x811c9dc5;
    for (const { id } of tokens) hash = Math.imul(hash ^ id, 0x01000193) >>> 0;
    return `${tokens.length}:${hash}`;
}
