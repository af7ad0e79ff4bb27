import { isSpecial, quoted, shown } from './pieces.js';

/** A token is in a block of at most so many, which the browser lays out only where it is in sight. */
const BLOCK = 300;
/** From so many on, a block ends with the line. */
const ENOUGH = 60;
const LEVELS = 4;

/**
 * The tokens of a conversation as flowing text, each coloured by its fate. A listbox: one stop of the Tab key, arrow
 * keys inside. An update touches only the tokens whose fate changed, and adds the new ones.
 *
 * What it shows is the server's answer to /slots/{id}/cells: `tokens`, each with `id`, `piece`, `fate` (kept, merged or
 * dropped), `into` (the index of the pivot that holds it, of one layer and head) and `shares` (kept, merged, dropped;
 * over all heads).
 */
export class TokenView {
    #root;
    #onActive;
    #tokens = [];
    #classes = [];
    #spans = [];
    #blocks = []; // { element, from, to }
    #allHeads = true;
    #groups = new Map(); // pivot -> all members, itself too
    #active = -1;
    #hovered = -1;
    #lit = [];

    /** @param onActive called with the index of the token that is pointed at, or -1, and its group's indexes */
    constructor(root, onActive) {
        this.#root = root;
        this.#onActive = onActive;
        root.addEventListener('keydown', (e) => this.#key(e));
        root.addEventListener('pointerover', (e) => this.#hover(indexOf(e.target)));
        root.addEventListener('pointerleave', () => this.#hover(-1));
        root.addEventListener('click', (e) => indexOf(e.target) >= 0 && this.activate(indexOf(e.target)));
        root.addEventListener('focus', () => {
            // By the keyboard only: a click says itself which token it means.
            if (this.#active < 0 && root.matches(':focus-visible')) this.activate(this.#firstInSight());
        });
    }

    /** @param allHeads whether shades say in how many heads a token is what, instead of one head's fate */
    update(tokens, allHeads, pinned = 0) {
        const atEnd = this.#root.scrollHeight - this.#root.scrollTop - this.#root.clientHeight < 24;
        const grown = tokens.length > this.#tokens.length;
        this.#allHeads = allHeads;
        this.#groups = allHeads ? new Map() : groupsOf(tokens);
        this.#cut(firstDifference(this.#tokens, tokens));
        this.#tokens = tokens;
        for (let i = 0; i < tokens.length; i++) {
            const name = this.#className(i, pinned);
            if (i < this.#spans.length && this.#classes[i] !== name) this.#spans[i].className = name;
            this.#classes[i] = name;
        }
        this.#append();
        if (this.#active >= tokens.length) this.#setActive(-1);
        if (this.#hovered >= tokens.length) this.#hovered = -1;
        this.#point();
        if (atEnd && grown) this.#root.scrollTop = this.#root.scrollHeight;
    }

    /** Makes a token the current one and brings it into sight. */
    activate(index) {
        if (!this.#tokens.length) return;
        this.#setActive(Math.max(0, Math.min(index, this.#tokens.length - 1)));
        this.#hovered = -1;
        this.#scrollToActive();
        // Blocks that came into sight have their true heights only now.
        requestAnimationFrame(() => this.#scrollToActive());
        this.#point();
    }

    #scrollToActive() {
        this.#spans[this.#active]?.scrollIntoView({ block: 'nearest' });
    }

    /** What is to be said about a token, in words. */
    describe(index) {
        const token = this.#tokens[index];
        if (!token) return '';
        const said = [`Token ${index} ‘${quoted(token.piece)}’, id ${token.id}`];
        const pivot = token.into ?? index;
        const group = this.#groups.get(pivot);
        if (this.#allHeads) {
            const [kept, merged, dropped] = (token.shares ?? [1, 0, 0]).map((s) => `${Math.round(s * 100)} %`);
            said.push(`kept in ${kept} of the heads, merged in ${merged}, dropped in ${dropped}`);
        } else if (!group) {
            said.push(token.fate);
        } else if (pivot === index) {
            said.push(`kept, with ${group.length - 1} merged into it`);
        } else {
            said.push(
                `merged into token ${pivot} ‘${quoted(this.#tokens[pivot].piece)}’, a group of ${group.length}`,
            );
        }
        return said.join(' · ');
    }

    #className(i, pinned) {
        const token = this.#tokens[i];
        const name = ['t'];
        if (this.#allHeads) {
            const [, merged, dropped] = token.shares ?? [1, 0, 0];
            name.push(`d${level(dropped)}`, `m${level(merged)}`);
            if (dropped >= 1) name.push('gone');
        } else if (this.#groups.get(i)?.length > 1) {
            name.push('pivot');
        } else {
            name.push(token.fate);
        }
        if (isSpecial(token.piece)) name.push('special');
        if (i < pinned) name.push('pinned');
        return name.join(' ');
    }

    /** Removes the tokens from this one on; its whole block is made again. */
    #cut(from) {
        if (from >= this.#spans.length) return;
        const keep = this.#blocks.findIndex((b) => b.to > from);
        for (const block of this.#blocks.splice(keep)) block.element.remove();
        this.#spans.length = this.#blocks.at(-1)?.to ?? 0;
        this.#classes.length = this.#spans.length;
    }

    #append() {
        const added = document.createDocumentFragment();
        let block = this.#blocks.at(-1);
        let inside = document.createDocumentFragment();
        const close = () => block?.element.append(inside);
        for (let i = this.#spans.length; i < this.#tokens.length; i++) {
            if (!block || this.#isFull(block)) {
                close();
                const element = document.createElement('div');
                element.className = 'block';
                added.append(element);
                this.#blocks.push((block = { element, from: i, to: i }));
                inside = document.createDocumentFragment();
            }
            const span = document.createElement('span');
            span.id = `t${i}`;
            span.role = 'option';
            span.ariaSelected = 'false';
            span.className = this.#classes[i];
            span.textContent = shown(this.#tokens[i].piece);
            inside.append(span);
            this.#spans.push(span);
            block.to = i + 1;
        }
        close();
        this.#root.append(added);
    }

    #isFull(block) {
        const count = block.to - block.from;
        return count >= BLOCK || (count >= ENOUGH && String(this.#tokens[block.to - 1].piece).endsWith('\n'));
    }

    #setActive(index) {
        if (this.#spans[this.#active]) this.#spans[this.#active].ariaSelected = 'false';
        this.#active = index;
        if (index < 0) {
            this.#root.removeAttribute('aria-activedescendant');
        } else {
            this.#root.setAttribute('aria-activedescendant', `t${index}`);
            this.#spans[index].ariaSelected = 'true';
        }
    }

    #hover(index) {
        if (index === this.#hovered) return;
        this.#hovered = index;
        this.#point();
    }

    /** Lights the group of the token under the pointer, or else of the current one. */
    #point() {
        const index = this.#hovered >= 0 ? this.#hovered : this.#active;
        const group = this.#groups.get(this.#tokens[index]?.into ?? index) ?? [];
        const lit = group.map((i) => this.#spans[i]);
        if (index >= 0) this.#spans[index].ariaSelected = String(index === this.#active);
        for (const span of this.#lit) if (!lit.includes(span)) delete span.dataset.lit;
        for (const span of lit) if (!span.dataset.lit) span.dataset.lit = 'true';
        this.#lit = lit;
        this.#onActive(index, group);
    }

    #key(e) {
        if (e.ctrlKey || e.altKey || e.metaKey) return;
        const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, PageDown: 50, PageUp: -50 };
        let to;
        if (e.key in steps) to = this.#active + steps[e.key];
        else if (e.key === 'Home') to = 0;
        else if (e.key === 'End') to = this.#tokens.length - 1;
        else if (e.key === 'm' || e.key === 'M') to = this.#nextMerged();
        else return;
        e.preventDefault();
        this.activate(to);
    }

    #nextMerged() {
        const count = this.#tokens.length;
        for (let k = 1; k <= count; k++) {
            const i = (this.#active + k + count) % count;
            if (this.#tokens[i].fate === 'merged') return i;
        }
        return this.#active;
    }

    #firstInSight() {
        const top = this.#root.getBoundingClientRect().top;
        const block = this.#blocks.find((b) => b.element.getBoundingClientRect().bottom > top) ?? this.#blocks[0];
        if (!block) return 0;
        const spans = this.#spans.slice(block.from, block.to);
        return (
            block.from +
            Math.max(
                0,
                spans.findIndex((span) => span.getBoundingClientRect().bottom > top),
            )
        );
    }
}

const indexOf = (target) =>
    target.id?.startsWith('t') && target.role === 'option' ? Number(target.id.slice(1)) : -1;
const level = (share) => Math.round(Math.max(0, Math.min(share, 1)) * LEVELS);

function firstDifference(before, now) {
    const length = Math.min(before.length, now.length);
    for (let i = 0; i < length; i++) if (before[i].id !== now[i].id) return i;
    return length;
}

/** The groups of more than one token, by their pivot's index. */
export function groupsOf(tokens) {
    const groups = new Map();
    tokens.forEach((token, i) => {
        const pivot = token.into ?? null;
        if (token.fate !== 'merged' || pivot === null || !tokens[pivot]) return;
        if (!groups.has(pivot)) groups.set(pivot, [pivot]);
        if (pivot !== i) groups.get(pivot).push(i);
    });
    for (const [pivot, members] of groups) {
        if (members.length === 1) groups.delete(pivot);
        else members.sort((a, b) => a - b);
    }
    return groups;
}
