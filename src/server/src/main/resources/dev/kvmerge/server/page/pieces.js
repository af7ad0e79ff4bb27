/**
 * How a token's piece is shown. A piece is model output: anything, also half a character, a control character, or one
 * that turns the direction of the text around it. All of these are shown by name, so that nothing is hidden and nothing
 * spoils what stands beside it.
 */

const hex = (n, digits) => n.toString(16).toUpperCase().padStart(digits, '0');
// Control and format characters (bidirectional ones too), line and paragraph separators, and what is no character yet.
const HIDDEN = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Co}\p{Cn}]/gu;

/** @param {string|number[]} piece text, or bytes that are not whole UTF-8 */
export function shown(piece) {
    if (Array.isArray(piece)) return `⟨${piece.map((b) => hex(b, 2)).join(' ')}⟩`;
    const text = String(piece ?? '').toWellFormed();
    if (text === '') return '⟨⟩';
    return text.replace(HIDDEN, (c) => {
        const code = c.codePointAt(0);
        if (c === '\n') return '↵\n';
        if (c === '\t') return '⇥\t';
        if (code < 0x20) return String.fromCodePoint(0x2400 + code);
        return `⟨U+${hex(code, 4)}⟩`;
    });
}

/** The same for a line of its own: no line ends, spaces visible, cut where it is long. */
export function quoted(piece) {
    const text = shown(piece).replace(/\n/g, '').replace(/ /g, '␣');
    return text.length > 40 ? `${text.slice(0, 40).toWellFormed()}…` : text;
}

/** Whether it looks like a token of the chat template, such as <|im_start|>. */
export const isSpecial = (piece) => typeof piece === 'string' && /^<[|｜]?[\w▁/ -]+[|｜]?>$/.test(piece);

/** A message's text without what has no business in text; line ends and tabs stay. */
export const readable = (text) =>
    text.toWellFormed().replace(/[\p{Cc}\u2028\u2029\u202A-\u202E\u2066-\u2069]/gu, (c) => {
        if (c === '\n' || c === '\t') return c;
        if (c === '\r') return '';
        return c < ' ' ? String.fromCodePoint(0x2400 + c.codePointAt(0)) : '\uFFFD';
    });
