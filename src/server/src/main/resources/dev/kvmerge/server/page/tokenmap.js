/**
 * The whole conversation as a strip: from its first token on the left to its last on the right, each column split into
 * what is kept, merged and dropped there. The text of the tokens says the same, so it is hidden from screen readers.
 */
export class TokenMap {
    #canvas;
    #shares = [];
    #group = [];
    #index = -1;

    /** @param onPick called with the index of the token that was clicked */
    constructor(canvas, onPick) {
        this.#canvas = canvas;
        canvas.addEventListener('click', (e) => {
            if (this.#shares.length) onPick(Math.floor((e.offsetX / canvas.clientWidth) * this.#shares.length));
        });
        new ResizeObserver(() => this.#draw()).observe(canvas);
        matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => this.#draw());
    }

    /** @param shares of each token: kept, merged, dropped */
    update(shares) {
        this.#shares = shares;
        this.#draw();
    }

    /** Marks a token and its group. */
    point(index, group) {
        if (index === this.#index && group.length === 0 && this.#group.length === 0) return;
        this.#index = index;
        this.#group = group;
        this.#draw();
    }

    #draw() {
        const canvas = this.#canvas;
        const width = (canvas.width = Math.round(canvas.clientWidth * devicePixelRatio));
        const height = (canvas.height = Math.round(canvas.clientHeight * devicePixelRatio));
        const count = this.#shares.length;
        if (!width || !count) return;
        const g = canvas.getContext('2d');
        const style = getComputedStyle(canvas);
        const colour = (name) => style.getPropertyValue(name);
        const colours = [colour('--map-kept'), colour('--map-merged'), colour('--map-dropped')];
        for (let x = 0; x < width; x++) {
            const from = Math.floor((x * count) / width);
            const to = Math.max(from + 1, Math.floor(((x + 1) * count) / width));
            let y = height;
            for (let kind = 0; kind < 3; kind++) {
                let sum = 0;
                for (let i = from; i < to; i++) sum += this.#shares[i][kind];
                const tall = (sum / (to - from)) * height;
                g.fillStyle = colours[kind];
                g.fillRect(x, y - tall, 1, tall);
                y -= tall;
            }
        }
        g.fillStyle = colour('--ink');
        for (const i of this.#group.length ? this.#group : [this.#index]) {
            if (i >= 0)
                g.fillRect(Math.floor(((i + 0.5) / count) * width) - 1, 0, i === this.#index ? 3 : 2, height);
        }
    }
}
