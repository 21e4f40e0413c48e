// The frames on descriptor 3: a length of 4 bytes, little-endian, then a JSON object in UTF-8.

import { writeSync } from 'node:fs';
import { Socket } from 'node:net';

const BUFFER = 64 * 1024;
// How long an exit waits while the worker reads none of the last answers, in ms.
const DRAIN_TIMEOUT = 2000;

export class Channel {
  #fd;
  #maxFrame;
  #onFrame;
  #onEnd;
  #socket;
  #hasEnded = false;

  // A frame that has arrived in part.
  #partial = Buffer.allocUnsafe(BUFFER);
  #have = 0;

  // Frames to be written.
  #out = Buffer.allocUnsafe(BUFFER);
  #used = 0;
  #isScheduled = false;
  // The buffer that Node.js is writing because the socket was full.
  #writing = null;

  /**
   * @param {number} fd a connected stream socket
   * @param {number} maxFrame the longest frame that the other side accepts, in bytes without the length
   * @param {(text: string) => void} onFrame
   * @param {() => void} onEnd
   */
  constructor(fd, maxFrame, onFrame, onEnd) {
    this.#fd = fd;
    this.#maxFrame = maxFrame;
    this.#onFrame = onFrame;
    this.#onEnd = onEnd;
    // Without allowHalfOpen, answers are discarded without an error once the other side has ended its direction.
    this.#socket = new Socket({
      fd,
      readable: true,
      writable: true,
      allowHalfOpen: true,
      onread: {
        buffer: Buffer.allocUnsafe(BUFFER),
        callback: (count, buffer) => {
          this.#receive(buffer, count);
          return true;
        },
      },
    });
    this.#socket.on('end', this.#end);
    this.#socket.on('error', this.#end);
    // process.exit() discards what has not been written.
    process.on('exit', () => this.drain());
  }

  #end = () => {
    if (this.#hasEnded) return;
    this.#hasEnded = true;
    this.#onEnd();
  };

  #receive(buffer, count) {
    let at = 0;
    while (at < count) {
      if (this.#have === 0 && count - at >= 4) {
        const end = at + 4 + buffer.readUInt32LE(at);
        if (end <= count) {
          this.#onFrame(buffer.toString('utf8', at + 4, end));
          at = end;
          continue;
        }
      }
      at = this.#collect(buffer, at, count);
    }
  }

  /** Adds bytes to the partial frame, passes it on if it is complete, and returns the position after these bytes. */
  #collect(buffer, at, count) {
    const missing = this.#have < 4 ? 4 - this.#have : 4 + this.#partial.readUInt32LE(0) - this.#have;
    const end = Math.min(count, at + missing);
    buffer.copy(this.#partial, this.#have, at, end);
    this.#have += end - at;
    if (this.#have < 4) return end;
    const size = 4 + this.#partial.readUInt32LE(0);
    if (this.#have === size) {
      const text = this.#partial.toString('utf8', 4, size);
      if (this.#partial.length > BUFFER) this.#partial = Buffer.allocUnsafe(BUFFER);
      this.#have = 0;
      this.#onFrame(text);
    } else if (size > this.#partial.length) {
      const larger = Buffer.allocUnsafe(size);
      this.#partial.copy(larger, 0, 0, this.#have);
      this.#partial = larger;
    }
    return end;
  }

  /** Sends a JSON object with all others of this turn of the loop. Returns false if it is too long. */
  send(text) {
    if (text.length > this.#maxFrame) return false;
    // A UTF-16 unit takes at most three bytes.
    const room = 4 + (text.length < BUFFER ? text.length * 3 : Buffer.byteLength(text));
    if (this.#out.length - this.#used < room) {
      const larger = Buffer.allocUnsafe(Math.max(this.#out.length * 2, this.#used + room));
      this.#out.copy(larger, 0, 0, this.#used);
      this.#out = larger;
    }
    const length = this.#out.write(text, this.#used + 4);
    if (length > this.#maxFrame) return false;
    this.#out.writeUInt32LE(length, this.#used);
    this.#used += 4 + length;
    this.schedule();
    return true;
  }

  /** Calls `beforeWrite` and writes at the end of this turn of the loop. */
  schedule() {
    if (this.#isScheduled) return;
    this.#isScheduled = true;
    setImmediate(this.#flush);
  }

  /** Adds what accumulates until frames are written. */
  beforeWrite = () => {};

  #flush = () => {
    this.beforeWrite();
    this.#isScheduled = false;
    if (this.#writing !== null || this.#used === 0) return;
    // One system call, without the objects that a stream creates for each write.
    const written = this.#write(this.#out, 0, this.#used);
    if (written === this.#used) {
      this.#used = 0;
      if (this.#out.length > 16 * BUFFER) this.#out = Buffer.allocUnsafe(BUFFER);
      return;
    }
    this.#writing = this.#out.subarray(written, this.#used);
    this.#out = Buffer.allocUnsafe(BUFFER);
    this.#used = 0;
    this.#socket.write(this.#writing, () => {
      this.#writing = null;
      this.#flush();
    });
  };

  /** Returns how many bytes were written; all, if there is no reader any more. */
  #write(buffer, from, to) {
    // Its number may be that of another file by now.
    if (this.#socket.destroyed) return to - from;
    try {
      return writeSync(this.#fd, buffer, from, to - from);
    } catch (error) {
      return error.code === 'EAGAIN' ? 0 : to - from;
    }
  }

  /** Writes everything, and blocks for it. */
  drain() {
    this.beforeWrite();
    if (this.#writing !== null) {
      // There is no public way to learn how much of a write is outstanding.
      const left = this.#socket._handle?.writeQueueSize ?? 0;
      this.#writeAll(this.#writing, this.#writing.length - left, this.#writing.length);
      this.#writing = null;
    }
    this.#writeAll(this.#out, 0, this.#used);
    this.#used = 0;
  }

  #writeAll(buffer, from, to) {
    let deadline = performance.now() + DRAIN_TIMEOUT;
    while (from < to && performance.now() < deadline) {
      const written = this.#write(buffer, from, to);
      from += written;
      if (written > 0) deadline = performance.now() + DRAIN_TIMEOUT;
      else Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1);
    }
  }
}
