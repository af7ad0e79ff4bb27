import { readable } from './pieces.js';

const FENCE = /^ {0,3}(```+|~~~+)[ \t]*([^`\s]*)[ \t]*$/;
const INLINE = /(`+)([^`]+?)\1(?!`)|\*\*(?=\S)([^*]+?)\*\*/g;

/**
 * An answer as it is written: text, with the little of Markdown that models use most shown as such: fenced code,
 * `code`, **bold**, headings, points of a list. All is made of text nodes, so that HTML in it stays text. What was
 * written is never made again, only the line that grows, so that a selection stays.
 */
export class Written {
    #root;
    #line = ''; // that grows, without its end
    #span = null; // in which it is shown
    #code = null; // the text of the code that a fence has opened, without the line that grows
    #fence = '';
    #done = '';

    constructor(root) {
        this.#root = root;
    }

    append(text) {
        const lines = readable(text).split('\n');
        lines.forEach((part, i) => {
            this.#line += part;
            if (i < lines.length - 1) this.#endLine('\n');
        });
        this.#show('');
    }

    /** The text is whole: a last line may close a fence. */
    end() {
        if (this.#line) this.#endLine('');
    }

    #endLine(end) {
        const [, fence, language] = FENCE.exec(this.#line) ?? [];
        if (this.#code && fence?.startsWith(this.#fence) && !language) {
            this.#code.data = this.#done.replace(/\n$/, '');
            this.#code = null;
        } else if (this.#code) {
            this.#show(end);
            this.#done = this.#code.data;
        } else if (fence) {
            this.#span?.remove();
            this.#open(fence, language);
        } else {
            this.#show(end);
        }
        this.#line = '';
        this.#span = null;
    }

    #open(fence, language) {
        const block = document.createElement('pre');
        block.tabIndex = 0; // It may be wider than the page: the arrow keys move it.
        block.role = 'group';
        block.ariaLabel = language ? `Code: ${language}` : 'Code';
        const code = document.createElement('code');
        this.#code = document.createTextNode('');
        this.#fence = fence;
        this.#done = '';
        code.append(this.#code);
        block.append(code);
        this.#root.append(block);
    }

    #show(end) {
        if (this.#code) {
            this.#code.data = this.#done + this.#line + end;
            return;
        }
        if (!this.#line && !end) return;
        if (!this.#span) {
            this.#span = document.createElement('span');
            this.#root.append(this.#span);
        }
        const heading = /^ {0,3}#{1,6} +(?=\S)/.exec(this.#line);
        const point = /^( *)[*+-] +(?=\S)/.exec(this.#line);
        const text = heading
            ? this.#line.slice(heading[0].length)
            : point
              ? this.#line.slice(point[0].length)
              : this.#line;
        this.#span.className = heading ? 'heading' : '';
        this.#span.replaceChildren(...(point ? [`${point[1]}• `] : []), ...inline(text), end);
    }
}

/** The nodes of a line. */
function inline(line) {
    const nodes = [];
    let at = 0;
    for (const match of line.matchAll(INLINE)) {
        const [all, ticks, code, bold] = match;
        nodes.push(line.slice(at, match.index));
        const element = document.createElement(ticks ? 'code' : 'strong');
        element.textContent = ticks ? code : bold;
        nodes.push(element);
        at = match.index + all.length;
    }
    nodes.push(line.slice(at));
    return nodes;
}
