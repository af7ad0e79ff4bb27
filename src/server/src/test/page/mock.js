import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { extname, join } from 'node:path';

const TYPES = { '.html': 'text/html', '.css': 'text/css', '.js': 'text/javascript', '.svg': 'image/svg+xml' };
export const PAGE = join(import.meta.dirname, '../../main/resources/dev/kvmerge/server/page');

/**
 * A server that speaks as kvmerge serve does, and says what a test wants said: `chat`, `cells`, `props` and `key` may
 * be set. It also serves the page, with the same Content-Security-Policy.
 */
export class Mock {
    /** What each completion request held, in order. */
    asked = [];
    /** The queries of each request for cells. */
    cellsAsked = [];
    key = null;
    props = {
        model_alias: 'SmolLM2-135M-Instruct',
        default_generation_settings: {
            params: { temperature: 0.8, top_k: 40, top_p: 0.95, min_p: 0.05, max_tokens: -1 },
        },
        kvmerge: { strategy: 'entropy-merged', cells: 256, layers: 30, kv_heads: 3 },
    };
    /** The answer to /slots/{id}/cells, of the query's layer and head (null: all). */
    cells = () => cellsOf([]);
    /** Answers a completion: (answer, request) => promise. */
    chat = (answer) => answer.says('Hello there.');
    #server;

    async start(port = 0) {
        this.#server = createServer((request, response) => {
            this.#handle(request, response).catch((e) => {
                if (!response.headersSent) response.writeHead(500);
                response.end(String(e));
            });
        });
        await new Promise((resolve) => this.#server.listen(port, '127.0.0.1', resolve));
        this.port = this.#server.address().port;
        this.url = `http://127.0.0.1:${this.port}/`;
        return this;
    }

    async stop() {
        this.#server.closeAllConnections();
        await new Promise((resolve) => this.#server.close(resolve));
    }

    async #handle(request, response) {
        const url = new URL(request.url, this.url);
        const json = (status, body, headers = {}) => {
            response.writeHead(status, { 'Content-Type': 'application/json', ...headers });
            response.end(JSON.stringify(body));
        };
        if (request.method === 'GET' && (url.pathname === '/' || extname(url.pathname) in TYPES)) {
            return this.#file(url.pathname === '/' ? 'index.html' : url.pathname, response);
        }
        if (this.key && request.headers.authorization !== `Bearer ${this.key}`) {
            return json(401, { error: { message: 'Invalid API key', type: 'authentication_error', code: 401 } });
        }
        if (url.pathname === '/props') return json(200, this.props);
        const slot = /^\/slots\/(\d+)\/cells$/.exec(url.pathname);
        if (slot) {
            const number = (name) => (url.searchParams.has(name) ? Number(url.searchParams.get(name)) : null);
            this.cellsAsked.push(url.search);
            const cells = this.cells(number('layer'), number('head'), Number(slot[1]));
            return cells ? json(200, cells) : json(404, { error: { message: 'Slot 0 holds nothing', code: 404 } });
        }
        if (url.pathname === '/v1/chat/completions') {
            let body = '';
            for await (const piece of request) body += piece;
            this.asked.push(JSON.parse(body));
            const answer = new Answer(response, json);
            response.on('close', () => answer.closed());
            return this.chat(answer, this.asked.at(-1));
        }
        return json(404, { error: { message: `No such path: ${url.pathname}`, code: 404 } });
    }

    async #file(name, response) {
        const body = await readFile(join(PAGE, name)).catch(() => null);
        response.writeHead(body ? 200 : 404, {
            'Content-Type': TYPES[extname(name)],
            'Content-Security-Policy':
                "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        });
        response.end(body ?? '');
    }
}

/** A completion's response. */
class Answer {
    /** Whether the client broke the connection off before the end. */
    brokenOff = false;
    #response;
    #over = false;
    #json;

    constructor(response, json) {
        this.#response = response;
        this.#json = json;
        this.gone = new Promise((resolve) => (this.closed = () => resolve((this.brokenOff = !this.#over))));
    }

    refuses(status, message, headers) {
        this.#json(status, { error: { message, type: 'error', code: status } }, headers);
    }

    /** The first chunk, which names the slot. */
    begin(slot = 0) {
        this.#response.writeHead(200, { 'Content-Type': 'text/event-stream; charset=utf-8' });
        this.chunk({ choices: [{ index: 0, delta: { role: 'assistant', content: null } }], kvmerge: { slot } });
    }

    chunk(chunk) {
        this.raw(`data: ${JSON.stringify(chunk)}\n\n`);
    }

    raw(text) {
        this.#response.write(text);
    }

    text(text) {
        this.chunk({ choices: [{ index: 0, delta: { content: text } }] });
    }

    end({ reason = 'stop', usage = {}, kvmerge = {}, timings } = {}) {
        this.chunk({ choices: [{ index: 0, delta: {}, finish_reason: reason }] });
        this.chunk({
            choices: [],
            usage: {
                prompt_tokens: 40,
                completion_tokens: 12,
                prompt_tokens_details: { cached_tokens: 0 },
                ...usage,
            },
            kvmerge: { slot: 0, cells: 52, allocated: 384, mib: 1.5, ...kvmerge },
            timings,
        });
        this.raw('data: [DONE]\n\n');
        this.cut();
    }

    /** The end of the connection, whatever was said. */
    cut() {
        this.#over = true;
        this.#response.end();
    }

    async says(text, ending) {
        this.begin();
        for (const piece of text.match(/\s*\S+|\s+/g) ?? []) this.text(piece);
        this.end(ending);
    }
}

/** An answer of /slots/{id}/cells, of tokens { piece, fate, into, shares, id }; what is missing is usual. */
export function cellsOf(tokens, more = {}) {
    return {
        tokens: tokens.map((token, i) => ({
            id: 1000 + i,
            piece: ` word${i}`,
            fate: 'kept',
            into: null,
            shares: [1, 0, 0],
            ...token,
        })),
        cells: tokens.length,
        allocated: 384,
        mib: 1.5,
        layers: 30,
        kv_heads: 3,
        ...more,
    };
}
