import { crc32, deflateSync, inflateSync } from 'node:zlib';

/** A screenshot's PNG (8 bits of red, green and blue) as one of 256 colours: a third of the bytes. */
export function smaller(png) {
    const { width, height, pixels } = decode(png);
    const counts = new Map();
    for (let i = 0; i < pixels.length; i += 3) {
        const colour = rgb(pixels, i);
        counts.set(colour, (counts.get(colour) ?? 0) + 1);
    }
    const palette = [...counts]
        .sort((a, b) => b[1] - a[1])
        .slice(0, 256)
        .map(([colour]) => colour);
    const index = new Map([...counts.keys()].map((colour) => [colour, nearest(palette, colour)]));
    const rows = Buffer.alloc(height * (width + 1)); // each row begins with 0: no filter
    for (let y = 0; y < height; y++) {
        for (let x = 0; x < width; x++) rows[y * (width + 1) + 1 + x] = index.get(rgb(pixels, (y * width + x) * 3));
    }
    const head = Buffer.from(png.subarray(16, 29));
    head[9] = 3; // colours from a palette
    return Buffer.concat([
        png.subarray(0, 8),
        chunk('IHDR', head),
        chunk('PLTE', Buffer.from(palette.flatMap((c) => [c >> 16, (c >> 8) & 255, c & 255]))),
        chunk('IDAT', deflateSync(rows, { level: 9 })),
        chunk('IEND', Buffer.alloc(0)),
    ]);
}

const rgb = (bytes, at) => (bytes[at] << 16) | (bytes[at + 1] << 8) | bytes[at + 2];

function nearest(palette, colour) {
    let best = 0;
    let least = Infinity;
    for (let i = 0; i < palette.length && least > 0; i++) {
        let far = 0;
        for (const shift of [16, 8, 0]) far += (((palette[i] >> shift) & 255) - ((colour >> shift) & 255)) ** 2;
        if (far < least) [best, least] = [i, far];
    }
    return best;
}

function decode(png) {
    const data = [];
    for (let at = 8; at < png.length; at += 12 + png.readUInt32BE(at)) {
        if (png.toString('latin1', at + 4, at + 8) === 'IDAT')
            data.push(png.subarray(at + 8, at + 8 + png.readUInt32BE(at)));
    }
    if (png[24] !== 8 || png[25] !== 2)
        throw new Error(`A screenshot of ${png[24]} bits and colour type ${png[25]}`);
    const width = png.readUInt32BE(16);
    const height = png.readUInt32BE(20);
    const row = width * 3;
    const filtered = inflateSync(Buffer.concat(data));
    const pixels = Buffer.alloc(height * row);
    for (let y = 0; y < height; y++) {
        const filter = filtered[y * (row + 1)];
        for (let x = 0; x < row; x++) {
            const left = x >= 3 ? pixels[y * row + x - 3] : 0;
            const up = y > 0 ? pixels[(y - 1) * row + x] : 0;
            const corner = x >= 3 && y > 0 ? pixels[(y - 1) * row + x - 3] : 0;
            const foreseen = [0, left, up, (left + up) >> 1, paeth(left, up, corner)][filter];
            pixels[y * row + x] = filtered[y * (row + 1) + 1 + x] + foreseen;
        }
    }
    return { width, height, pixels };
}

function paeth(left, up, corner) {
    const far = [up - corner, left - corner, left + up - 2 * corner].map(Math.abs);
    if (far[0] <= far[1] && far[0] <= far[2]) return left;
    return far[1] <= far[2] ? up : corner;
}

function chunk(type, data) {
    const named = Buffer.concat([Buffer.from(type, 'latin1'), data]);
    const out = Buffer.alloc(named.length + 8);
    out.writeUInt32BE(data.length, 0);
    named.copy(out, 4);
    out.writeUInt32BE(crc32(named), named.length + 4);
    return out;
}
