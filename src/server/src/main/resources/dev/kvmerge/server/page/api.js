import { events } from './sse.js';
import { key } from './store.js';

/** What the server refused, or that it did not answer; the message is for the reader. */
export class ServerError extends Error {
    /** @param {number} status the HTTP status; 0 where there was no answer at all */
    constructor(message, status) {
        super(message);
        this.name = 'ServerError';
        this.status = status;
    }
}

/**
 * A request to the server, with the API key if there is one.
 *
 * @returns the response, whose status is 2xx
 * @throws ServerError for every other status, and where no answer comes; an AbortError where the signal says so
 */
async function request(path, { body, signal } = {}) {
    const headers = {};
    if (body) headers['Content-Type'] = 'application/json';
    if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
    let response;
    try {
        response = await fetch(path, {
            method: body ? 'POST' : 'GET',
            headers,
            body: body && JSON.stringify(body),
            signal,
        });
    } catch (e) {
        if (e.name === 'AbortError') throw e;
        throw new ServerError(
            `The server does not answer. Is kvmerge serve still running at ${location.origin}?`,
            0,
        );
    }
    if (!response.ok) throw await refusal(response);
    return response;
}

async function refusal(response) {
    let said = '';
    try {
        said = (await response.json()).error?.message ?? '';
    } catch {
        // Not an error object: a proxy's page, or nothing. The status has to do.
    }
    const { status } = response;
    if (status === 503) {
        const wait = Number.parseInt(response.headers.get('Retry-After'), 10);
        const when = Number.isFinite(wait)
            ? ` It asks to try again in ${wait === 1 ? 'a second' : `${wait} seconds`}.`
            : '';
        return new ServerError(`${sentence(said || 'The server is busy')}${when}`, status);
    }
    if (status === 401) return new ServerError(sentence(said || 'The server asks for an API key'), status);
    return new ServerError(sentence(said || `The server answers with HTTP status ${status}`), status);
}

const sentence = (text) => (/[.!?]\s*$/.test(text) ? text : `${text}.`);

/** GET of a path that answers with JSON. */
export async function get(path, signal) {
    const response = await request(path, { signal });
    try {
        return await response.json();
    } catch (e) {
        if (e.name === 'AbortError') throw e;
        throw new ServerError(
            `The server's answer to ${path} is no JSON: another program may answer here.`,
            response.status,
        );
    }
}

/**
 * Asks for an answer and hands on each chunk of it as it comes.
 *
 * @throws ServerError also where the stream ends early or holds an error
 */
export async function complete(body, signal, onChunk) {
    const response = await request('v1/chat/completions', { body, signal });
    let done = false;
    try {
        for await (const data of events(response.body)) {
            if (data === '[DONE]') {
                done = true;
                break;
            }
            const chunk = JSON.parse(data);
            if (chunk.error)
                throw new ServerError(
                    sentence(chunk.error.message ?? 'The server failed'),
                    chunk.error.code ?? 500,
                );
            onChunk(chunk);
        }
    } catch (e) {
        if (e.name === 'AbortError' || e instanceof ServerError) throw e;
        throw new ServerError('The connection broke off in the middle of the answer.', 0);
    }
    if (!done) throw new ServerError('The connection broke off in the middle of the answer.', 0);
}
