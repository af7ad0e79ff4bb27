/**
 * The data of each server-sent event of a response's body, as text, in order. Ends with the body. A character or a line
 * that two pieces of the body share is put together again.
 *
 * @param {ReadableStream<Uint8Array>} body
 */
export async function* events(body) {
    const reader = body.getReader();
    const decoder = new TextDecoder(); // of UTF-8; what is none becomes U+FFFD
    let rest = '';
    let data = [];
    try {
        for (let done = false; !done;) {
            const piece = await reader.read();
            done = piece.done;
            rest += done ? decoder.decode() + '\n\n' : decoder.decode(piece.value, { stream: true });
            // A carriage return at the end may be the first half of a line's end.
            const lines = rest.split(/\r\n|\n|\r(?!$)/);
            rest = lines.pop();
            for (const line of lines) {
                if (line === '') {
                    if (data.length) yield data.join('\n');
                    data = [];
                } else if (line.startsWith('data:')) {
                    data.push(line.slice(line[5] === ' ' ? 6 : 5));
                }
            }
        }
    } finally {
        reader.cancel().catch(() => {}); // The body may have failed already.
    }
}
