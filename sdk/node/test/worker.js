// The worker's side of the protocol, for tests.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';

const DEADLINE = 20_000;

export const here = (path) => fileURLToPath(new URL(path, import.meta.url));

/** Waits for a promise; what it takes too long for is a failure. */
export async function within(promise, what, ms = DEADLINE) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no ${what} within ${ms} ms`)), ms);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

export const frame = (body) => {
  const bytes = Buffer.from(typeof body === 'string' ? body : JSON.stringify(body));
  const length = Buffer.alloc(4);
  length.writeUInt32LE(bytes.length);
  return Buffer.concat([length, bytes]);
};

export class Worker {
  frames = [];
  // The number of reads, each of which may have several frames.
  reads = 0;
  stdout = '';
  stderr = '';
  #waiting = [];
  #rest = Buffer.alloc(0);
  #ids = 0;

  /** Starts test/apps/NAME; `t` is the test that ends it. */
  constructor(t, name, { env = {}, stdio = ['ignore', 'pipe', 'pipe', 'pipe'], args = [] } = {}) {
    const script = name.includes('/') ? name : here(`apps/${name}.js`);
    this.child = spawn(process.execPath, [...args, script], {
      stdio,
      env: { ...process.env, NODE_OPTIONS: '', FDPASSD_APP: '3', FDPASSD_MAX_FRAME: '1049600', ...env },
    });
    this.exit = once(this.child, 'exit');
    this.socket = this.child.stdio[3];
    if (this.socket) this.watch(this.socket);
    this.child.stdout?.on('data', (data) => (this.stdout += data));
    this.child.stderr?.on('data', (data) => (this.stderr += data));
    t.after(async () => {
      if (this.child.exitCode === null && this.child.signalCode === null) this.child.kill('SIGKILL');
      await this.exit;
      this.socket?.destroy();
    });
  }

  /** Reads frames of this socket. */
  watch(socket) {
    this.socket = socket;
    socket.on('error', () => {});
    socket.on('data', (data) => {
      this.reads++;
      this.#rest = this.#rest.length === 0 ? data : Buffer.concat([this.#rest, data]);
      let at = 0;
      while (this.#rest.length - at >= 4) {
        const end = at + 4 + this.#rest.readUInt32LE(at);
        if (end > this.#rest.length) break;
        this.frames.push(this.#rest.toString('utf8', at + 4, end));
        at = end;
      }
      this.#rest = this.#rest.subarray(at);
      this.#waiting.splice(0).forEach((wake) => wake());
    });
  }

  /** The next frame for which `is` holds, parsed, and as text in `text`. Others stay. */
  async next(is = () => true, what = 'frame') {
    const find = async () => {
      for (;;) {
        const at = this.frames.findIndex((text) => is(JSON.parse(text)));
        if (at >= 0) {
          const [text] = this.frames.splice(at, 1);
          return Object.defineProperty(JSON.parse(text), 'text', { value: text });
        }
        await new Promise((wake) => this.#waiting.push(wake));
      }
    };
    const dead = this.exit.then(([code, signal]) => {
      // Messages that have arrived count, also if the process has ended.
      return new Promise((resolve, reject) =>
        setTimeout(() => reject(new Error(`no ${what}: the app ended with ${code ?? signal}: ${this.stderr}`)), 500),
      );
    });
    dead.catch(() => {});
    return within(Promise.race([find(), dead]), what);
  }

  async hello() {
    return this.next((frame) => frame.hello === 1, 'hello');
  }

  send(...bodies) {
    this.socket.write(Buffer.concat(bodies.map(frame)));
  }

  /** Returns the body of a request; `params` is JSON text. */
  body(method, params, more = {}) {
    const id = ++this.#ids;
    const head = { id, in: method, client: 4711, peer: '10.0.0.9:4242', attempt: 1, timeout: 30000, ...more };
    const text = JSON.stringify(head);
    return { id, text: params === undefined ? text : `${text.slice(0, -1)},"params":${params}}` };
  }

  answer(id) {
    return this.next((frame) => frame.id === id, `answer ${id}`);
  }

  async call(method, params, more) {
    const { id, text } = this.body(method, params, more);
    this.send(text);
    return this.answer(id);
  }

  /** Ends the connection, and checks that the app then exits with 0. */
  async end() {
    this.socket.destroy();
    assert.deepEqual(await within(this.exit, 'exit'), [0, null], this.stderr);
  }

  /** Waits until the log matches. */
  async logged(pattern, stream = 'stderr') {
    await within(
      (async () => {
        while (!pattern.test(this[stream])) await new Promise((resolve) => setTimeout(resolve, 10));
      })(),
      `${pattern} in the log`,
    );
  }
}
