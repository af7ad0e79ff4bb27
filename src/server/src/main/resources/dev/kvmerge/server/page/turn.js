/** One answer as it comes in: its text, the slot it is written in, and how fast. */
export class Turn {
    message = { role: 'assistant', content: '' };
    slot = null;
    cells = {}; // { cells, allocated, mib } as the server last said
    #usage = {};
    #timings = null;
    #reason = null;
    #asked = performance.now();
    #first = null;
    #last = null;
    #pieces = 0;

    /** @returns the text that a chunk adds */
    take(chunk) {
        const choice = chunk.choices?.[0];
        const text = choice?.delta?.content ?? '';
        if (text) {
            this.#last = performance.now();
            this.#first ??= this.#last;
            this.#pieces++;
            this.message.content += text;
        }
        this.#reason = choice?.finish_reason ?? this.#reason;
        this.#usage = chunk.usage ?? this.#usage;
        this.#timings = chunk.timings ?? this.#timings;
        if (chunk.kvmerge) {
            this.slot = chunk.kvmerge.slot ?? this.slot;
            this.cells = chunk.kvmerge;
        }
        return text;
    }

    /**
     * In tokens a second, and seconds to the first token as they were here. The server's figures where it gives them,
     * else those that the chunks' times allow: each holds a token or more.
     */
    speed() {
        const first = this.#first === null ? undefined : (this.#first - this.#asked) / 1000;
        if (this.#timings) {
            return {
                promptSpeed: this.#timings.prompt_n > 0 ? this.#timings.prompt_per_second : undefined,
                speed: this.#timings.predicted_n > 1 ? this.#timings.predicted_per_second : undefined,
                first,
            };
        }
        const read = this.#usage.prompt_tokens - (this.#usage.prompt_tokens_details?.cached_tokens ?? 0);
        const seconds = (this.#last - this.#first) / 1000;
        return {
            promptSpeed: read > 0 && first > 0 ? read / first : undefined,
            speed:
                this.#pieces > 1 && seconds > 0
                    ? ((this.#usage.completion_tokens ?? this.#pieces) - 1) / seconds
                    : undefined,
            first,
        };
    }

    /** A line about the answer that is over. */
    note(stopped, failed) {
        const said = [];
        if (stopped) said.push('stopped');
        else if (failed) said.push('broken off');
        else if (this.#reason === 'length') said.push('cut at the most tokens allowed');
        const written = this.#usage.completion_tokens;
        if (written !== undefined) said.push(`${count(written, 'token')} written`);
        const all = this.#usage.prompt_tokens;
        if (all !== undefined) {
            const kept = this.#usage.prompt_tokens_details?.cached_tokens;
            said.push(kept ? `${all - kept} of ${all} prompt tokens read` : `${count(all, 'prompt token')} read`);
        }
        const { speed } = this.speed();
        if (speed) said.push(`${speed.toFixed(1)} tokens/s`);
        return said.join(' · ');
    }
}

const count = (number, word) => `${number} ${word}${number === 1 ? '' : 's'}`;
