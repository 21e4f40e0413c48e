import { findParams } from './json.js';

/** The properties of a call, for its method. */
export class Call {
  #message;
  #text;
  #arrived;
  #controller = null;
  #reason = null;

  /**
   * @param message the frame, parsed
   * @param {string} text the frame
   * @param {number} arrived when it arrived, by performance.now()
   */
  constructor(message, text, arrived) {
    this.#message = message;
    this.#text = text;
    this.#arrived = arrived;
  }

  get method() {
    return this.#message.in;
  }

  get client() {
    return this.#message.client;
  }

  get peer() {
    return this.#message.peer ?? '';
  }

  get via() {
    return this.#message.via;
  }

  get pid() {
    return this.#message.pid;
  }

  get uid() {
    return this.#message.uid;
  }

  get gid() {
    return this.#message.gid;
  }

  get attempt() {
    return this.#message.attempt ?? 1;
  }

  get remaining() {
    const { timeout } = this.#message;
    return timeout === undefined ? Infinity : Math.max(0, this.#arrived + timeout - performance.now());
  }

  get deadline() {
    return this.#message.timeout === undefined ? undefined : Math.round(Date.now() + this.remaining);
  }

  get rawParams() {
    return findParams(this.#text);
  }

  // Most methods never ask for it.
  get signal() {
    if (this.#controller === null) {
      this.#controller = new AbortController();
      if (this.#reason !== null) this.#controller.abort(this.#reason);
    }
    return this.#controller.signal;
  }

  get isCancelled() {
    return this.#reason !== null;
  }

  /** @internal Cancels a call; its answer will be discarded. */
  static cancel(call, why) {
    if (call.#reason !== null) return;
    call.#reason =
      why === 'timeout'
        ? new DOMException('the request took longer than the daemon allows', 'TimeoutError')
        : new DOMException('the client has left', 'AbortError');
    call.#controller?.abort(call.#reason);
  }
}
